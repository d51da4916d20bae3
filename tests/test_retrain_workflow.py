"""The retraining workflow: what it may, and its very lines, run in order against an S3 and MLflow on PostgreSQL.

GitHub's part is played by a few dozen lines: contexts and conditions, its files for outputs and summaries, and a `gh`
that hands over what was uploaded and writes down what was to be said. Everything else is the real thing.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests import servers

from noise2next.config import Settings, load_params
from noise2next.data import sample
from noise2next.registry.versions import ModelRegistry
from noise2next.workspace import Workspace

KNOWN = ("actions/checkout", "actions/setup-python", "actions/upload-artifact")
AUTHOR = {
    "GIT_AUTHOR_NAME": "m",
    "GIT_AUTHOR_EMAIL": "m@m",
    "GIT_COMMITTER_NAME": "m",
    "GIT_COMMITTER_EMAIL": "m@m",
}
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
EXPRESSION = re.compile(r"\$\{\{((?:(?!\}\}).)*)\}\}", re.DOTALL)


@pytest.fixture(scope="module")
def workflow(repository):
    return YAML(typ="safe").load((repository / ".github" / "workflows" / "retrain.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


# --- what it may ------------------------------------------------------------------------------------------------------


def test_it_starts_for_new_data_or_choices_on_a_schedule_by_hand_and_when_called(workflow):
    asked = workflow["on"]
    assert set(asked) == {"push", "pull_request", "schedule", "workflow_dispatch", "repository_dispatch"}
    assert asked["push"] == {"branches": ["main"], "paths": ["data.dvc", "params.yaml"]}
    assert asked["pull_request"]["paths"] == asked["push"]["paths"]
    inputs = asked["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"dataset", "variants", "runner"}
    assert all(one["default"] for one in inputs.values())


def test_what_is_retrained_unless_someone_says_otherwise_is_in_params(repository, workflow):
    params = load_params(repository / "params.yaml")
    known = {name: Known() for name in ("github", "inputs", "vars")}
    usual = {name: evaluated(workflow["env"][name.upper()], known) for name in ("dataset", "variants")}
    inputs = workflow["on"]["workflow_dispatch"]["inputs"]
    assert usual == {name: inputs[name]["default"] for name in usual}
    assert usual["dataset"] in params.datasets
    assert set(usual["variants"].split(",")) <= set(params.variants) - set(params.latent_variants)


def test_what_it_commits_does_not_start_it_again(workflow):
    assert "dvc.lock" not in workflow["on"]["push"]["paths"]


def test_one_of_a_dataset_at_a_time_and_none_is_cut_off(workflow):
    def group(dataset="", usual="", sent="", **event):
        github = Known(event, event=Known(client_payload=Known(dataset=sent)))
        known = {"github": github, "inputs": Known(dataset=dataset), "vars": Known(RETRAIN_DATASET=usual)}
        named = evaluated(workflow["env"]["DATASET"], known)
        found = evaluated(workflow["concurrency"]["group"], known)
        assert github.event_name == "pull_request" or found == f"retrain-{named}"
        return found

    assert workflow["concurrency"]["cancel-in-progress"] is False
    asked = {group(event_name=name, usual="shop") for name in ("push", "schedule", "repository_dispatch")}
    assert asked == {group(event_name="workflow_dispatch", dataset="shop")}
    assert asked == {group(event_name="repository_dispatch", sent="shop", usual="toys")}
    assert asked.isdisjoint({group(event_name="push"), group(event_name="workflow_dispatch", dataset="toys")})
    assert group(event_name="pull_request", ref="refs/pull/7/merge", usual="shop") not in asked


def test_each_job_may_no_more_than_it_must(workflow):
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "retrain": {"contents": "read"},
        "lock": {"actions": "read", "contents": "write"},
        "comment": {"actions": "read", "pull-requests": "write"},
        "fork": {},
    }
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())


def test_a_job_that_may_write_runs_nothing_that_was_installed(workflow):
    for name in ("lock", "comment"):
        lines = "\n".join(step.get("run", "") for step in workflow["jobs"][name]["steps"])
        assert not re.search(r"make|\.venv|python|dvc (?!lock)", lines.replace("dvc.lock", "")), name


def test_actions_are_those_of_ci_at_the_same_commits(repository, steps):
    pinned = set(re.findall(r"uses: (\S+)", (repository / ".github" / "workflows" / "ci.yml").read_text()))
    used = {step["uses"] for step in steps if "uses" in step}
    assert used <= pinned
    assert all(re.fullmatch(rf"({'|'.join(KNOWN)})@[0-9a-f]{{40}}", one) for one in used)
    assert all(step["with"]["persist-credentials"] is False for step in steps if "checkout" in step.get("uses", ""))


def test_no_line_of_a_shell_is_made_of_what_someone_sent(steps):
    assert [step["run"] for step in steps if EXPRESSION.search(step.get("run", ""))] == []


def test_a_pull_request_neither_chooses_its_machine_nor_reaches_the_registry(workflow):
    sent = {"event_name": "pull_request", "ref": "refs/pull/7/merge", "event": Known({"number": 7})}
    known = {"github": Known(sent), "vars": Known(RETRAIN_RUNNER="gpu", MLFLOW_TRACKING_URI="https://mlflow.example")}
    known |= {"secrets": Known(MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD="x"), "inputs": Known()}
    job = workflow["jobs"]["retrain"]
    assert evaluated(job["runs-on"], known) == "ubuntu-24.04"
    asking = [step["env"] for step in job["steps"] if "MLFLOW_TRACKING_URI" in step.get("env", {})]
    assert len(asking) == 2
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        assert {evaluated(one[name], known) for one in asking} == {""}
    known["github"] = Known(event_name="push", ref="refs/heads/main", event=Known())
    assert evaluated(job["runs-on"], known) == "gpu"
    assert {evaluated(one["MLFLOW_TRACKING_URI"], known) for one in asking} == {"https://mlflow.example"}


def test_only_main_gets_the_keys_that_can_write(workflow):
    write = {name: f"write {name}" for name in SECRETS}
    read = {name: f"read {name}" for name in SECRETS}
    secrets = Known(write | {f"READ_{name}": value for name, value in read.items()})

    def given(ref, secrets):
        known = {"github": Known(ref=ref), "secrets": secrets, "steps": Known(retrain=Known(outcome="success"))}
        steps = [step for step in workflow["jobs"]["retrain"]["steps"] if SECRETS[0] in step.get("env", {})]
        done = [step["env"] for step in steps if evaluated(step.get("if", True), known)]
        return [{name: evaluated(one[name], known) for name in SECRETS} for one in done]

    assert given("refs/heads/main", secrets) == [write, write]
    for ref in ("refs/heads/other", "refs/pull/7/merge"):
        assert given(ref, secrets) == [read]
        assert given(ref, Known(write)) == [dict.fromkeys(SECRETS, "")]


@pytest.mark.parametrize(
    "pull",
    [
        {"head": {"repo": {"fork": True}}, "user": {"login": "stranger"}},
        {"head": {"repo": {"fork": False}}, "user": {"login": "dependabot[bot]"}},
    ],
)
def test_who_gets_no_secrets_is_told_and_nothing_else_is_done(workflow, pull):
    pull = Known(head=Known(repo=Known(pull["head"]["repo"])), user=Known(pull["user"]))
    known = {
        "github": Known(event_name="pull_request", event=Known(pull_request=pull)),
        "needs": Known(retrain=Known(outputs=Known(), result="skipped")),
    }
    assert [name for name, job in workflow["jobs"].items() if evaluated(job["if"], known)] == ["fork"]


def test_each_make_line_is_a_target_and_each_command_is_ours(repository, steps):
    lines = "\n".join(step.get("run", "") for step in steps)
    targets = re.findall(r"\bmake (\w+)", lines)
    assert targets == ["team", "pull", "retrain"]
    makefile = (repository / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


def lock_of(**stages: str) -> str:
    """A dvc.lock as DVC writes it: each stage with the hash of what it made."""
    made = "".join(
        f"  {name}@{name}:\n    cmd: x\n    outs:\n    - path: p\n      md5: {md5}\n" for name, md5 in stages.items()
    )
    return f"schema: '2.0'\nstages:\n{made}"


@pytest.mark.parametrize("before", [None, lock_of(a="1", b="1", gone="1")])
def test_what_two_datasets_runs_made_is_both_recorded_also_where_a_push_comes_too_late(
    workflow, tmp_path, monkeypatch, before
):
    for name, value in AUTHOR.items():
        monkeypatch.setenv(name, value)
    origin, member, job = tmp_path / "origin.git", tmp_path / "member", tmp_path / "job"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
    git(tmp_path, "clone", "--quiet", str(origin), str(member))

    def recorded(lock: str | None) -> None:
        if lock:
            (member / "dvc.lock").write_text(lock)
        git(member, "add", "--all")
        git(member, "commit", "--quiet", "--allow-empty", "--message", "One")
        git(member, "push", "--quiet", "origin", "HEAD:main")

    recorded(before)
    git(tmp_path, "clone", "--quiet", "--depth", "1", origin.as_uri(), str(job))
    (job / "retrained").mkdir()
    (job / "retrained" / "dvc.lock").write_text(lock_of(a="2", b="1", c="2") if before else lock_of(a="2", c="2"))
    recorded(lock_of(a="1", b="3", gone="1", other="3") if before else lock_of(b="3", other="3"))
    hook = origin / "hooks" / "update"  # refuses the first push, as if main had moved on
    hook.write_text(f"#!/bin/sh\n[ -e {tmp_path}/late ] && exit 0\ntouch {tmp_path}/late\nexit 1\n")
    hook.chmod(0o755)
    step = workflow["jobs"]["lock"]["steps"][-1]
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    environment = {**os.environ, "DATASET": "shop", "GH_TOKEN": "token"}
    done = subprocess.run(shell, cwd=job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "late").exists()
    found = YAML(typ="safe").load(git(origin, "show", "main:dvc.lock"))
    made = {name: str(stage["outs"][0]["md5"]) for name, stage in found["stages"].items()}
    assert made == {"a@a": "2", "b@b": "3", "c@c": "2", "other@other": "3"}
    assert git(origin, "rev-list", "--count", "main").strip() == "3"


STAND_IN = """#!/bin/sh
echo "$(basename "$0")|$*|" >> said
[ "$1" = config ] && echo storage
[ "$1" = targets ] && echo "evaluate@one evaluate@two"
exit 0
"""


@pytest.fixture
def makefile(repository, tmp_path):
    """The Makefile over programs that only write down what they are called with."""
    shutil.copy(repository / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    for name in ("noise2next", "dvc", "python"):
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(STAND_IN)
        program.chmod(0o755)
    for mark in (".run", ".team"):
        (tmp_path / ".venv" / mark).touch()
    return tmp_path


def made(folder: Path, *targets: str, **given: str) -> list[str]:
    """What `make` calls, argument by argument as the programs see them."""
    done = subprocess.run(
        ["make", *targets], cwd=folder, env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (folder / "said").read_text().splitlines()


def test_the_lines_do_what_is_said_of_them(makefile):
    assert made(makefile, "pull", "retrain", DATASET="shop", VARIANTS="one,two") == [
        "dvc|config core.remote|",
        "dvc|pull data.dvc|",
        "dvc|pull --allow-missing --with-deps leaderboard@shop|",
        "noise2next|targets --dataset shop --variants one,two|",
        "dvc|repro evaluate@one evaluate@two|",
        "dvc|repro --single-item leaderboard@shop|",
        "noise2next|register --dataset shop|",
    ]


def test_without_names_every_variant_of_the_sample_is_meant(makefile):
    assert made(makefile, "retrain")[0] == "noise2next|targets --dataset sample|"


@pytest.mark.parametrize("name", ["$(shell touch pwned)", "x; touch pwned", "$(touch pwned)", "`touch pwned`", "a b"])
def test_what_someone_sent_is_a_name_and_never_a_command(makefile, name):
    said = made(makefile, "pull", "retrain", DATASET=name, VARIANTS=name)
    assert f"noise2next|targets --dataset {name} --variants {name}|" in said
    assert f"dvc|pull --allow-missing --with-deps leaderboard@{name}|" in said
    assert not (makefile / "pwned").exists()


# --- GitHub's part ----------------------------------------------------------------------------------------------------


class Known(dict):
    """A context: what is not in it is empty, however deep one asks."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name, Known())

    def __str__(self) -> str:
        return "" if not self else super().__str__()


