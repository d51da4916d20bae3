"""From a log, by way of a champion and its kept lists, to what is said when later events have come."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from noise2next.config import Params, Settings
from noise2next.errors import UserError
from noise2next.stages import drift, evaluate, ingest, prepare, recommend, register, train
from noise2next.workspace import Workspace, read_json

USERS, ITEMS, A_DAY = 150, 200, 60  # A_DAY: rows
DAYS, LATER = 71, 14
BEGIN = 1_600_000_000

Rows = list[tuple[int, int, int]]  # user, item, second


class World(NamedTuple):
    params: Params
    space: Workspace
    settings: Settings

    def log(self, rows: Rows) -> None:
        lines = [f"u{user},i{item},{second}\n" for user, item, second in rows]
        (self.space.data / "s.csv").write_text("user_id,item_id,t\n" + "".join(lines))
        ingest.run(self.params, self.space)

    def judge(self, rows: Rows) -> drift.DriftReport:
        self.log(rows)
        return drift.run(*self)


def events(seed: int, first: int, last: int, item: Callable[[np.random.Generator, int], int] | None = None) -> Rows:
    """Sixty rows a day; users like one half of the catalogue, and of it the first items most."""
    draw = np.random.default_rng(seed)
    rows = []
    for second in np.sort(draw.integers(first * 86_400, last * 86_400, (last - first) * A_DAY)).tolist():
        user = int(draw.integers(USERS))
        liked = int(ITEMS / 2 * draw.random() ** 2) + user % 2 * ITEMS // 2
        rows.append((user, liked if item is None else item(draw, user), BEGIN + second))
    return rows


PAST = [*events(1, 0, DAYS), (0, ITEMS - 1, BEGIN + DAYS * 86_400)]  # the last row is no return, so it is kept


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A champion, EASE, and its lists."""
    root = tmp_path_factory.mktemp("shop")
    params = Params.model_validate(
        {
            "datasets": {
                "shop": {"path": "s.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"},
                "counted": {
                    "path": "s.csv",
                    "format": "delimited",
                    "columns": {"time": "t"},
                    "time_unit": "order",
                    "split": {"kind": "leave_one_out"},
                },
            },
            "variants": {
                "most_pop": {"model": "noise2next.models.popularity.MostPop"},
                "ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 20}},
            },
            "trainer": {"metric": "recall@10"},
            "evaluation": {"cutoffs": [10], "bootstrap_samples": 200},
            "recommendations": {"k": 10, "keep": 2},
            "drift": {"days": LATER, "least_rows": 100, "least_users": 50},
        }
    )
    world = World(params, Workspace(root, "shop"), Settings(root=root, device="cpu"))
    world.space.promotion_policy.parent.mkdir()
    world.space.promotion_policy.write_text("metric: recall@10\n")
    world.space.data.mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        world.log(PAST)
        prepare.run(params, world.space)
        for name in ("most_pop", "ease"):
            train.run(params, world.space, world.settings, name)
            evaluate.run(params, world.space, world.settings, name)
        assert register.run(params, world.space, world.settings).chosen == "ease"
        recommend.run(*world)
        yield world


def named(report: drift.DriftReport, name: str) -> drift.Finding:
    return next(one for one in report.findings if one.name == name)


def test_right_after_the_promotion_there_is_nothing_to_judge_and_nothing_alarmed(promoted: World):
    report = promoted.judge(PAST)
    assert not report.drifted
    assert report.reasons == []
    assert {one.value for one in report.findings} == {None}
    assert not report.judged
    beside = report.findings[0].model_copy(update={"value": 0.5})  # of another variant: told, and held to no limit
    assert not report.model_copy(update={"findings": [beside]}).judged
    assert "nothing in the ingested log is newer than what the champion knows" in named(report, "item_mix").sentence
    assert "there is no newer model" in named(report, "overlap").sentence
    assert "0 users of the table have later events" in named(report, "outcome").sentence


@pytest.mark.parametrize("seed", [2, 3])
def test_a_log_that_goes_on_as_it_was_has_not_drifted(promoted: World, seed: int):
    report = promoted.judge(PAST + events(seed, DAYS, DAYS + LATER))
    assert not report.drifted, report.reasons
    assert all(one.value is not None for one in report.findings if one.about != "prediction")
    assert report.judged
    assert len(report.stretches) == 6
    assert report.stretches[-1].rows == pytest.approx(LATER * A_DAY, rel=0.05)
    (came,) = report.outcomes
    assert came.serving
    assert came.users > 100
    assert came.recall.low <= came.recall.mean <= came.recall.high
    assert came.offline_recall is not None


def test_what_the_report_file_says_is_what_was_returned(promoted: World):
    report = promoted.judge(PAST + events(5, DAYS, DAYS + LATER, lambda draw, _: ITEMS + int(draw.integers(40))))
    assert report.drifted
    assert {"item_mix", "new_items"} <= {one.name for one in report.findings if one.alarmed}
    assert report.reasons == [one.sentence for one in report.findings if one.alarmed]
    assert any("retrain" in reason for reason in report.reasons)
    document = read_json(promoted.space.drift / "report.json")
    assert document == report.model_dump(mode="json")
    assert document["data_version"] == read_json(promoted.space.ingested / "report.json")["data_version"]


def test_new_items_take_the_recall_of_popularity_too_and_so_are_no_decay(promoted: World):
    """Nobody's lists can hold them."""
    report = promoted.judge(PAST + events(5, DAYS, DAYS + LATER, lambda draw, _: ITEMS + int(draw.integers(40))))
    came = named(report, "outcome")
    assert came.value == 0
    assert not came.alarmed
    assert "popularity has fallen with it" in came.sentence


