from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from typing import Any

import ibis.expr.types as ir
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noise2next.config import (
    GlobalTime,
    LeaveOneOut,
    OfficialSplit,
    OfficialTrain,
    PerUserRatio,
    RandomRatio,
    SplitConfig,
)
from noise2next.data.splitting import PARTS, Cuts, leakage, time_cuts, with_parts
from noise2next.data.tables import connect

Table = Callable[[pd.DataFrame], ir.Table]
events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=40)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
timed = [PerUserRatio(valid=0.2, test=0.3), LeaveOneOut(), GlobalTime(valid=0.2, test=0.2)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    scratch, number = tmp_path_factory.mktemp("scratch"), count()
    with connect("duckdb", scratch) as backend:

        def made(frame: pd.DataFrame) -> ir.Table:
            path = scratch / f"{next(number)}.parquet"
            frame.to_parquet(path, index=False)
            return backend.read_parquet(path)

        yield made


def frame(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    log = pd.DataFrame(rows, columns=["user", "item", "time"])
    draw = [f"{(7 * place) % 13:02d}" for place in range(len(log))]
    return log.assign(row=range(len(log)), draw=draw)


def split(log: ir.Table, config: SplitConfig, cuts: Cuts | None = None) -> pd.DataFrame:
    if config.kind == "global_time" and cuts is None:
        cuts = time_cuts(log, config)
    return with_parts(log, config, cuts).execute().sort_values("row", ignore_index=True)


@quick
@given(rows=events, config=st.sampled_from([*timed, RandomRatio(valid=0.2, test=0.3)]))
def test_every_row_lands_in_exactly_one_part(table: Table, rows: Any, config: SplitConfig) -> None:
    log = frame(rows)
    parted = split(table(log), config)
    pd.testing.assert_frame_equal(parted[log.columns], log)
    assert set(parted["part"]) <= set(PARTS)


@quick
@given(rows=events)
def test_leave_one_out_tests_the_newest_row_and_validates_on_the_one_before(table: Table, rows: Any) -> None:
    parted = split(table(frame(rows)), LeaveOneOut()).sort_values(["user", "time", "row"])
    for _, history in parted.groupby("user"):
        few = len(history) < 3
        newest = ["train"] * len(history) if few else ["train"] * (len(history) - 2) + ["valid", "test"]
        assert history["part"].tolist() == newest


@quick
@given(rows=events, shares=st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda pair: sum(pair) < 100))
def test_a_ratio_takes_whole_numbers_of_the_newest_rows(table: Table, rows: Any, shares: tuple[int, int]) -> None:
    valid, test = shares
    config = PerUserRatio(valid=valid / 100, test=test / 100)
    parted = split(table(frame(rows)), config).sort_values(["user", "time", "row"])
    for _, history in parted.groupby("user"):
        n = len(history)
        tested = max(1, n * Fraction(test, 100) // 1)
        validated = max(1, n * Fraction(valid, 100) // 1)
        trained = n - tested - validated
        expected = ["train"] * n if trained < 1 else ["train"] * trained + ["valid"] * validated + ["test"] * tested
        assert history["part"].tolist() == expected


def test_ten_rows_at_one_tenth_and_one_fifth_are_seven_one_and_two(table: Table) -> None:
    parted = split(table(frame([(0, place, place) for place in range(10)])), PerUserRatio(valid=0.1, test=0.2))
    assert parted["part"].tolist() == ["train"] * 7 + ["valid"] + ["test"] * 2


def test_a_random_split_takes_the_same_shares_in_the_order_of_the_draw(table: Table) -> None:
    parted = split(table(frame([(0, place, 0) for place in range(10)])), RandomRatio(valid=0.1, test=0.2))
    drawn = parted.sort_values(["draw", "row"])
    assert drawn["part"].tolist() == ["train"] * 7 + ["valid"] + ["test"] * 2


def test_an_official_split_is_what_the_files_say(table: Table) -> None:
    named = ["test", "train", "valid"]
    log = frame([(0, 0, 0), (0, 1, 1), (0, 2, 2)]).assign(split=named)
    assert split(table(log), OfficialSplit())["part"].tolist() == named


@quick
@given(rows=events, share=st.integers(1, 99))
def test_a_share_of_training_rows_held_back_is_each_users_newest(table: Table, rows: Any, share: int) -> None:
    log = frame(rows)
    log = log.assign(split=[PARTS[(3 * place) % 5 % 3] for place in range(len(log))])
    parted = split(table(log), OfficialTrain(valid=share / 100))
    parted = parted.sort_values(["user", "time", "row"])
    assert set(parted["row"]) == set(log.loc[log["split"] != "valid", "row"])
    assert len(parted) == parted["row"].nunique()
    for (_, named), history in parted.groupby(["user", "split"]):
        n = len(history)
        held = max(1, n * Fraction(share, 100) // 1)
        held = held if named == "train" and held < n else 0
        assert history["part"].tolist() == [named] * (n - held) + ["valid"] * held


@quick
@given(rows=events)
def test_windows_are_consecutive_and_ties_with_a_cut_go_to_the_later(table: Table, rows: Any) -> None:
    config = GlobalTime(valid=0.2, test=0.2)
    log = frame(rows)
    times = sorted(log["time"])
    cuts = time_cuts(table(log), config)
    assert cuts == Cuts(times[len(times) * 6 // 10], times[len(times) * 8 // 10])
    parted = split(table(log), config)
    for part, inside in (
        ("train", parted["time"] < cuts.valid),
        ("valid", (parted["time"] >= cuts.valid) & (parted["time"] < cuts.test)),
        ("test", parted["time"] >= cuts.test),
    ):
        assert ((parted["part"] == part) == inside).all()


@quick
@given(rows=events)
def test_deleting_all_rows_at_or_after_the_cut_changes_nothing_in_train(table: Table, rows: Any) -> None:
    config = GlobalTime(valid=0.2, test=0.2)
    log = frame(rows)
    cuts = time_cuts(table(log), config)
    whole, past = split(table(log), config, cuts), split(table(log[log["time"] < cuts.valid]), config, cuts)
    pd.testing.assert_frame_equal(whole[whole["part"] == "train"].reset_index(drop=True), past)


@pytest.mark.parametrize("kind", [PerUserRatio, GlobalTime, RandomRatio])
def test_shares_that_leave_nothing_to_train_on_are_refused(kind: type[GlobalTime]) -> None:
    with pytest.raises(ValueError, match="their sum must be below 1"):
        kind(valid=0.5, test=0.5)


# --- leakage ----------------------------------------------------------------------------------------------------------


@quick
@given(rows=events, config=st.sampled_from(timed))
def test_no_split_by_time_leaks(table: Table, rows: Any, config: SplitConfig) -> None:
    log = table(frame(rows))
    cuts = time_cuts(log, config) if config.kind == "global_time" else None
    parted = split(log, config, cuts)
    trained = set(parted.loc[parted["part"] == "train", "item"])
    placed = parted.assign(item=[item if item in trained else -1 for item in parted["item"]])
    assert leakage(table(placed), config, cuts) == []


CLEAN = pd.DataFrame(
    [(0, 0, 1, 0, "train"), (0, 1, 2, 1, "train"), (0, 1, 3, 2, "valid"), (0, 0, 4, 3, "test"), (0, -1, 5, 4, "test")],
    columns=["user", "item", "time", "row", "part"],
)
CUTS = Cuts(3, 4)


def changed(place: int, **values: Any) -> pd.DataFrame:
    log = CLEAN.copy()
    for column, value in values.items():
        log.loc[place, column] = value
    return log


@pytest.mark.parametrize("config", [GlobalTime(), LeaveOneOut(), PerUserRatio(), RandomRatio()])
def test_a_clean_split_has_no_findings(table: Table, config: SplitConfig) -> None:
    assert leakage(table(CLEAN), config, CUTS) == []


@pytest.mark.parametrize(
    ("config", "leaking", "finding"),
    [
        (GlobalTime(), changed(1, time=3), "1 training rows"),
        (GlobalTime(), changed(2, time=4), "1 validation rows"),
        (GlobalTime(), changed(2, time=2), "1 validation rows"),
        (GlobalTime(), changed(4, time=3), "1 test rows"),
        (LeaveOneOut(), changed(1, time=9), "1 users"),
        (PerUserRatio(), changed(2, time=9), "1 users"),
        (PerUserRatio(), CLEAN[CLEAN["part"] != "valid"].assign(time=[1, 9, 4, 5]), "1 users"),
        (RandomRatio(), changed(4, item=7), "1 items of the vocabulary"),
        (OfficialSplit(), changed(3, row=0), "1 rows are in the split more than once"),
    ],
)
def test_each_leak_is_found(table: Table, config: SplitConfig, leaking: pd.DataFrame, finding: str) -> None:
    (found,) = leakage(table(leaking), config, CUTS)
    assert found.startswith(finding)


def test_official_parts_may_lie_in_any_order_of_time(table: Table) -> None:
    assert leakage(table(CLEAN.assign(time=[9, 8, 7, 6, 5])), OfficialSplit(), None) == []