def evaluated(text: Any, known: Mapping[str, Any]) -> Any:
    """A value of the workflow with its expressions worked out: whole ones keep their type, others become text."""
    if not isinstance(text, str):
        return text
    if whole := re.fullmatch(EXPRESSION, text.strip()):
        found = _worked_out(whole[1], known)
        return "" if found in (None, {}) else found
    return EXPRESSION.sub(lambda one: str(_worked_out(one[1], known)), text)


def _worked_out(expression: str, known: Mapping[str, Any]) -> Any:
    """Of GitHub's language what this workflow uses: contexts, == and !=, !, && and ||, format, cancelled."""
    parts = re.split(r"('[^']*')", " ".join(expression.split()))
    spelled = {r"&&": " and ", r"\|\|": " or ", r"!(?!=)": " not ", r"\bformat\(": "_format("}
    for at in range(0, len(parts), 2):
        for theirs, ours in spelled.items():
            parts[at] = re.sub(theirs, ours, parts[at])
    names = {"_format": lambda text, *values: text.format(*values), "cancelled": lambda: False, "__builtins__": {}}
    return eval("".join(parts).strip(), names | {"true": True, "false": False} | dict(known))


GH = """#!/bin/sh
# Plays gh: hands over the uploaded artifact, writes down the comment.
case "$1 $2" in
  "run download") mkdir -p "$7" && cp -R "$UPLOADED/$5/." "$7" ;;
  "pr comment") echo "$3" > "$SAID/number" && cp "$5" "$SAID/body" ;;
  *) echo "gh $*: not played" >&2; exit 1 ;;
esac
"""


