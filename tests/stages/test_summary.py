"""What is told of a retraining: how far it came, what the gate said, and nothing of an earlier log."""

import shutil

import pytest
from tests.shop import command

from noise2next.config import Settings, load_params
from noise2next.data import sample
from noise2next.errors import UserError
from noise2next.evaluation.report import LeaderboardReport
from noise2next.stages import ingest, pipeline, summary, validate
from noise2next.workspace import Workspace, read_json, write_json, writing

PARAMS = """
seed: 1
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
    max_bad_share: 0.1
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, repository):
    """A project whose short log went all the way once."""
    root = tmp_path_factory.mktemp("finished") / "project"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(repository / "mlflow" / "promotion.yaml", root / "mlflow")
    (root / "params.yaml").write_text(PARAMS)
    sample.write(root / "all.csv", seed=5)
    lines = (root / "all.csv").read_text().splitlines(keepends=True)
    (root / "data" / "shop").mkdir(parents=True)
    (root / "data" / "shop" / "log.csv").write_text(lines[0] + "".join(lines[-6_000:]))
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        params = load_params(root / "params.yaml")
        pipeline.run(params, Workspace(root, "shop"), Settings(root=root, device="cpu"), None)
    return root


@pytest.fixture
def space(finished, tmp_path, monkeypatch):
    """A copy of it, free to change."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(shutil.copytree(finished, tmp_path / "project"), "shop")


def told(space, reason=None):
    return summary.run(load_params(space.params), space, Settings(root=space.root, device="cpu"), reason)


def rewrite(folder, name, **changed):
    """An output folder with one document changed, its manifest with it."""
    document = read_json(folder / name) | changed
    with writing(folder) as fresh:
        write_json(fresh / name, document)


def log_of(space):
    return space.data / "shop" / "log.csv"


def test_it_names_the_champion_before_and_after_the_reasons_and_the_rows_with_intervals(space):
    report = told(space, "the schedule")
    decision = read_json(space.registration / "report.json")["decision"]
    board = read_json(space.leaderboard / "leaderboard.json")
    assert report.stopped is None
    lines = report.markdown.splitlines()
    assert "| asked for by | `the schedule` |" in lines
    assert "| champion before | none to compare with |" in lines
    assert "| champion after | version 1 (ease) |" in lines
    assert f"| data version | `{board['data_version'][:12]}` |" in lines
    assert len(decision["reasons"]) > 2
    for reason in decision["reasons"]:
        assert f"- {reason}" in report.markdown.replace("\\", "")
    for row in board["rows"]:
        best = row["metrics"]["recall@20"]
        assert f"{best['mean']:.4f} ({best['low']:.4f} to {best['high']:.4f})" in report.markdown


def test_a_challenger_that_was_not_promoted_is_no_failure(space):
    document = read_json(space.registration / "report.json")
    decision = document["decision"] | {"promoted": False, "champion": document["decision"]["challenger"]}
    decision["reasons"] = ["size_mb 9 breaks the limit 1"]
    rewrite(space.registration, "report.json", promoted=False, decision=decision, summary="it was not promoted")
    report = told(space)
    assert report.stopped is None
    assert "was not promoted, judged on" in report.markdown
    assert "- size_mb 9 breaks the limit 1" in report.markdown
    assert "| champion after | version 1 (ease) |" in report.markdown


def test_the_row_that_validation_chose_is_shown_wherever_it_stands(space):
    board = LeaderboardReport.model_validate(read_json(space.leaderboard / "leaderboard.json"))
    ahead = [board.rows[1].model_copy(update={"variant": f"other-{at}"}) for at in range(summary.TOP + 4)]
    rows = [*ahead, board.rows[0]]
    rewrite(space.leaderboard, "leaderboard.json", rows=[row.model_dump(mode="json") for row in rows])
    text = told(space).markdown
    assert f"| {summary.TOP} | other-{summary.TOP - 1} |" in text
    assert f"other-{summary.TOP} |" not in text
    assert f"| {len(rows)} | **{board.rows[0].variant}** |" in text
    assert f"{summary.TOP + 1} of {len(rows)} rows" in text


def test_a_broken_contract_is_told_with_the_champion_that_stays_and_exit_code_2(space, tmp_path):
    lines = log_of(space).read_text().splitlines(keepends=True)
    log_of(space).write_text("".join(line if at % 3 else "no row\n" for at, line in enumerate(lines, 1)))
    params = load_params(space.params)
    ingest.run(params, space)
    with pytest.raises(UserError, match="are unreadable"):
        validate.run(params, space)
    done = command(space.root, "summary", "--dataset", "shop", "--out", str(tmp_path / "told.md"))
    assert done.returncode == 2, done.stderr
    assert "the contract is broken: shop: 33.3 %" in done.stderr
    text = (tmp_path / "told.md").read_text()
    assert "**Stopped before the gate: the contract is broken: shop: 33.3 %" in text
    assert "| champion | version 1 (ease), as before |" in text
    assert "Leaderboard" not in text


def test_of_a_log_that_came_later_no_older_record_is_told(space):
    log_of(space).write_text(log_of(space).read_text() + "u1,i1,1735000000\n")
    assert "the log was not read" in told(space).stopped
    params = load_params(space.params)
    ingest.run(params, space)
    assert "not held against its contract" in told(space).stopped


@pytest.mark.parametrize(
    ("left", "stopped"),
    [
        ("ingested", "the log was not read"),
        ("validation", "not held against its contract"),
        ("prepared", "the log was not prepared"),
        ("leaderboard", "no model was judged"),
        ("registration", "the gate was not asked"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_says_why(space, left, stopped):
    shutil.rmtree(getattr(space, left))
    report = told(space)
    assert stopped in report.stopped
    assert "--dataset shop` says why" in report.stopped
    assert "as before" in report.markdown


def test_a_decision_on_other_models_is_not_taken_for_this_one(space):
    rewrite(space.registration, "report.json", validation=0.5)
    assert "the gate was not asked" in told(space).stopped


def test_nothing_that_someone_sent_is_markup(space):
    text = told(space, "`x` | <b>@team</b> [a](b)\n# title").markdown
    assert "| asked for by | `x \\| <b>@team</b> [a](b) # title` |" in text
