from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from noise2next.config import OFFICIAL, Columns, Dataset
from noise2next.data import tables
from noise2next.data.preparation import Prepared, prepare
from noise2next.data.splitting import PARTS
from noise2next.data.tables import connect, write_ordered
from noise2next.errors import UserError

FILES = ("train", "valid", "test", "users", "items")
SPLITS = ("global_time", "per_user_ratio", "leave_one_out", "random", "official")
quick = settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
has_java = shutil.which("java") is not None or "JAVA_HOME" in os.environ


@dataclass(frozen=True)
class Result:
    report: Prepared
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def part(self, name: str) -> list[tuple[Any, ...]]:
        """Rows of a part with raw ids; an item that train has not is None."""
        users, items = list(self.table("users")["id"]), [*self.table("items")["id"], None]
        rows = self.table(name)
        rows = rows.assign(user=[users[one] for one in rows["user"]], item=[items[one] for one in rows["item"]])
        return list(rows.itertuples(index=False, name=None))

    @property
    def digests(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.folder / f"{name}.parquet").read_bytes()).hexdigest() for name in FILES}


Preparing = Callable[..., Result]


def preparing(engine: str, scratch: Path) -> Iterator[Preparing]:
    number = count()
    with connect(engine, scratch) as backend:

        def run(log: pd.DataFrame, seed: int = 1, **choices: Any) -> Result:
            place = scratch / f"run{next(number)}"
            folder = place / "prepared"
            folder.mkdir(parents=True)
            log.to_parquet(place / "interactions.parquet", index=False)
            dataset = described(**choices)
            return Result(
                prepare(backend, place / "interactions.parquet", dataset, "shop", seed, folder, place), folder
            )

        yield run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparing]:
    yield from preparing("duckdb", tmp_path_factory.mktemp("duckdb"))


def described(split: str = "global_time", timed: bool = True, **choices: Any) -> Dataset:
    return Dataset(
        path="log.csv",
        format="diffurec" if split in OFFICIAL else "delimited",
        columns=Columns(time="time" if timed else None, rating="rating"),
        time_unit="s" if timed else None,
        split={"kind": split},
        **choices,
    )


