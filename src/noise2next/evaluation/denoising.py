"""How one list comes about: where its items stand at each step of the reverse chain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from noise2next.data.queries import Queries
from noise2next.nn.top_k import top_k

MOST_STEPS = 12  # as many as a picture can tell apart


@dataclass(frozen=True)
class Courses:
    """steps [S], noisiest first; items [n] as indices, those of the final list first and in its order; ranks [n, S].

    A rank counts from 1 among all items that are not left out. Every item makes the top k at one of the steps, the
    first `final` of them at the last.
    """

    steps: list[int]
    items: list[int]
    ranks: list[list[int]]
    final: int


def courses(states: Iterable[tuple[int, Tensor]], seen: Queries | None, k: int) -> Courses:
    """The course of one history's list over at most MOST_STEPS of the states that `HasDenoising` gives, both ends kept.

    `seen` holds what to leave out of the list.
    """
    states = list(states)
    shown = sorted({round(at * (len(states) - 1) / (MOST_STEPS - 1)) for at in range(MOST_STEPS)})
    lists, ranks = [], []
    for at in shown:
        scores = states[at][1]
        if seen is not None:
            scores = scores.index_put((seen.rows(), seen.items), scores.new_tensor(-torch.inf))
        values, order = top_k(scores, scores.shape[1])
        lists.append(order[0, :k][values[0, :k] > -torch.inf].tolist())
        ranks.append(order[0].argsort() + 1)
    items = list(dict.fromkeys(item for one in reversed(lists) for item in one))
    by_item = torch.stack(ranks, dim=1)
    return Courses([states[at][0] for at in shown], items, by_item[items].tolist(), len(lists[-1]))
