"""Streaming gives the same lists as ranking everything at once, and masks by structure."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noise2next.data.interactions import Interactions
from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.evaluation import ranking
from noise2next.evaluation.ranking import rank, rows_within
from noise2next.models.base import ModelConfig, Recommender


class Told(Recommender):
    """Its scores are given; a user's key says which row."""

    Config = ModelConfig

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.blocks: list[int] = []

    def score(self, queries: Queries) -> Tensor:
        self.blocks.append(len(queries))
        return self.table[queries.keys]


def histories(rows: list[list[int]], n_items: int, weight: float = 1.0) -> Queries:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.array([item for row in rows for item in row], dtype=np.int64)
    made = Interactions.of(users, items, None, len(rows)).weighted(np.full(len(items), weight, dtype=np.float32))
    return Queries.of(made, n_items, np.arange(len(rows)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 8), st.integers(1, 12))
def test_blocks_masks_and_ties_give_the_lists_of_one_stable_sort(seed: int, users: int, items: int, k: int) -> None:
    draw = np.random.default_rng(seed)
    table = draw.integers(0, 4, (users, items)).astype(np.float32)  # many ties
    hidden = draw.random((users, items)) < 0.4
    seen = histories([list(np.flatnonzero(row)) for row in hidden], items, weight=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MOST_ROWS", 3)
        masked, plain = rank(Told(torch.from_numpy(table)), histories([[0]] * users, items), [seen, None], k, 64)
    for found, scores in ((masked, np.where(hidden, -np.inf, table)), (plain, table)):
        expected = np.full((users, k), -1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(scores, order, axis=1)
        expected[:, : order.shape[1]] = np.where(np.isneginf(kept), -1, order)
        assert found.items.tolist() == expected.tolist()
        assert found.items.dtype == torch.int32


def test_one_pass_of_scores_serves_all_masks() -> None:
    model = Told(torch.rand(5, 6))
    rank(model, histories([[0]] * 5, 6), [None, histories([[1]] * 5, 6)], 3, 64)
    assert model.blocks == [5]


def test_a_mask_does_not_reach_the_models_own_numbers() -> None:
    table = torch.rand(1, 6)
    before = table.clone()
    rank(Told(table), histories([[0]], 6), [histories([[1, 2]], 6)], 3, 64)
    assert torch.equal(table, before)


def test_blocks_shrink_with_the_catalogue_and_never_vanish() -> None:
    assert rows_within(512, 1_000_000) * 1_000_000 * 4 < 512 * 2**20
    assert rows_within(1, 10**9) == 1
    assert rows_within(512, 100) == ranking.MOST_ROWS


def test_scores_that_are_no_numbers_are_refused() -> None:
    table = torch.zeros(2, 4)
    table[1, 3] = torch.nan
    with pytest.raises(UserError, match="diverged"):
        rank(Told(table), histories([[0]] * 2, 4), [None], 2, 64)


HUNGRY = """
import sys
import numpy as np, torch
from noise2next.data.interactions import Interactions
from noise2next.data.queries import Queries
from noise2next.evaluation import ranking
from noise2next.models.popularity import MostPop
from noise2next.training.device import peak_memory_mb
torch.set_num_threads(1)
users, items = 1200, 100_000
made = Interactions.of(np.repeat(np.arange(users), 5), np.arange(users * 5) % items, None, users)
queries, model = Queries.of(made, items, np.arange(users)), MostPop(MostPop.Config(), items)
model.solve(queries)
ranking.rank(model, queries.select(torch.arange(8)), [queries.select(torch.arange(8))], 20, 32)
if sys.argv[1] == "hold all scores":
    score, held = model.score, []
    model.score = lambda block: held.append(score(block).clone()) or held[-1]
before = peak_memory_mb(torch.device("cpu"))
ranking.rank(model, queries, [queries], 20, 32)
print(peak_memory_mb(torch.device("cpu")) - before)
"""


def growth_mb(how: str) -> float:
    """Of the peak of a program of its own, whatever this one has held before."""
    told = subprocess.run([sys.executable, "-c", HUNGRY, how], capture_output=True, text=True, check=True)
    return float(told.stdout)


def test_memory_follows_the_budget_and_not_users_times_items() -> None:
    held = np.ones(2**28, dtype=np.uint8)  # 256 MB here, which a program that is started must not count as its own
    assert growth_mb("stream") < 50
    assert growth_mb("hold all scores") > 400  # they are 458
    assert held.any()


@pytest.mark.gpu
def test_cpu_and_gpu_give_the_same_lists() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    table = torch.randint(0, 30, (50, 400), generator=torch.Generator().manual_seed(0)).float()
    rows = [[user % 400, (7 * user) % 400] for user in range(50)]
    here, there = histories(rows, 400), histories(rows, 400)
    there = Queries(*(part.cuda() for part in (there.indptr, there.items, there.weights)), None, there.keys.cuda(), 400)
    one = rank(Told(table), here, [here], 20, 64)[0]
    other = rank(Told(table.cuda()), there, [there], 20, 64)[0]
    assert torch.equal(one.items, other.items)