@dataclass
class Github:
    """A repository with the workflow in it: events go in; summaries, comments and commits come out."""

    origin: Path
    place: Path
    environment: Mapping[str, str]
    variables: Mapping[str, str]
    secrets: Mapping[str, str]
    runs: int = 0

    def run(self, event: str, ref: str = "main", inputs: Mapping[str, str] | None = None, **sent: Any) -> "Run":
        """Play the workflow as it stands at `ref`, each job in a fresh clone."""
        self.runs += 1
        place = self.place / f"run-{self.runs}"
        place.mkdir()
        pull = event == "pull_request"
        known = {
            "github": Known(
                event_name=event,
                event=Known(number=7, **sent) if pull else Known(sent),
                ref="refs/pull/7/merge" if pull else f"refs/heads/{ref}",
                ref_name=ref,
                sha=git(self.origin, "rev-parse", ref).strip(),
                actor="somebody",
                token="token",
                repository="somebody/noise2next",
            ),
            "inputs": Known(inputs or {}),
            "vars": Known(self.variables),
            "secrets": Known(self.secrets),
            "needs": Known(),
        }
        made = Run(place)
        workflow = None
        for name in ("retrain", "lock", "comment", "fork"):
            clone = place / name
            git(place, "clone", "--quiet", "--depth", "1", "--branch", ref, self.origin.as_uri(), str(clone))
            workflow = YAML(typ="safe").load((clone / ".github" / "workflows" / "retrain.yml").read_text())
            assert list(workflow["jobs"]) == ["retrain", "lock", "comment", "fork"]
            made.job(self, name, workflow, clone, known)
        return made


