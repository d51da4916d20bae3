"""Many lists for the same history: what the draws of a stochastic model agree on, and what their agreement is worth.

The share of an item is the part of the draws in which it makes the top k. It says how sure the model is that the item
belongs in the list, which is no probability that the user takes it; the evaluation measures how the two hang together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from noise2next.config import EvaluationConfig
from noise2next.data.queries import Queries
from noise2next.evaluation.evaluator import Asked
from noise2next.evaluation.metrics import accuracy, hits
from noise2next.evaluation.ranking import rank
from noise2next.evaluation.report import DrawsReport, ShareBin
from noise2next.evaluation.significance import paired_difference
from noise2next.models.base import Recommender

BINS = 10  # of the share, up to 10 %, 20 %, ...
JUDGED = ("recall", "ndcg")  # of the list by share, against a single draw's


@dataclass(frozen=True)
class Draws:
    """lists [N, M, k] int32: the top k of M users in each of N >= 2 draws, -1 is padding."""

    lists: NDArray[np.int32]
    n_items: int

    @cached_property
    def pairs(self) -> Pairs:
        """Every pair of a user and an item that some draw lists."""
        draw, user, place = np.nonzero(self.lists >= 0)
        keys = user * self.n_items + self.lists[draw, user, place]
        found, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
        users, items = np.divmod(found, self.n_items)
        places = np.bincount(at, place + 1, minlength=len(found)) / counts
        order = np.lexsort((items, places, -counts, users))
        return Pairs(users[order], items[order].astype(np.int32), counts[order])

    def by_share(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """One list a user, by share: items [M, k], -1 is padding, and their shares [M, k], 0 there.

        Of equal shares the better mean place, over the draws that list the item, comes first, then the lower index.
        """
        draws, users, k = self.lists.shape
        first = np.searchsorted(self.pairs.users, np.arange(users))
        place = np.arange(len(self.pairs.users)) - first[self.pairs.users]
        at = self.pairs.users[place < k], place[place < k]
        items, shares = np.full((users, k), -1, dtype=np.int32), np.zeros((users, k))
        items[at] = self.pairs.items[place < k]
        shares[at] = self.pairs.counts[place < k] / draws
        return items, shares

    def diversity(self) -> NDArray[np.float64]:
        """[M]: 1 - |A and B| / |A|, mean over all pairs of draws A, B; 0 where the lists are empty.

        All lists of a user are of one length, since what was seen is the same in every draw.
        """
        draws, users, _ = self.lists.shape
        counts = self.pairs.counts
        shared = np.bincount(self.pairs.users, counts * (counts - 1), users) / (draws * (draws - 1))
        lengths = (self.lists[0] >= 0).sum(axis=1)
        return np.where(lengths > 0, 1 - shared / np.maximum(lengths, 1), 0.0)

    def distinct(self) -> NDArray[np.int64]:
        """[M]: how many items some draw lists."""
        return np.bincount(self.pairs.users, minlength=self.lists.shape[1])


@dataclass(frozen=True)
class Pairs:
    """users, items, and in how many draws the item makes the list: [n] each, user by user in the order by share."""

    users: NDArray[np.int64]
    items: NDArray[np.int32]
    counts: NDArray[np.int64]


def draw_seed(seed: int, draw: int) -> int:
    """The scoring seed of a draw: the model's own for the first, 0, then 63 bits mixed from both numbers."""
    return seed if draw == 0 else int(np.random.SeedSequence((seed, draw)).generate_state(1, np.uint64)[0]) >> 1


def draw_lists(model: Recommender, queries: Queries, seen: Queries | None, k: int, draws: int, memory_mb: int) -> Draws:
    """The top k of all `queries` under `draws` scoring seeds, `seen` left out; the model keeps its own seed."""
    own = model.scoring_seed
    lists = np.empty((draws, len(queries), k), dtype=np.int32)
    try:
        for draw in range(draws):
            model.scoring_seed = draw_seed(own, draw)
            lists[draw] = rank(model, queries, [seen], k, memory_mb)[0].items.numpy()
    finally:
        model.scoring_seed = own
    return Draws(lists, queries.n_items)


