from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noise2next.config import GlobalTime, RandomRatio, SplitConfig
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary, stable_key
from noise2next.errors import UserError
from noise2next.workspace import writing

ITEMS = 6
histories = st.lists(st.lists(st.integers(-1, ITEMS - 1), max_size=5), min_size=1, max_size=5)


def log(lists: list[list[int]], start: int = 0) -> Interactions:
    """Items of each user; times and weights tell every interaction from every other."""
    users = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    items = np.asarray([item for one in lists for item in one], dtype=np.int32)
    made = Interactions.of(users, items, start + np.arange(len(items), dtype=np.int64), len(lists))
    return made.weighted((start + 1 + np.arange(len(items))).astype(np.float32))


def per_user(interactions: Interactions, values: np.ndarray) -> list[list[int]]:
    return [one.tolist() for one in np.split(values, interactions.indptr[1:-1])]


def batch(interactions: Interactions) -> Queries:
    return Queries.of(interactions, ITEMS, np.arange(interactions.n_users) + 100)


# --- interactions -----------------------------------------------------------------------------------------------------


@given(histories)
def test_rows_sorted_by_user_become_their_histories(lists: list[list[int]]) -> None:
    made = log(lists)
    assert per_user(made, made.items) == lists
    assert made.lengths.tolist() == [len(one) for one in lists]
    assert made.users.tolist() == [user for user, one in enumerate(lists) for _ in one]


def test_rows_that_are_not_sorted_by_user_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted by user"):
        Interactions.of(np.asarray([1, 0]), np.asarray([0, 0]), None, 2)


def test_a_user_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the 2 users"):
        Interactions.of(np.asarray([0, 7]), np.asarray([0, 0]), None, 2)


@given(
    st.integers(1, 4).flatmap(
        lambda users: st.tuples(
            *[st.lists(st.lists(st.integers(-1, 5), max_size=4), min_size=users, max_size=users)] * 2
        )
    )
)
def test_following_appends_each_users_rows_with_their_times_and_weights(pair: tuple[list[list[int]], ...]) -> None:
    first, then = log(pair[0]), log(pair[1], start=1000)
    both = first.followed_by(then)
    for field in ("items", "times", "weights"):
        expected = [
            a + b
            for a, b in zip(per_user(first, getattr(first, field)), per_user(then, getattr(then, field)), strict=True)
        ]
        assert per_user(both, getattr(both, field)) == expected


def test_times_are_known_only_where_all_are_known() -> None:
    bare = Interactions.of(np.asarray([0]), np.asarray([1]), None, 1)
    assert bare.followed_by(log([[2]])).times is None
    assert log([[2]]).followed_by(bare).times is None


# --- the split --------------------------------------------------------------------------------------------------------


def split(config: SplitConfig) -> Split:
    users, items = Vocabulary(("a", "b")), Vocabulary(("x", "y", "z"))
    parts = log([[0, 1], [1]]), log([[2], []], start=10), log([[-1], [0]], start=20)
    return Split(config, users, items, *parts, has_clock=True)


def test_validation_is_read_at_test_time_only_where_the_split_says_so() -> None:
    reading, blind = split(GlobalTime(history="train+valid")), split(GlobalTime(history="train"))
    assert per_user(reading.known("test"), reading.known("test").items) == [[0, 1, 2], [1]]
    assert blind.known("test") is blind.train
    assert reading.known("valid") is reading.train


def test_what_is_judged_is_never_known_nor_seen() -> None:
    for one in (split(GlobalTime()), split(GlobalTime(history="train"))):
        for at in ("valid", "test"):
            judged = set(one.truth(at).times)
            assert not judged & set(one.known(at).times)
            assert not judged & set(one.seen(at).times)


def test_everything_before_the_judged_part_is_seen_even_where_it_is_not_read() -> None:
    blind = split(GlobalTime(history="train"))
    assert len(blind.seen("test")) == len(blind.train) + len(blind.valid)
    assert split(GlobalTime(mask_seen=False)).seen("test") is None


def test_a_random_split_still_gives_histories_in_the_order_of_time() -> None:
    users, items = Vocabulary(("a",)), Vocabulary(("x", "y", "z"))
    late, early = log([[0, 1]], start=50), log([[2]], start=10)
    drawn = Split(RandomRatio(), users, items, late, early, log([[0]], start=30), has_clock=True)
    assert drawn.known("test").items.tolist() == [2, 0, 1]
    assert drawn.known("test").times.tolist() == [10, 50, 51]


