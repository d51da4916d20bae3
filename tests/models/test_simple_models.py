"""MostPop, ItemKNN and EASE: the shared laws, the published formulas, and the measured figures on real data."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.models.laws import RecommenderLaws, queries_of, scores
from tests.models.official import diffrec, diffurec, percent

from noise2next.config import EvaluationConfig, LinearWeights, UniformWeights, Weighting
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.weighting import weigh
from noise2next.evaluation.evaluator import judge
from noise2next.models.base import ClosedForm
from noise2next.models.ease import EASE
from noise2next.models.item_knn import ItemKNN
from noise2next.models.popularity import MostPop

SMALL = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=np.float32)


def as_queries(rows: NDArray[np.float32]) -> Queries:
    """Users' rows of weights, zero where there is nothing, as histories."""
    users, items = rows.nonzero()
    made = Interactions.of(users, items, None, len(rows)).weighted(rows[users, items].astype(np.float32))
    return Queries.of(made, rows.shape[1], np.arange(len(rows)))


def random_rows(seed: int, users: int = 40, items: int = 12) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return ((draw.random((users, items)) < 0.3) * draw.uniform(0.1, 1, (users, items))).astype(np.float32)


class TestMostPop(RecommenderLaws):
    model = "noise2next.models.popularity.MostPop"
    test_planted_tastes_are_found_better_than_by_popularity = None

    def test_everyone_gets_the_same_scores(self, fitted: MostPop, split: Split) -> None:
        found = scores(fitted, queries_of(split))
        assert torch.equal(found, found[:1].expand_as(found))

    def test_the_score_is_the_number_of_interactions(self) -> None:
        model = MostPop(MostPop.Config(), 3)
        model.solve(as_queries(SMALL))
        assert scores(model, as_queries(SMALL[:1])).tolist() == [[3, 3, 2]]

    def test_weights_make_it_popularity_by_weight(self) -> None:
        rows = random_rows(0)
        model = MostPop(MostPop.Config(), rows.shape[1])
        model.solve(as_queries(rows))
        np.testing.assert_allclose(model.popularity.numpy(), rows.sum(axis=0), rtol=1e-5)


class TestItemKNN(RecommenderLaws):
    model = "noise2next.models.item_knn.ItemKNN"
    options: ClassVar = {"neighbours": 8, "shrink": 2}

    @pytest.mark.parametrize("neighbours", [1, 3, 12, 50])
    def test_it_is_the_formula_with_the_nearest_of_each_target(self, neighbours: int) -> None:
        rows = random_rows(1).astype(np.float64)
        norms = np.sqrt((rows**2).sum(axis=0))
        similar = rows.T @ rows / (np.outer(norms, norms) + 5)
        np.fill_diagonal(similar, 0)
        for target in range(similar.shape[1]):
            far = np.argsort(-similar[:, target], kind="stable")[neighbours:]
            similar[far, target] = 0
        model = ItemKNN(ItemKNN.Config(neighbours=neighbours, shrink=5), rows.shape[1])
        queries = as_queries(rows.astype(np.float32))
        model.solve(queries)
        np.testing.assert_allclose(scores(model, queries).numpy(), rows @ similar, atol=1e-5)

    def test_of_equal_neighbours_the_lower_index_is_kept(self) -> None:
        rows = np.ones((4, 6), dtype=np.float32)
        model = ItemKNN(ItemKNN.Config(neighbours=2, shrink=0), 6)
        model.solve(as_queries(rows))
        assert model.neighbours.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]

    def test_blocks_of_columns_make_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        queries = as_queries(random_rows(2))
        whole, pieces = (ItemKNN(ItemKNN.Config(neighbours=4), 12) for _ in range(2))
        whole.solve(queries)
        monkeypatch.setattr("noise2next.models.item_knn.COLUMNS", 5)
        pieces.solve(queries)
        assert torch.equal(whole.neighbours, pieces.neighbours)
        assert torch.equal(whole.similarities, pieces.similarities)

    def test_an_item_without_any_weight_has_no_neighbours(self) -> None:
        rows = random_rows(3)
        rows[:, 5] = 0
        model = ItemKNN(ItemKNN.Config(neighbours=4, shrink=0), 12)
        model.solve(as_queries(rows))
        assert not model.similarities[5].any()
        assert model.similarities.isfinite().all()