def test_lists_that_fall_behind_while_popularity_does_not_have_decayed(promoted: World):
    """Everybody turns to the other half of the catalogue, of which popularity shows as much as before."""
    halves = events(
        6, DAYS, DAYS + LATER, lambda draw, user: int(ITEMS / 2 * draw.random() ** 2) + (user + 1) % 2 * 100
    )
    report = promoted.judge(PAST + halves)
    assert named(report, "outcome").alarmed
    assert named(report, "outcome").sentence in report.reasons
    assert not named(report, "item_mix").alarmed  # taken together, nothing has changed


def test_recall_of_what_was_recommended_is_that_of_a_plain_count(promoted: World):
    import pyarrow.parquet as pq

    later = events(2, DAYS, DAYS + LATER)
    (came,) = promoted.judge(PAST + later).outcomes
    table = promoted.space.recommended("1", came.data_version) / recommend.TABLE
    shown: dict[str, set[str]] = {}
    for row in pq.read_table(table, columns=["user", "item"]).to_pylist():
        shown.setdefault(row["user"], set()).add(row["item"])
    had = {(f"u{user}", f"i{item}") for user, item, _ in PAST}
    took: dict[str, set[str]] = {}
    for user, item, _ in later:
        if (f"u{user}", f"i{item}") not in had:
            took.setdefault(f"u{user}", set()).add(f"i{item}")
    recalls = [len(items & shown[user]) / len(items) for user, items in took.items() if user in shown]
    assert came.users == len(recalls)
    assert came.recall.mean == pytest.approx(np.mean(recalls), rel=1e-6)


def test_too_little_news_is_not_judged(promoted: World):
    report = promoted.judge(PAST + events(2, DAYS, DAYS + 1))
    assert "drift.least_rows is 100" in named(report, "volume").sentence
    assert not report.drifted


def test_a_log_that_forgot_its_past_cannot_be_held_against_it(promoted: World):
    report = promoted.judge(events(2, DAYS, DAYS + LATER))
    assert "the ingested log begins after what the champion knows" in named(report, "item_mix").sentence


def test_the_champions_variant_trained_on_newer_data_is_compared_with_the_champion(promoted: World, tmp_path: Path):
    root = shutil.copytree(promoted.space.root, tmp_path / "shop")
    world = World(promoted.params, Workspace(root, "shop"), Settings(root=root, device="cpu"))
    world.log(PAST + events(2, DAYS, DAYS + LATER))
    prepare.run(world.params, world.space)
    train.run(world.params, world.space, world.settings, "ease")
    found = named(drift.run(*world), "overlap")
    assert found.value is not None
    assert found.chance is not None
    assert 1 > found.value > found.chance
    assert not found.alarmed
    picky = world.params.model_copy(update={"drift": world.params.drift.model_copy(update={"overlap": 0.99})})
    report = drift.run(picky, world.space, world.settings)
    assert named(report, "overlap").alarmed
    assert report.drifted


def test_a_model_that_knows_less_than_the_champion_is_no_newer_one(promoted: World, tmp_path: Path):
    root = shutil.copytree(promoted.space.root, tmp_path / "shop")
    world = World(promoted.params, Workspace(root, "shop"), Settings(root=root, device="cpu"))
    world.log(PAST[: len(PAST) * 3 // 4])
    prepare.run(world.params, world.space)
    train.run(world.params, world.space, world.settings, "ease")
    found = named(drift.run(*world), "overlap")
    assert found.value is None
    assert "no newer model" in found.sentence


def test_a_log_without_a_clock_is_told_so_by_name_and_not_alarmed(promoted: World, tmp_path: Path):
    root = tmp_path / "counted"
    shutil.copytree(promoted.space.data, root / "data")
    shutil.copytree(promoted.space.promotion_policy.parent, root / "mlflow")
    world = World(promoted.params, Workspace(root, "counted"), Settings(root=root, device="cpu"))
    world.log(PAST)
    prepare.run(world.params, world.space)
    train.run(world.params, world.space, world.settings, "most_pop")
    evaluate.run(world.params, world.space, world.settings, "most_pop")
    register.run(world.params, world.space, world.settings)
    recommend.run(*world)
    report = drift.run(*world)
    assert not report.drifted
    for name in ("item_mix", "new_users", "outcome"):
        assert "the log has no clock" in named(report, name).sentence


def test_without_a_champion_or_a_log_the_remedy_is_named(promoted: World, tmp_path: Path):
    empty = World(promoted.params, Workspace(tmp_path, "shop"), Settings(root=tmp_path, device="cpu"))
    with pytest.raises(UserError, match="noise2next ingest --dataset shop"):
        drift.run(*empty)
    empty.space.data.mkdir()
    empty.log(PAST)
    with pytest.raises(UserError, match="there is no champion yet"):
        drift.run(*empty)
    assert not empty.space.drift.exists()


def test_a_damaged_table_is_named_and_the_rest_is_judged(promoted: World, tmp_path: Path):
    root = shutil.copytree(promoted.space.root, tmp_path / "shop")
    world = World(promoted.params, Workspace(root, "shop"), Settings(root=root, device="cpu"))
    (table,) = world.space.kept_recommendations()
    (table / recommend.TABLE).write_bytes(b"half")
    report = world.judge(PAST + events(2, DAYS, DAYS + LATER))
    assert "sha256" in named(report, "outcome").sentence
    assert "recommend --dataset shop --all" in named(report, "outcome").sentence
    assert named(report, "item_mix").value is not None