def written(folder: Path, timed: bool) -> Path:
    with writing(folder) as place:
        for name, user, item in (("train", [0, 0, 1], [0, 1, 0]), ("valid", [1], [1]), ("test", [0], [-1])):
            columns = {"user": pa.array(user, pa.int32()), "item": pa.array(item, pa.int32())}
            clock = {"time": pa.array(range(len(user)), pa.int64())} if timed else {}
            pq.write_table(pa.table(columns | clock), place / f"{name}.parquet")
        Vocabulary(("1", "2")).save(place / "users.parquet")
        Vocabulary(("x", "y")).save(place / "items.parquet")
    return folder


@pytest.mark.parametrize("timed", [True, False])
def test_a_split_is_read_as_it_was_written(tmp_path: Path, timed: bool) -> None:
    loaded = Split.load(written(tmp_path / "prepare", timed), GlobalTime(), has_clock=timed)
    assert loaded.n_items == 2
    assert per_user(loaded.train, loaded.train.items) == [[0, 1], [0]]
    assert per_user(loaded.test, loaded.test.items) == [[-1], []]
    assert (loaded.train.times is not None) == timed


def test_a_split_that_is_not_there_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise2next prepare"):
        Split.load(tmp_path / "prepare", GlobalTime(), has_clock=True)


# --- queries ----------------------------------------------------------------------------------------------------------


@given(histories)
def test_queries_hold_each_history_without_unknown_items(lists: list[list[int]]) -> None:
    asked = batch(log(lists))
    known = [[item for item in one if item >= 0] for one in lists]
    assert [one.tolist() for one in asked.items.split(asked.lengths.tolist())] == known
    assert asked.rows().tolist() == [row for row, one in enumerate(known) for _ in one]


@given(histories, st.data())
def test_a_selection_is_the_same_as_asking_for_those_users(lists: list[list[int]], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    interactions = log(lists)
    some = batch(interactions).select(torch.tensor(picked, dtype=torch.int64))
    known = interactions.items >= 0
    for place, user in enumerate(picked):
        mine = known & (interactions.users == user)
        part = slice(int(some.indptr[place]), int(some.indptr[place + 1]))
        assert some.items[part].tolist() == interactions.items[mine].tolist()
        assert some.times[part].tolist() == interactions.times[mine].tolist()
        assert some.weights[part].tolist() == interactions.weights[mine].tolist()
    assert some.keys.tolist() == [100 + user for user in picked]
    assert len(some) == len(picked)


@given(histories)
def test_a_row_holds_the_largest_weight_of_an_items_repeats_dense_or_folded(lists: list[list[int]]) -> None:
    interactions = log(lists)
    expected = np.zeros((len(lists), ITEMS), dtype=np.float32)
    for user, item, weight in zip(interactions.users, interactions.items, interactions.weights, strict=True):
        if item >= 0:
            expected[user, item] = max(expected[user, item], weight)
    asked = batch(interactions)
    np.testing.assert_array_equal(asked.multi_hot().numpy(), expected)
    once = asked.folded()
    assert once.indptr.tolist() == [0, *np.cumsum((expected > 0).sum(axis=1))]
    np.testing.assert_array_equal(once.items.numpy(), expected.nonzero()[1])
    np.testing.assert_array_equal(once.weights.numpy(), expected[expected > 0])


def test_a_batch_of_nobody_is_a_batch() -> None:
    nobody = batch(log([[1, 2]])).select(torch.zeros(0, dtype=torch.int64))
    assert nobody.multi_hot().shape == (0, ITEMS)
    assert (len(nobody.folded()), len(nobody.folded().items)) == (0, 0)


# --- vocabulary -------------------------------------------------------------------------------------------------------

ids = st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), unique=True, max_size=20)


@given(ids)
def test_every_id_is_found_at_its_place(raw: list[str]) -> None:
    indices, unknown = Vocabulary(tuple(raw)).encode(raw)
    assert indices.tolist() == list(range(len(raw)))
    assert unknown == []


def test_unknown_ids_are_named_and_the_rest_keep_their_order() -> None:
    indices, unknown = Vocabulary(("a", "b")).encode(["b", "?", "a", "b", "1"])
    assert indices.tolist() == [1, 0, 1]
    assert indices.dtype == np.int64
    assert unknown == ["?", "1"]


@settings(max_examples=20)
@given(raw=ids)
def test_ids_survive_saving_whatever_their_letters(raw: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "users.parquet"
    Vocabulary(tuple(raw)).save(path)
    assert Vocabulary.load(path).ids == tuple(raw)


def test_a_users_key_depends_on_the_raw_id_alone() -> None:
    assert Vocabulary(("a", "b")).keys[1] == Vocabulary(("z", "y", "b")).keys[2] == stable_key("b")
    assert len(set(Vocabulary(tuple(map(str, range(1000)))).keys)) == 1000
    assert stable_key("b") == 8453121595177857668