@dataclass(repr=False)
class Run:
    """One run of the workflow: each job's result, what each step printed, the summary, the comment."""

    place: Path
    results: dict[str, str] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)
    summary: str = ""

    def __repr__(self) -> str:
        return "\n".join([str(self.results), *(f"--- {name}\n{said[-1500:]}" for name, said in self.printed.items())])

    @property
    def comment(self) -> str:
        found = self.place / "said" / "body"
        return found.read_text() if found.exists() else ""

    def job(self, github: Github, name: str, workflow: Mapping, clone: Path, known: dict[str, Any]) -> None:
        job = workflow["jobs"][name]
        needs = known["needs"]
        if not evaluated(job.get("if", "${{ true }}"), known):
            self.results[name] = "skipped"
            needs[name] = Known(result="skipped", outputs=Known())
            return
        linked_environment(clone)
        steps = Known()
        around = {key: evaluated(value, known) for key, value in (workflow["env"] | job.get("env", {})).items()}
        failed = False
        for at, step in enumerate(job["steps"]):
            context = known | {"steps": steps}
            wanted = evaluated(step["if"], context) if "if" in step else not failed
            identity = step.get("id", f"step-{at}")
            if not wanted:
                steps[identity] = Known(outcome="skipped", outputs=Known())
                continue
            if "uses" in step:
                self._action(step, clone)
                continue
            outputs = self.place / f"{name}-{at}-outputs"
            outputs.touch()
            own = {key: str(evaluated(value, context)) for key, value in step.get("env", {}).items()}
            code = self._line(github, step, clone, {key: str(one) for key, one in around.items()} | own, outputs)
            said = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
            steps[identity] = Known(outcome="failure" if code else "success", outputs=Known(said))
            failed = failed or code != 0
        context = known | {"steps": steps}
        told = {key: _text(evaluated(value, context)) for key, value in job.get("outputs", {}).items()}
        self.results[name] = "failure" if failed else "success"
        needs[name] = Known(result=self.results[name], outputs=Known(told))

    def _action(self, step: Mapping, clone: Path) -> None:
        action = step["uses"].partition("@")[0]
        assert action in KNOWN
        if action == "actions/upload-artifact":
            given = step["with"]
            found = [path for line in given["path"].split() for path in clone.glob(line)]
            assert found or given["if-no-files-found"] != "error"
            for path in found:
                target = self.place / "uploaded" / given["name"] / path.relative_to(clone)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy)(path, target)

    def _line(self, github: Github, step: Mapping, clone: Path, own: Mapping[str, str], outputs: Path) -> int:
        """Run a `run:` as GitHub's `shell: bash` does."""
        (self.place / "said").mkdir(exist_ok=True)
        summary = self.place / "summary"
        summary.touch()
        environment = {
            **github.environment,
            **own,
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_RUN_ID": str(github.runs),
            "UPLOADED": str(self.place / "uploaded"),
            "SAID": str(self.place / "said"),
            "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone}",
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=clone,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.printed[step["name"]] = done.stdout
        self.summary = summary.read_text()
        return done.returncode


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def linked_environment(clone: Path) -> None:
    """This Python's environment as the clone's own .venv, with the marks of a finished installation."""
    own = clone / ".venv"
    own.mkdir()
    for part in servers.PROGRAMS.parent.iterdir():
        if not part.name.startswith("."):
            (own / part.name).symlink_to(part)
    for mark in (".run", ".team", ".dev"):
        (own / mark).touch()


def git(place: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the lines themselves ---------------------------------------------------------------------------------------------

PARAMS = """
seed: 1
engine: duckdb
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
trainer: {metric: recall@20}
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
clustering: {embeddings: most_pop}
latent_variants: {}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""


@dataclass
class Member:
    """Someone of the team at their own clone."""

    clone: Path
    environment: Mapping[str, str]

    def dvc(self, *arguments: str) -> None:
        program = str(self.clone / ".venv" / "bin" / "dvc")
        done = subprocess.run(
            [program, *arguments], cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def publish(self, lines: list[str], message: str, branch: str = "main") -> None:
        """Put `lines` in the place of the log, version it, and push both."""
        git(self.clone, "fetch", "--quiet", "origin")
        git(self.clone, "checkout", "--quiet", "-B", branch, "origin/main")
        log = self.clone / "data" / "shop" / "log.csv"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(lines))
        self.dvc("add", "--quiet", "data")
        self.dvc("push", "--quiet", "data.dvc")
        git(self.clone, "add", "--all")
        git(self.clone, "commit", "--quiet", "--message", message)
        git(self.clone, "push", "--quiet", "origin", branch)


@dataclass
class World:
    """The repository on GitHub, the bucket, the registry, a colleague, and the log's days."""

    github: Github
    store: str
    tracking: str
    member: Member
    lines: list[str]

    def champion(self, place: Path) -> str | None:
        registry = ModelRegistry(Settings(root=place), Workspace(place, "shop"))
        found = registry.at("champion")
        return found and f"{found.version} {found.tags['variant']}"

    def head(self) -> str:
        return git(self.github.origin, "rev-parse", "main").strip()


@pytest.fixture(scope="module")
def world(repository, tmp_path_factory):
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout, so there is nothing to clone")
    place = tmp_path_factory.mktemp("github")
    (place / "bin").mkdir()
    (place / "bin" / "gh").write_text(GH)
    (place / "bin" / "gh").chmod(0o755)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MLFLOW_TRACKING", "NOISE2NEXT_"))
    }
    own = {"PATH": f"{place / 'bin'}{os.pathsep}{inherited['PATH']}", "NOISE2NEXT_DEVICE": "cpu"}
    with contextlib.ExitStack() as running:
        postgres = running.enter_context(servers.postgres())
        store = running.enter_context(servers.object_store("logs", "models"))
        tracking = running.enter_context(mlflow_server(postgres, store, place))
        patched = running.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("MLFLOW_TRACKING_URI", tracking)
        for name, value in AUTHOR.items():
            patched.setenv(name, value)
        origin, clone = place / "origin.git", place / "member"
        git(place, "init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
        git(place, "clone", "--quiet", str(origin), str(clone))
        git(clone, "checkout", "--quiet", "-B", "main")
        for name in git(repository, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
            if (repository / name).is_file():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / name, clone / name)
        (clone / "params.yaml").write_text(PARAMS)
        linked_environment(clone)
        member = Member(clone, {**inherited, **servers.KEYS, "AWS_ENDPOINT_URL": store})
        member.dvc("remote", "add", "--default", "storage", "s3://logs/dvc")
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "--message", "Begin")
        git(clone, "push", "--quiet", "origin", "main")
        sample.write(place / "all.csv", seed=5)
        github = Github(
            origin,
            place,
            {**inherited, **own},
            {
                "MLFLOW_TRACKING_URI": tracking,
                "AWS_ENDPOINT_URL": store,
                "RETRAIN_DATASET": "shop",
                "RETRAIN_VARIANTS": "most_pop,ease",
            },
            {f"{kind}{name}": servers.KEYS[name] for name in SECRETS for kind in ("", "READ_")},
        )
        yield World(github, store, tracking, member, (place / "all.csv").read_text().splitlines(keepends=True))


@contextlib.contextmanager
def mlflow_server(postgres: servers.Postgres, store: str, place: Path):
    """MLflow on PostgreSQL and the S3, at the address that it yields."""
    port = servers.free_port()
    environment = {
        **servers.KEYS,
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://postgres:{postgres.password}@127.0.0.1:{postgres.port}/postgres",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://models",
        "MLFLOW_S3_ENDPOINT_URL": store,
    }
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = place / "mlflow.log"
    with servers.program(command, environment, log) as started:
        servers.wait_for(f"http://127.0.0.1:{port}/health", started, log)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_from_new_data_in_a_commit_to_a_changed_champion_with_no_hand_on_it(world, tmp_path):
    github = world.github

    # the first day: popularity alone, asked for by hand
    world.member.publish(world.lines[:1] + world.lines[-8_000:-2_000], "The first days")
    first = github.run("workflow_dispatch", inputs={"dataset": "shop", "variants": "most_pop", "runner": "gpu"})
    assert first.results == {"retrain": "success", "lock": "success", "comment": "skipped", "fork": "skipped"}, first
    assert world.champion(tmp_path) == "1 most_pop"
    assert "champion after | version 1 (most_pop)" in first.summary
    assert "workflow_dispatch, by somebody" in first.summary
    assert "evaluate@shop-ease" not in first.printed["Rerun what has changed and ask the gate"]

    # what was made is in the bucket, and a commit says so
    made = git(github.origin, "show", "--name-only", "--format=%an: %s", "main").split("\n")
    assert [line for line in made if line] == [
        "github-actions[bot]: Record what the retraining of shop made",
        "dvc.lock",
    ]
    assert any("files/md5" in key for key in servers.keys_in(world.store, "logs"))
    assert any(key.endswith("weights.safetensors") for key in servers.keys_in(world.store, "models"))

    # new data is pushed: a better model is trained on it and takes the place
    world.member.publish(world.lines[:1] + world.lines[-8_000:], "More days")
    second = github.run("push")
    assert second.results["retrain"] == second.results["lock"] == "success", second
    assert world.champion(tmp_path) == "2 ease"
    assert "champion before | version 1 (most_pop)" in second.summary
    assert "champion after | version 2 (ease)" in second.summary
    assert f"a push to main, commit {git(github.origin, 'rev-parse', 'main~1').strip()}" in second.summary
    assert "recall@20 above the champion" in second.summary

    # on the schedule, with nothing new: in a fresh clone nothing is made again and nothing is committed
    head = world.head()
    third = github.run("schedule")
    printed = third.printed["Rerun what has changed and ask the gate"]
    assert third.results["retrain"] == third.results["lock"] == "success", third
    assert "Running stage" not in printed
    assert "Stage 'train@shop-ease' didn't change, skipping" in printed
    assert world.head() == head
    assert world.champion(tmp_path) == "2 ease"
    assert "nothing to decide" in third.summary


@pytest.mark.slow
def test_a_pull_request_with_broken_data_is_told_so_and_changes_nothing(world, tmp_path):
    before, head = world.champion(tmp_path), world.head()
    poisoned = [line if at % 3 else "no row at all\n" for at, line in enumerate(world.lines[-8_000:])]
    world.member.publish(world.lines[:1] + poisoned, "A bad month", branch="month")
    run = world.github.run("pull_request", ref="month")
    assert run.results == {"retrain": "failure", "lock": "skipped", "comment": "success", "fork": "skipped"}, run
    assert "the contract is broken: shop: 33" in run.summary
    assert "a rehearsal with a registry of its own" in run.summary
    assert run.comment == run.summary
    assert (run.place / "said" / "number").read_text() == "7\n"
    assert (world.champion(tmp_path), world.head()) == (before, head)
