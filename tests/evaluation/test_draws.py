"""Shares of draws, what draws differ in, and what their agreement is worth."""

import numpy as np
import pytest
import torch
from tests.models.laws import planted, queries_of

from noise2next.config import EvaluationConfig, UniformWeights
from noise2next.data.queries import Queries
from noise2next.diffusion.noise import normals
from noise2next.evaluation.draws import Draws, draw_lists, draw_seed, judge_draws
from noise2next.evaluation.evaluator import Evaluator
from noise2next.evaluation.ranking import rank
from noise2next.models.base import ModelConfig, Recommender

CONFIG = EvaluationConfig(cutoffs=(5, 10), bootstrap_samples=50, draws=6, draw_users=100)
SPLIT = planted()


class Noisy(Recommender):
    """Knows a user's taste up to noise of some size; without noise every draw is the same."""

    Config = ModelConfig

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.size = noise

    @property
    def stochastic(self) -> bool:
        return self.size > 0

    def score(self, queries: Queries) -> torch.Tensor:
        tastes = queries.multi_hot().view(len(queries), 4, -1).sum(dim=2)
        right = tastes.repeat_interleave(queries.n_items // 4, dim=1)
        return right + self.size * normals(self.scoring_seed, queries.keys, 0, queries.n_items)


def lists(*draws: list[list[int]]) -> Draws:
    return Draws(np.array(draws, dtype=np.int32), 10)


def drawn(noise: float = 3.0, draws: int = 6, seed: int = 1) -> Draws:
    model = Noisy(noise)
    model.scoring_seed = seed
    queries = queries_of(SPLIT)
    return draw_lists(model, queries, queries, 5, draws, 64)


def test_items_are_ordered_by_share_then_by_mean_place_then_by_index() -> None:
    found = lists([[7, 2, 9]], [[7, 9, 4]], [[9, 7, 3]], [[7, 9, 8]])
    items, shares = found.by_share()
    assert items.tolist() == [[7, 9, 2]]  # 2 stood higher than 3, 4 and 8
    assert shares.tolist() == [[1.0, 1.0, 0.25]]
    assert lists([[1, 5]], [[5, 1]]).by_share()[0].tolist() == [[1, 5]]


def test_diversity_is_the_part_of_a_list_that_another_draw_replaces() -> None:
    found = lists([[0, 1], [4, 5]], [[1, 0], [6, 7]], [[0, 2], [8, 9]])
    pairs = [1 - len({0, 1} & {0, 1}) / 2, 1 - len({0, 1} & {0, 2}) / 2, 1 - len({0, 1} & {0, 2}) / 2]
    assert found.diversity().tolist() == pytest.approx([np.mean(pairs), 1.0])
    assert found.distinct().tolist() == [3, 6]


def test_short_and_empty_lists_are_counted_by_their_length() -> None:
    found = lists([[3, -1], [-1, -1]], [[3, -1], [-1, -1]])
    assert found.diversity().tolist() == [0.0, 0.0]
    assert found.by_share()[0].tolist() == [[3, -1], [-1, -1]]
    assert found.by_share()[1].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_shares_over_all_items_sum_to_the_length_of_the_list() -> None:
    found = drawn()
    shares = np.bincount(found.pairs.users, found.pairs.counts / 6)
    np.testing.assert_allclose(shares, 5)
    assert found.pairs.counts.min() >= 1
    assert found.pairs.counts.max() <= 6


def test_a_model_that_does_not_draw_is_sure_of_everything() -> None:
    found = drawn(noise=0.0)
    assert (found.by_share()[1] == 1).all()
    assert (found.diversity() == 0).all()
    assert (found.distinct() == 5).all()


def test_equal_seeds_draw_equal_lists_and_the_first_is_the_models_own() -> None:
    found = drawn()
    assert np.array_equal(found.lists, drawn().lists)
    assert not np.array_equal(found.lists, drawn(seed=2).lists)
    model, queries = Noisy(3.0), queries_of(SPLIT)
    model.scoring_seed = 1
    assert np.array_equal(found.lists[0], rank(model, queries, [queries], 5, 64)[0].items.numpy())
    assert np.array_equal(found.lists[:3], drawn(draws=3).lists)


def test_no_two_draws_share_a_seed_nor_two_models_a_draw() -> None:
    seeds = {draw_seed(seed, draw) for seed in range(20) for draw in range(50)}
    assert len(seeds) == 20 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(7, 0) == 7


def test_the_models_seed_is_its_own_again_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = Noisy(1.0), queries_of(SPLIT)
    model.scoring_seed = 5
    draw_lists(model, queries, None, 3, 4, 64)
    assert model.scoring_seed == 5
    monkeypatch.setattr(Noisy, "score", lambda self, queries: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_lists(model, queries, None, 3, 4, 64)
    assert model.scoring_seed == 5


class TestJudging:
    @pytest.fixture(scope="class")
    def evaluator(self) -> Evaluator:
        return Evaluator(SPLIT, UniformWeights(), ["valid", "test"], CONFIG, "cpu")

    def test_the_bins_hold_every_pair_and_every_hit(self, evaluator: Evaluator) -> None:
        asked = evaluator.asked("test")
        found = judge_draws(Noisy(3.0), asked, 5, CONFIG.model_copy(update={"draw_users": 1000}), 1)
        again = draw_lists(Noisy(3.0), asked.queries, asked.seen, 5, 6, 64)
        assert found.users == len(asked.users)
        assert sum(one.pairs for one in found.bins) == len(again.pairs.users)
        truth = set(zip(SPLIT.test.users.tolist(), SPLIT.test.items.tolist(), strict=True))
        pairs = zip(asked.users[again.pairs.users].tolist(), again.pairs.items.tolist(), strict=True)
        assert sum(one.hit_rate * one.pairs for one in found.bins) == pytest.approx(len(truth & set(pairs)))
        assert all(one.above < one.mean_share <= one.up_to + 1e-12 for one in found.bins)

    def test_the_hits_of_some_bins_are_those_of_their_pairs(self, evaluator: Evaluator) -> None:
        asked = evaluator.asked("test")
        found = judge_draws(Noisy(3.0), asked, 5, CONFIG.model_copy(update={"draw_users": 1000}), 1)
        again = draw_lists(Noisy(3.0), asked.queries, asked.seen, 5, 6, 64)
        truth = set(zip(SPLIT.test.users.tolist(), SPLIT.test.items.tolist(), strict=True))
        pairs = list(zip(asked.users[again.pairs.users].tolist(), again.pairs.items.tolist(), strict=True))
        half = [pair in truth for pair, count in zip(pairs, again.pairs.counts, strict=True) if count <= 3]
        assert found.draws == 6
        assert found.hits(0, 0.5) == (sum(half), len(half))
        assert found.hits(0, 1) == (len(truth & set(pairs)), len(pairs))

    def test_an_item_that_more_draws_list_is_likelier_a_hit(self, evaluator: Evaluator) -> None:
        found = judge_draws(Noisy(3.0), evaluator.asked("test"), 5, CONFIG, 1)
        assert found.auc is not None
        assert found.auc > 0.6
        assert found.bins[-1].hit_rate > found.bins[0].hit_rate + 0.05
        assert found.gain["recall@5"].mean > 0
        assert found.gain["recall@5"].mean == pytest.approx(found.by_share["recall@5"] - found.one_draw["recall@5"])

    def test_chance_alone_has_nothing_to_say(self, evaluator: Evaluator) -> None:
        found = judge_draws(Noisy(1e6), evaluator.asked("test"), 5, CONFIG, 1)
        assert found.auc == pytest.approx(0.5, abs=0.12)
        assert found.diversity > 0.8

    def test_auc_is_that_of_all_pairs_of_a_hit_and_a_miss(self, evaluator: Evaluator) -> None:
        asked = evaluator.asked("test")
        found = draw_lists(Noisy(3.0), asked.queries, asked.seen, 5, 6, 64).pairs
        truth = set(zip(SPLIT.test.users.tolist(), SPLIT.test.items.tolist(), strict=True))
        pairs = zip(asked.users[found.users].tolist(), found.items.tolist(), strict=True)
        hit = np.array([pair in truth for pair in pairs])
        difference = found.counts[hit][:, None] - found.counts[~hit]
        expected = (difference > 0).mean() + (difference == 0).mean() / 2
        judged = judge_draws(Noisy(3.0), asked, 5, CONFIG.model_copy(update={"draw_users": 1000}), 1)
        assert judged.auc == pytest.approx(expected)

    def test_draws_cover_more_than_one_draw_does(self, evaluator: Evaluator) -> None:
        found = judge_draws(Noisy(3.0), evaluator.asked("test").select(np.arange(3)), 5, CONFIG, 1)
        assert found.coverage["one draw"] < found.coverage["all draws"] <= 1
        assert found.distinct > 5

    def test_so_many_users_are_looked_at_and_the_seed_says_whom(self, evaluator: Evaluator) -> None:
        asked = evaluator.asked("test")
        first, again, other = (judge_draws(Noisy(3.0), asked, 5, CONFIG, seed) for seed in (1, 1, 2))
        assert first.users == CONFIG.draw_users < len(asked.users)
        assert first == again
        assert first.bins != other.bins