class TestEASE(RecommenderLaws):
    model = "noise2next.models.ease.EASE"
    options: ClassVar = {"l2": 10}

    def test_an_item_never_recommends_itself(self, fitted: EASE) -> None:
        assert fitted.weights.diagonal().abs().max() == 0

    def test_the_worked_example(self) -> None:
        model = EASE(EASE.Config(l2=2), 3)
        model.solve(as_queries(SMALL))
        expected = [[0, 0.3157894737, 0.04761904762], [0.375, 0, 0.380952381], [0.0625, 0.4210526316, 0]]
        np.testing.assert_allclose(model.weights.numpy(), expected, atol=1e-7)
        np.testing.assert_allclose(scores(model, as_queries(SMALL[3:])).numpy(), expected[:1], atol=1e-7)

    @pytest.mark.parametrize("seed", range(3))
    def test_each_column_solves_the_ridge_with_a_zero_for_itself(self, seed: int) -> None:
        rows = random_rows(seed).astype(np.float64)
        gram = rows.T @ rows
        model = EASE(EASE.Config(l2=3), rows.shape[1])
        model.solve(as_queries(rows.astype(np.float32)))
        for target in range(rows.shape[1]):
            others = [item for item in range(rows.shape[1]) if item != target]
            ridge = gram[np.ix_(others, others)] + 3 * np.eye(len(others))
            expected = np.linalg.solve(ridge, gram[others, target])
            np.testing.assert_allclose(model.weights.numpy()[others, target], expected, atol=1e-5)

    def test_new_labels_for_items_only_move_the_columns(self) -> None:
        rows, order = random_rows(4), np.random.default_rng(0).permutation(12)
        one, other = EASE(EASE.Config(l2=5), 12), EASE(EASE.Config(l2=5), 12)
        one.solve(as_queries(rows))
        other.solve(as_queries(rows[:, order]))
        moved = scores(one, as_queries(rows)).numpy()[:, order]
        np.testing.assert_allclose(scores(other, as_queries(rows[:, order])).numpy(), moved, atol=1e-6)


class TestEASEWithDecay(RecommenderLaws):
    model = "noise2next.models.ease.EASE"
    options: ClassVar = {"l2": 10, "decay": 0.9, "last": 8}

    @staticmethod
    def row(history: list[int], **options: float) -> list[float]:
        """What is asked with, seen through weights that copy it."""
        model = EASE(EASE.Config(**options), 4)
        model.weights.copy_(torch.eye(4))
        items = np.array(history, dtype=np.int64)
        bare = Interactions.of(np.zeros(len(items), dtype=np.int64), items, None, 1)
        found: list[float] = scores(model, Queries.of(bare, 4, np.zeros(1, dtype=np.int64)))[0].tolist()
        return found

    def test_a_weight_decays_with_every_newer_interaction(self) -> None:
        assert self.row([3, 0, 1], decay=0.5) == [0.5, 1, 0, 0.25]

    def test_of_repeats_the_newest_counts(self) -> None:
        assert self.row([2, 0, 2, 1], decay=0.5) == [0.25, 1, 0.5, 0]

    def test_only_the_newest_are_asked_with(self) -> None:
        assert self.row([3, 0, 1], decay=0.5, last=2) == [0.5, 1, 0, 0]
        assert self.row([3, 0, 1], last=2) == [1, 1, 0, 0]

    def test_what_is_learned_stays_the_same(self, fitted: EASE, split: Split) -> None:
        plain = EASE(EASE.Config(l2=10), split.n_items)
        plain.solve(queries_of(split))
        assert torch.equal(fitted.weights, plain.weights)

    def test_only_then_it_needs_the_order_of_events(self) -> None:
        assert not EASE.needs_order(EASE.Config(l2=5))
        assert EASE.needs_order(EASE.Config(decay=0.9))
        assert EASE.needs_order(EASE.Config(last=50))