def generated(rows: int = 400, users: int = 12, items: int = 9, seed: int = 0) -> pd.DataFrame:
    """A log with repeats, tied times, ids of odd letters and lengths, and rows in no order of time."""
    rng = np.random.default_rng(seed)
    ids = ["7", "10", "9", "ä", "zz", "Ω1", "😀", "a b", "a|b", "A", "long-name", "|"]
    log = pd.DataFrame(
        {
            "user": [ids[one % len(ids)] + "x" * (one // len(ids)) for one in rng.integers(0, users, rows)],
            "item": [ids[one % len(ids)] for one in (rng.random(rows) ** 2 * items).astype(int)],
            "time": rng.integers(0, rows // 3, rows) * 1_000_000,
            "rating": rng.integers(1, 6, rows).astype(float),
            "split": rng.choice(["train", "train", "valid", "test"], rows),
        }
    )
    return log.assign(row=range(rows))


# --- what is left -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("repeats", ["keep", "first", "last"])
def test_every_row_that_is_left_lands_in_exactly_one_part(prepared: Preparing, split: str, repeats: str) -> None:
    log = generated()
    result = prepared(log, split=split, repeats=repeats)
    placed = Counter(row[0::2] for part in PARTS for row in result.part(part))  # user and time
    if split != "official" and repeats != "keep":
        kept = log.sort_values(["time", "row"]).drop_duplicates(["user", "item"], keep=repeats)
    else:
        kept = log
    assert placed == Counter(kept[["user", "time"]].itertuples(index=False, name=None))
    assert sum(result.report.rows[part] for part in PARTS) == len(kept) == result.report.rows["after_k_core"]


@quick
@given(pairs=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40), k=st.integers(2, 4))
def test_the_k_core_is_what_is_left_when_rare_users_and_items_go_one_by_one(
    prepared: Preparing, pairs: Any, k: int
) -> None:
    safe = {(user, item) for user in range(10, 15) for item in range(10, 15)}  # so that there is always enough to split
    expected = pairs | safe
    while rare := [(user, item) for user, item in expected if _rarer(expected, user, item) < k]:
        expected.discard(rare[0])
    every = sorted(pairs | safe)
    log = pd.DataFrame([(str(user), str(item)) for user, item in every], columns=["user", "item"])
    result = prepared(log.assign(row=range(len(log)), time=range(len(log))), k_core=k, split="per_user_ratio")
    assert {every[time] for part in PARTS for _, _, time in result.part(part)} == expected


def _rarer(pairs: set[tuple[int, int]], user: int, item: int) -> int:
    return min(sum(user == one for one, _ in pairs), sum(item == one for _, one in pairs))


def test_only_rows_above_the_threshold_count(prepared: Preparing) -> None:
    log = generated()
    for condition, kept in (("rating >= 4", log["rating"] >= 4), ("rating < 2.5", log["rating"] < 2.5)):
        result = prepared(log, positive=condition, repeats="keep")
        assert result.report.rows["positive"] == kept.sum()
        assert result.report.rows["ingested"] == len(log)


def test_a_row_without_a_rating_is_not_positive(prepared: Preparing) -> None:
    log = generated()
    log.loc[:9, "rating"] = None
    assert prepared(log, positive="rating >= 1", repeats="keep").report.rows["positive"] == len(log) - 10


@pytest.mark.parametrize(("repeats", "times"), [("first", [1, 3]), ("last", [3, 5]), ("keep", [1, 3, 3, 5])])
def test_a_return_to_an_item_is_kept_or_folded_as_asked(prepared: Preparing, repeats: str, times: list[int]) -> None:
    log = pd.DataFrame({"user": "u", "item": ["a", "b", "b", "a"], "time": [5, 3, 3, 1], "row": range(4)})
    filler = pd.DataFrame({"user": "v", "item": list("cdefghij"), "time": range(8), "row": range(4, 12)})
    result = prepared(pd.concat([log, filler]), repeats=repeats, split="per_user_ratio")
    assert sorted(row[2] for part in PARTS for row in result.part(part) if row[0] == "u") == times


def test_of_repeats_at_one_time_the_first_or_last_line_stays(prepared: Preparing) -> None:
    log = pd.DataFrame({"user": "u", "item": list("aba"), "time": 7, "row": range(3)})
    orders = {}
    for repeats in ("first", "last"):
        log_and_more = pd.concat([log, pd.DataFrame({"user": "u", "item": list("cd"), "time": 8, "row": [3, 4]})])
        result = prepared(log_and_more, repeats=repeats, split="leave_one_out")
        orders[repeats] = [row[1] for row in result.part("train")]
    assert orders == {"first": ["a", "b"], "last": ["b", "a"]}


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
def test_parts_are_sorted_by_user_time_and_row_and_typed_as_agreed(prepared: Preparing, timed: bool) -> None:
    log = generated()
    if not timed:
        log = log.drop(columns="time")
    result = prepared(log, split="per_user_ratio" if timed else "random", timed=timed, repeats="keep")
    expected = {"user": pa.int32(), "item": pa.int32()} | ({"time": pa.int64()} if timed else {})
    for part in PARTS:
        assert pq.read_schema(result.folder / f"{part}.parquet").equals(pa.schema(expected))
        rows = result.table(part)
        order = [column for column in ("user", "time") if column in rows]
        pd.testing.assert_frame_equal(rows, rows.sort_values(order, kind="stable"))


def test_numbers_count_up_and_shorter_ids_come_first(prepared: Preparing) -> None:
    result = prepared(generated(), repeats="keep", split="per_user_ratio")
    for name in ("users", "items"):
        ids = list(result.table(name)["id"])
        assert ids == sorted(set(ids), key=lambda one: (len(one), one))
    assert list(result.table("users")["id"]).index("9") < list(result.table("users")["id"]).index("10")


def test_items_are_those_of_train_and_others_can_only_be_missed(prepared: Preparing) -> None:
    log = generated()
    result = prepared(pd.concat([log, log.iloc[:1].assign(item="new", time=10**12, row=len(log))]), repeats="keep")
    train = result.table("train")
    assert sorted(train["item"].unique()) == list(range(len(result.table("items"))))
    assert (result.table("test")["item"] == -1).sum() == result.report.unlearnable["test"] >= 1
    assert "new" not in set(result.table("items")["id"])


def test_a_user_who_comes_after_training_is_counted_as_cold(prepared: Preparing) -> None:
    log = generated()
    late = log.iloc[:2].assign(user="late", time=10**12, row=[len(log), len(log) + 1])
    result = prepared(pd.concat([log, late]), repeats="keep")
    assert result.report.cold_users == {"valid": 0, "test": 1}
    assert "late" in set(result.table("users")["id"])


@pytest.mark.parametrize("split", ["global_time", "per_user_ratio", "leave_one_out"])
def test_the_order_of_lines_does_not_matter_where_no_times_tie(prepared: Preparing, split: str) -> None:
    log = generated(200)
    log = log.assign(time=np.random.default_rng(5).permutation(len(log)))
    mixed = log.sample(frac=1, random_state=1).assign(row=range(len(log)))
    assert prepared(mixed, split=split).digests == prepared(log, split=split).digests


@pytest.mark.parametrize("repeats", ["keep", "first"])
def test_what_happens_after_the_cut_changes_nothing_in_train(prepared: Preparing, repeats: str) -> None:
    log = generated().drop_duplicates(["user", "item"] if repeats == "first" else ["row"])
    result = prepared(log, repeats=repeats)
    future = log["time"] >= result.report.cuts.valid
    other = log.copy()
    other.loc[future, "user"] = [f"new{place % 50}" for place in range(future.sum())]
    other.loc[future, "item"] = [f"new{place % 70}" for place in range(future.sum())]
    again = prepared(other, repeats=repeats)
    assert again.part("train") == result.part("train")
    assert list(again.table("items")["id"]) == list(result.table("items")["id"])
    assert again.part("test") != result.part("test")


def test_a_random_split_hangs_on_the_seed_and_the_ids_alone(prepared: Preparing) -> None:
    log = generated().drop_duplicates(["user", "item"]).drop(columns="time")
    asked = {"split": "random", "timed": False}
    first, other = prepared(log, seed=1, **asked), prepared(log, seed=2, **asked)
    moved = prepared(log.assign(row=log["row"].to_numpy()[::-1]), seed=1, **asked)
    assert set(first.part("test")) == set(moved.part("test"))
    assert set(first.part("test")) != set(other.part("test"))


def test_an_official_split_is_not_filtered(prepared: Preparing) -> None:
    log = generated()
    result = prepared(log, split="official", positive="rating >= 4", k_core=30)
    assert {part: result.report.rows[part] for part in PARTS} == log["split"].value_counts().to_dict()


def test_files_do_not_hang_on_how_an_engine_cuts_its_batches(
    prepared: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pa.schema([("n", pa.int64())])
    numbers = pa.table({"n": range(1000)})
    pq.write_table(numbers, tmp_path / "small.parquet", row_group_size=7)
    pq.write_table(numbers, tmp_path / "large.parquet")
    monkeypatch.setattr(tables, "ROW_GROUP", 300)
    made = []
    with connect("duckdb", tmp_path) as backend:
        for name in ("small", "large"):
            table = backend.read_parquet(tmp_path / f"{name}.parquet").order_by("n")
            assert write_ordered(table, schema, tmp_path / f"{name}.out", tmp_path / "scratch") == 1000
            made.append((tmp_path / f"{name}.out").read_bytes())
    assert made[0] == made[1]
    assert pq.ParquetFile(tmp_path / "small.out").num_row_groups == 4
    assert pq.read_table(tmp_path / "small.out").equals(numbers)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "fact"),
    [
        ({"positive": "rating >= 9"}, "shop.positive: no row has rating >= 9"),
        ({"k_core": 1000}, "shop.k_core: no users and items have 1000 rows each"),
        ({"split": "leave_one_out", "repeats": "first"}, "shop.split: leave_one_out leaves no row of 2 in valid"),
    ],
)
def test_nothing_left_names_the_filter_and_the_remedy(prepared: Preparing, choices: dict[str, Any], fact: str) -> None:
    log = generated().iloc[:2].assign(user="u", item=["a", "b"]) if "split" in choices else generated()
    with pytest.raises(UserError, match=fact + r".*; .*params.yaml"):
        prepared(log, **choices)


# --- Spark ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparing]:
    if importlib.util.find_spec("pyspark") is None or not has_java:
        pytest.skip("pyspark (extra [spark]) or Java 17 is missing")
    run = preparing("spark", tmp_path_factory.mktemp("spark"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # short jobs: a better compiler only costs
        made = next(run)
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    session.conf.set("spark.sql.shuffle.partitions", "2")
    session.conf.set("spark.sql.codegen.wholeStage", "false")
    session.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
    yield made
    run.close()


@pytest.mark.spark
@pytest.mark.parametrize("split", [*SPLITS, "official_train"])
def test_spark_gives_the_same_bytes(prepared: Preparing, on_spark: Preparing, split: str) -> None:
    choices = {"split": split, "k_core": 3, "positive": "rating >= 2", "repeats": "last"}
    here, there = prepared(generated(), **choices), on_spark(generated(), **choices)
    assert there.digests == here.digests
    assert there.report == here.report


# --- real logs --------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.spark
def test_spark_gives_the_same_bytes_on_movielens(prepared: Preparing, on_spark: Preparing, shared: Path) -> None:
    with zipfile.ZipFile(shared / "raw" / "ml-1m_partial.zip") as archive:
        text = archive.read("ml-1m/ratings.dat").replace(b"::", b"\t")
    names = ["user", "item", "rating", "time"]
    log = pd.read_csv(io.BytesIO(text), sep="\t", names=names, dtype={"user": str, "item": str, "rating": float})
    log = log.assign(time=log["time"] * 1_000_000, row=range(len(log)))
    choices = {"positive": "rating >= 4", "k_core": 10, "split": "global_time"}
    assert on_spark(log, **choices).digests == prepared(log, **choices).digests
