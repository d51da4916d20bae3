"""Full ranking, streamed: users come in blocks and only their best k items are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noise2next.data.queries import Queries
from noise2next.errors import Diverged
from noise2next.models.base import Recommender
from noise2next.nn.top_k import top_k

BYTES_PER_SCORE = 36  # measured: scores, a dense history, a masked copy, the search for the best and among ties
MOST_ROWS = 1024  # enough to keep matrix products busy; a larger block only leaves the cache


@dataclass(frozen=True)
class Ranked:
    """The best k of each user: items [B, k] int32, -1 where nothing is left to rank; scores [B, k], -inf there."""

    items: Tensor
    scores: Tensor


def rank(model: Recommender, queries: Queries, seen: Sequence[Queries | None], k: int, memory_mb: int) -> list[Ranked]:
    """Rank all items for all of `queries`, once for each entry of `seen`, from one pass of scores.

    An entry of `seen` holds, user by user, the items to leave out, whatever their weights; None leaves out nothing.
    Order is score down, then item index up. Results lie on the CPU; only blocks of scores, bounded by `memory_mb`,
    lie on the model's device. Raises UserError when a score is NaN.
    """
    # Room for the results is taken first: lists kept between blocks would leave holes in memory too small for the next.
    found = [
        Ranked(torch.empty(len(queries), k, dtype=torch.int32), torch.empty(len(queries), k)) for _ in range(len(seen))
    ]
    start = 0
    for block in ranked_blocks(model, queries, seen, k, memory_mb):
        stop = start + len(block[0].items)
        for whole, part in zip(found, block, strict=True):
            whole.items[start:stop] = part.items
            whole.scores[start:stop] = part.scores
        start = stop
    return found


@torch.no_grad()
def ranked_blocks(
    model: Recommender, queries: Queries, seen: Sequence[Queries | None], k: int, memory_mb: int
) -> Iterator[list[Ranked]]:
    """`rank` block by block, users in order, for callers that cannot hold all lists either."""
    model.begin_scoring()
    users = torch.arange(len(queries), device=queries.device)
    for block in torch.split(users, rows_within(memory_mb, queries.n_items)):
        scores = model.score(queries.select(block))
        if scores.amax().isnan():
            name = type(model).__name__
            raise Diverged(f"{name}: its scores are not numbers (NaN), so it has diverged; lower its learning rate")
        yield [_best(_masked(scores, None if out is None else out.select(block)), k) for out in seen]


def rows_within(memory_mb: int, n_items: int) -> int:
    """How many users are scored at one time."""
    return max(1, min(MOST_ROWS, memory_mb * 2**20 // (BYTES_PER_SCORE * n_items)))


def _masked(scores: Tensor, seen: Queries | None) -> Tensor:
    if seen is None:
        return scores
    masked = scores.clone(memory_format=torch.contiguous_format)
    masked.view(-1)[seen.rows() * seen.n_items + seen.items] = -torch.inf
    return masked


def _best(scores: Tensor, k: int) -> Ranked:
    values, items = top_k(scores, k)
    items = items.masked_fill(values == -torch.inf, -1).to(torch.int32)
    if (missing := k - items.shape[1]) > 0:
        items = torch.nn.functional.pad(items, (0, missing), value=-1)
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    return Ranked(items.cpu(), values.cpu())