def judge_draws(model: Recommender, asked: Asked, cutoff: int, config: EvaluationConfig, seed: int) -> DrawsReport:
    """What the draws of `model`, in evaluation mode, are good for, over at most `config.draw_users` of those asked."""
    if len(asked.users) > config.draw_users:
        chosen = np.random.default_rng(seed).choice(len(asked.users), config.draw_users, replace=False)
        asked = asked.select(np.sort(chosen))
    found = draw_lists(model, asked.queries, asked.seen, cutoff, config.draws, config.memory_mb)
    by_share, _ = found.by_share()
    agreed, single = _judged(by_share[None], asked), _judged(found.lists, asked)
    hit = hits(found.pairs.items[:, None], asked.users[found.pairs.users], asked.truth)[:, 0]
    bins = _bins(found, hit)
    apart = sum(one.pairs * abs(one.mean_share - one.hit_rate) for one in bins)
    return DrawsReport(
        draws=config.draws,
        users=len(asked.users),
        cutoff=cutoff,
        bins=bins,
        auc=_auc(found, hit),
        calibration_error=apart / max(1, len(hit)),
        by_share={name: float(values.mean()) for name, values in agreed.items()},
        one_draw={name: float(values.mean()) for name, values in single.items()},
        gain={
            name: paired_difference(agreed[name], single[name], config.bootstrap_samples, config.confidence, seed)
            for name in agreed
        },
        diversity=float(found.diversity().mean()),
        distinct=float(found.distinct().mean()),
        coverage={
            "one draw": float(np.mean([_coverage(lists, found.n_items) for lists in found.lists])),
            "by share": _coverage(by_share, found.n_items),
            "all draws": _coverage(found.lists, found.n_items),
        },
    )


def _judged(lists: NDArray[np.int32], asked: Asked) -> dict[str, NDArray[np.float64]]:
    """recall@k and ndcg@k of lists [n, M, k], as [M] each: the mean over the n lists of a user."""
    times, users, k = lists.shape
    tiled = np.tile(asked.users, times)
    found = accuracy(hits(lists.reshape(-1, k), tiled, asked.truth), asked.truth.sizes[tiled], [k])
    names = [f"{metric}@{k}" for metric in JUDGED]
    return {name: found[name].reshape(times, users).mean(axis=0, dtype=np.float64) for name in names}


def _bins(found: Draws, hit: NDArray[np.bool_]) -> list[ShareBin]:
    draws, counts = len(found.lists), found.pairs.counts
    place = (counts * BINS + draws - 1) // draws - 1  # whole numbers, so that a share of 30 % is never above 30 %
    pairs = np.bincount(place, minlength=BINS)
    listed = np.bincount(place, counts, BINS)
    taken = np.bincount(place, hit, BINS)
    return [
        ShareBin(
            above=at / BINS,
            up_to=(at + 1) / BINS,
            pairs=int(pairs[at]),
            mean_share=float(listed[at] / (draws * pairs[at])),
            hit_rate=float(taken[at] / pairs[at]),
        )
        for at in np.flatnonzero(pairs).tolist()
    ]


def _auc(found: Draws, hit: NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve by ranks (Mann and Whitney, 1947), ties counted half; None with one class only."""
    positive, negative = int(hit.sum()), int((~hit).sum())
    if not positive or not negative:
        return None
    from scipy.stats import rankdata  # it takes a second to load, and few ask for draws

    ranks = rankdata(found.pairs.counts)
    return float((ranks[hit].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _coverage(lists: NDArray[np.int32], n_items: int) -> float:
    """Share of the catalogue that is in some list."""
    return len(np.unique(lists[lists >= 0])) / n_items