def test_a_repeated_item_counts_once_in_item_to_item_models(split_with_repeat: tuple[Queries, Queries]) -> None:
    repeated, once = split_with_repeat
    one, other = EASE(EASE.Config(l2=1), 3), EASE(EASE.Config(l2=1), 3)
    one.solve(repeated)
    other.solve(once)
    assert torch.equal(one.weights, other.weights)


@pytest.fixture
def split_with_repeat() -> tuple[Queries, Queries]:
    repeated = Interactions.of(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 0, 1, 2]), None, 2)
    once = Interactions.of(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), None, 2)
    return Queries.of(repeated, 3, np.arange(2)), Queries.of(once, 3, np.arange(2))


@pytest.fixture(scope="module")
def official(shared: Path) -> Split:
    """ml-1m_clean as its authors split it."""
    return diffrec(shared, "ml-1m_clean")


@pytest.mark.real
@pytest.mark.parametrize(
    ("make", "weighting", "recall", "ndcg"),
    [
        (lambda items: MostPop(MostPop.Config(), items), UniformWeights(), 0.0993, 0.0721),
        (lambda items: ItemKNN(ItemKNN.Config(neighbours=100, shrink=20), items), UniformWeights(), 0.1679, 0.1127),
        (lambda items: EASE(EASE.Config(l2=1000), items), UniformWeights(), 0.1816, 0.1165),
        (lambda items: EASE(EASE.Config(l2=500), items), LinearWeights(low=0.1, high=1), 0.2108, 0.1418),
    ],
    ids=["most_pop", "item_knn", "ease", "t_ease"],
)
def test_the_measured_figures_come_out_to_four_digits(
    official: Split, make: Callable[[int], ClosedForm], weighting: Weighting, recall: float, ndcg: float
) -> None:
    model = make(official.n_items)
    weighted = weigh(official.train, weighting, False)
    model.solve(Queries.of(weighted, official.n_items, official.users.keys))
    found = judge(model, official, weighting, ["test"], EvaluationConfig(), "cpu")["test"].means()
    assert round(found["recall@20"], 4) == recall
    assert round(found["ndcg@20"], 4) == ndcg


@pytest.mark.real
def test_the_measured_figures_of_the_files_with_natural_noise_come_out(shared: Path) -> None:
    split = diffrec(shared, "ml-1m_noisy")
    train = Queries.of(split.train, split.n_items, split.users.keys)
    found = []
    for model in (MostPop(MostPop.Config(), split.n_items), EASE(EASE.Config(l2=500), split.n_items)):
        model.solve(train)
        means = judge(model, split, UniformWeights(), ["test"], EvaluationConfig(cutoffs=(10, 20)), "cpu")[
            "test"
        ].means()
        found.append([round(means[f"{name}@{k}"], 4) for name in ("recall", "ndcg") for k in (10, 20)])
    assert found == [[0.0467, 0.0896, 0.0455, 0.0604], [0.0689, 0.1321, 0.0497, 0.0729]]


@pytest.mark.real
@pytest.mark.slow
def test_for_the_next_item_the_measured_figures_come_out_with_and_without_decay(shared: Path, tmp_path: Path) -> None:
    """Beauty has 12,068 items to learn: the inverse takes minutes on one core, and 3 GB."""
    split = diffurec(shared, "amazon_beauty", tmp_path)
    plain = EASE(EASE.Config(l2=100), split.n_items)
    plain.solve(Queries.of(split.train, split.n_items, split.users.keys))
    fading = EASE(EASE.Config(l2=100, decay=0.8, last=50), split.n_items)
    fading.load_state_dict(plain.state_dict())
    found = [percent(model, split, mask_seen) for model in (plain, fading) for mask_seen in (False, True)]
    assert found == [
        [2.8887, 4.9904, 8.1071, 1.8563, 2.5280, 3.3168],
        [4.5790, 6.9445, 9.7214, 2.9854, 3.7432, 4.4443],
        [3.8546, 6.1709, 9.3682, 2.5534, 3.2970, 4.0977],
        [5.3392, 7.6779, 10.7365, 3.6659, 4.4230, 5.1946],
    ]
