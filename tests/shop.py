"""A project that a team would leave alone: a log in a folder, one in a single file, cheap variants, DVC and git."""

import multiprocessing
import multiprocessing.context
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from noise2next.config import Settings, load_params
from noise2next.data import sample
from noise2next.registry.packaging import check_golden
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import datasets, pipeline
from noise2next.workspace import Workspace

PARAMS = """\
seed: 1
datasets:
  shop:                     # takes new files
    path: shop
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
  other:
    path: other/log.csv     # beside it
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
automation: {every: 1, retrain: {shop: {}}}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""
Result = TypeVar("Result")
HEADER = "user_id,item_id,timestamp\n"
FIRST, SECOND = 6_000, 14_000  # rows of the first month, and of both: enough for another taste


def make(root: Path, repository: Path) -> None:
    """Write the project: nothing derived, nothing versioned."""
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(repository / "mlflow" / "promotion.yaml", root / "mlflow")
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("/data\n/artifacts\n/mlflow.db*\n/mlartifacts\n/landing\n/.dagster\n")
    log = root / "all.csv"
    sample.write(log, seed=5)
    lines = sorted(log.read_text().splitlines(keepends=True)[1:], key=lambda line: int(line.rsplit(",", 1)[1]))
    log.unlink()
    for place, part in {
        "data/shop/1.csv": lines[:FIRST],
        "data/other/log.csv": lines[:3_000],
        "later/2.csv": lines[FIRST:SECOND],
    }.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(HEADER + "".join(part))


class Champion(NamedTuple):
    """What serves, after it was loaded and has given its golden answers again."""

    version: str
    tags: dict[str, str]
    lists: list[list[str]]  # for some histories


def champion(root: Path) -> Champion:
    """Raises UserError where the alias points to nothing that can serve."""
    return elsewhere(_champion, root)


def run(root: Path) -> pipeline.PipelineReport:
    """The whole way for `shop`."""
    return elsewhere(_run, root)


def elsewhere(work: Callable[[Path], Result], root: Path) -> Result:
    """The result of `work` in a process of its own: MLflow's store keeps files open that tests put others in place of.

    It is forked from a server that has everything imported.
    """
    with ProcessPoolExecutor(1, server()) as pool:
        return pool.submit(work, root).result()


class Done(NamedTuple):
    """What a command has said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(root: Path, *arguments: str, **environment: str) -> Done:
    """`noise2next ARGUMENTS` in the folder `root`, in a process that has all imports from the start."""
    whole = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", **environment}
    with tempfile.TemporaryDirectory() as scratch:
        process = server().Process(target=_command, args=(root, arguments, whole, Path(scratch)))
        process.start()
        process.join(600)
        process.kill()  # one that hangs
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, *(Path(scratch, name).read_text() for name in ("stdout", "stderr")))


def _command(root: Path, arguments: tuple[str, ...], environment: dict[str, str], scratch: Path) -> None:
    from noise2next import cli

    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        os.dup2(os.open(scratch / name, os.O_CREAT | os.O_WRONLY), stream.fileno())
    sys.argv = ["noise2next", *arguments]
    cli.main()


@cache
def server() -> multiprocessing.context.ForkServerContext:
    """The one that runs are forked from."""
    context = multiprocessing.get_context("forkserver")
    heavy = ["noise2next.data.validation", "noise2next.stages.drift", "ibis", "duckdb"]
    context.set_forkserver_preload(["tests.shop", *heavy])
    return context


def settings(root: Path) -> Settings:
    """The project's own registry, whatever the environment names."""
    return Settings(root=root, MLFLOW_TRACKING_URI=None)


def _champion(root: Path) -> Champion:
    registry = ModelRegistry(settings(root), Workspace(root, "shop"))
    version = registry.champion()
    package = check_golden(registry.fetch(version))
    items = package.artifact.items.ids
    lists = [one.items for one in package.for_histories([items[:3], items[-3:]], k=10)]
    return Champion(str(version.version), dict(version.tags), lists)


def _run(root: Path) -> pipeline.PipelineReport:
    space = Workspace(root, "shop")
    return pipeline.run(load_params(space.params), space, settings(root), None)


def git(root: Path, *arguments: str) -> str:
    """Run git in the project as somebody."""
    somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *somebody, *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def version(root: Path) -> None:
    """Let DVC record what data/ holds."""
    datasets.version(Workspace(root, "shop"))
