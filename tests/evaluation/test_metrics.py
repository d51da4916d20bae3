"""Metrics against the worked example, against their definitions spelled out one user at a time, and by identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise2next.data.interactions import Interactions
from noise2next.evaluation.metrics import METRICS, Truth, accuracy, hits


def truth_of(taken: list[list[int]], n_items: int) -> Truth:
    users = np.repeat(np.arange(len(taken)), [len(items) for items in taken])
    items = np.array([item for items in taken for item in items], dtype=np.int64)
    return Truth.of(Interactions.of(users, items, None, len(taken)), n_items)


def measure(lists: list[list[int]], taken: list[list[int]], n_items: int, cutoffs: list[int]) -> dict[str, list[float]]:
    truth, users = truth_of(taken, n_items), np.arange(len(lists))
    found = hits(np.array(lists, dtype=np.int32), users, truth)
    return {name: values.tolist() for name, values in accuracy(found, truth.sizes, cutoffs).items()}


def spelled_out(ranking: list[int], taken: list[int], k: int) -> dict[str, float]:
    """The definitions, one user, plain loops."""
    wanted = {item for item in taken if item >= 0}
    size = len(wanted) + sum(item < 0 for item in taken)
    places = [place for place, item in enumerate(ranking[:k], start=1) if item in wanted]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, size) + 1))
    return {
        "recall": len(places) / size,
        "precision": len(places) / k,
        "hit_rate": float(bool(places)),
        "mrr": 1 / places[0] if places else 0.0,
        "ndcg": sum(1 / math.log2(place + 1) for place in places) / ideal,
        "map": sum((at + 1) / place for at, place in enumerate(places)) / min(k, size),
    }


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (5, {"precision": 0.4, "recall": 0.666666667, "ndcg": 0.498189257, "mrr": 0.5}),
        (2, {"precision": 0.5, "recall": 0.333333333, "ndcg": 0.386852807, "mrr": 0.5}),
    ],
)
def test_the_worked_example(k: int, expected: dict[str, float]) -> None:
    found = measure([[7, 1, 3, 9, 2]], [[1, 5, 9]], 10, [2, 5])
    for name, value in expected.items():
        assert found[f"{name}@{k}"][0] == pytest.approx(value, abs=1e-7)


WORLDS = st.integers(3, 14).flatmap(
    lambda n_items: st.tuples(
        st.just(n_items),
        st.lists(
            st.tuples(
                st.permutations(range(n_items)),
                st.lists(st.integers(-1, n_items - 1), min_size=1, max_size=n_items),
            ),
            min_size=1,
            max_size=6,
        ),
    )
)


@settings(max_examples=150, deadline=None)
@given(WORLDS, st.integers(0, 3))
def test_every_metric_is_its_definition(world: tuple, padding: int) -> None:
    n_items, users = world
    lists = [[*ranking[: n_items - padding], *[-1] * padding] for ranking, _ in users]
    cutoffs = sorted({1, 2, n_items})
    found = measure(lists, [taken for _, taken in users], n_items, cutoffs)
    assert set(found) == {f"{name}@{k}" for name in METRICS for k in cutoffs}
    for user, (_, taken) in enumerate(users):
        for k in cutoffs:
            for name, value in spelled_out(lists[user], taken, k).items():
                assert found[f"{name}@{k}"][user] == pytest.approx(value, abs=1e-6), (name, k)


@settings(max_examples=50, deadline=None)
@given(WORLDS)
def test_the_ideal_order_scores_one(world: tuple) -> None:
    n_items, users = world
    taken = [[item for item in items if item >= 0] or [0] for _, items in users]
    lists = [[*sorted(set(one)), *(item for item in range(n_items) if item not in one)] for one in taken]
    found = measure(lists, taken, n_items, [n_items])
    for name in ("recall", "ndcg", "mrr", "hit_rate", "map"):
        assert found[f"{name}@{n_items}"] == pytest.approx([1.0] * len(users))


@settings(max_examples=50, deadline=None)
@given(WORLDS, st.randoms(use_true_random=False))
def test_other_names_for_items_and_another_order_of_users_change_nothing(world: tuple, random: object) -> None:
    n_items, users = world
    names, order = list(range(n_items)), list(range(len(users)))
    random.shuffle(names)  # type: ignore[attr-defined]
    random.shuffle(order)  # type: ignore[attr-defined]
    lists, taken = [list(ranking) for ranking, _ in users], [items for _, items in users]
    before = measure(lists, taken, n_items, [2, n_items])
    renamed = [[names[item] for item in lists[user]] for user in order]
    wanted = [[names[item] if item >= 0 else -1 for item in taken[user]] for user in order]
    after = measure(renamed, wanted, n_items, [2, n_items])
    for name, values in before.items():
        assert after[name] == [values[user] for user in order]


def test_an_item_unknown_to_training_counts_in_the_size_and_is_never_hit() -> None:
    found = measure([[0, 1, -1]], [[0, -1, -1]], 2, [3])
    assert found["recall@3"] == pytest.approx([1 / 3])


def test_padding_is_never_a_hit_of_the_user_before() -> None:
    found = measure([[0, 1], [-1, -1]], [[2], [0]], 3, [2])  # key of (1, -1) would be that of (0, 2)
    assert found["hit_rate@2"] == [0.0, 0.0]


def test_a_repeated_item_of_the_truth_counts_once() -> None:
    assert truth_of([[4, 4, 2, -1, -1]], 5).sizes.tolist() == [4]
