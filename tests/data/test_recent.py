"""The newest of a log beside what came before it, and what came after a list was made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends import BaseBackend

from noise2next.config import Dataset
from noise2next.data.recent import DAY, IngestedLog, Span
from noise2next.data.tables import connect

SHOP = {"path": "s.csv", "format": "delimited", "columns": {"time": "t", "rating": "r"}, "time_unit": "s"}


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[BaseBackend]:
    with connect("duckdb", tmp_path / "scratch") as made:
        yield made


def dataset(**more) -> Dataset:
    return Dataset.model_validate({**SHOP, **more})


def log(path: Path, *rows: tuple[str, str, float]) -> Path:
    """user, item, day"""
    users, items, days = zip(*rows, strict=True)
    times = [round(day * DAY) for day in days]
    pq.write_table(pa.table({"user": users, "item": items, "time": times, "rating": [5.0] * len(rows)}), path)
    return path


def cut(backend: BaseBackend, path: Path, until: float, days: float, most: int):
    ingested = IngestedLog(backend, path, dataset())
    whole = ingested.span(round(until * DAY))
    assert whole is not None
    return ingested.recent(round(until * DAY), whole, days, most)


def test_stretches_are_equal_and_the_last_but_one_ends_with_what_is_known(backend: BaseBackend, tmp_path: Path):
    path = log(tmp_path / "log.parquet", *[("u", f"i{day}", day) for day in range(21)])
    found = cut(backend, path, 14, 4, 3)
    assert found.length == 4 * DAY
    assert (found.starts / DAY).tolist() == [2, 6, 10, 16]  # days 15 and 16 lie between, and are held against nothing
    assert found.rows.tolist() == [4, 4, 4, 4]


def test_less_than_a_stretch_that_has_come_is_held_against_as_little(backend: BaseBackend, tmp_path: Path):
    path = log(tmp_path / "log.parquet", *[("u", f"i{day}", day) for day in range(13)])
    found = cut(backend, path, 10, 7, 2)
    assert found.length == 2 * DAY
    assert found.rows.tolist() == [2, 2, 2]


def test_a_row_at_the_end_of_a_stretch_is_in_it_and_one_at_its_start_is_not(backend: BaseBackend, tmp_path: Path):
    path = log(
        tmp_path / "log.parquet", ("u", "a", 0), ("u", "b", 4), ("u", "c", 8), ("u", "d", 8.0001), ("u", "e", 12)
    )
    found = cut(backend, path, 8, 4, 2)
    assert found.rows.tolist() == [1, 1, 2]  # b, c, then d and e; a is before them all


def test_who_and_what_the_log_had_before_a_stretch_is_not_new_in_it(backend: BaseBackend, tmp_path: Path):
    path = log(tmp_path / "log.parquet", ("u", "a", 1), ("u", "b", 7), ("v", "a", 7), ("v", "c", 11), ("w", "b", 12))
    found = cut(backend, path, 8, 4, 1)
    told = {
        (int(stretch), bool(user), bool(item))
        for stretch, user, item in zip(found.stretches, found.new_user, found.new_item, strict=True)
    }
    # u takes b (new item), v (new) takes a; then v takes c (new item), w (new) takes b
    assert told == {(0, False, True), (0, True, False), (1, False, True), (1, True, False)}


def test_rows_of_a_user_and_an_item_are_counted_and_numbers_follow_the_ids(backend: BaseBackend, tmp_path: Path):
    path = log(tmp_path / "log.parquet", ("b", "y", 3), ("b", "y", 3.5), ("a", "x", 7), ("b", "x", 8))
    found = cut(backend, path, 4, 4, 1)
    rows = sorted(zip(found.stretches, found.users, found.items, found.counts, strict=True))
    assert np.array(rows).tolist() == [[0, 1, 1, 2], [1, 0, 0, 1], [1, 1, 0, 1]]


def test_only_what_counts_as_liking_is_looked_at(backend: BaseBackend, tmp_path: Path):
    path = tmp_path / "log.parquet"
    times = [day * DAY for day in range(6)]
    ratings = [5.0, 1.0, 5.0, 5.0, 1.0, 1.0]
    pq.write_table(pa.table({"user": ["u"] * 6, "item": list("abcdef"), "time": times, "rating": ratings}), path)
    whole = IngestedLog(backend, path, dataset(positive="rating >= 4")).span(2 * DAY)
    assert whole == Span(0, 3 * DAY, 1)
    assert IngestedLog(backend, path, dataset(positive="rating >= 6")).span(0) is None


def test_what_came_after_is_each_pair_once_and_a_return_only_where_repeats_are_kept(
    backend: BaseBackend, tmp_path: Path
):
    path = log(
        tmp_path / "log.parquet",
        ("u", "a", 1), ("v", "a", 2), ("w", "b", 3), ("u", "a", 11), ("u", "b", 12), ("u", "b", 13), ("v", "z", 14),
    )  # fmt: skip
    came = IngestedLog(backend, path, dataset()).aftermath(10 * DAY, 9)
    assert came.later.to_pylist() == [{"user": "u", "item": "b"}, {"user": "v", "item": "z"}]
    assert came.before.to_pylist() == [{"user": "u", "item": "a"}, {"user": "v", "item": "a"}]
    assert came.popular.to_pylist() == [{"item": "a", "users": 2}, {"item": "b", "users": 1}]
    kept = IngestedLog(backend, path, dataset(repeats="keep")).aftermath(10 * DAY, 9)
    assert kept.later.to_pylist()[0] == {"user": "u", "item": "a"}


def test_of_many_users_as_many_as_asked_for_are_looked_at_and_always_the_same(backend: BaseBackend, tmp_path: Path):
    rows = [(f"u{user}", item, day) for user in range(40) for item, day in (("a", 1), ("b", 11))]
    path = log(tmp_path / "log.parquet", *rows, *[(f"new{user}", "b", 12) for user in range(40)])
    some, again = (IngestedLog(backend, path, dataset()).aftermath(10 * DAY, 7) for _ in range(2))
    assert len(some.later) == len(some.before) == 7
    assert some.later == again.later
    assert all(user.startswith("u") for user in some.later.column("user").to_pylist())
    assert some.popular.to_pylist() == [{"item": "a", "users": 40}]
