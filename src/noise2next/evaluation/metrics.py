"""Accuracy of ranked lists, user by user, at all cutoffs at once.

With g the items that a user took in the part that is judged, and rank counted from 1:

    precision@k  hits in the first k / k
    recall@k     hits in the first k / |g|, not / min(k, |g|)
    hit_rate@k   1 if any of the first k is a hit
    mrr@k        1 / rank of the first hit if it is among the first k, else 0
    ndcg@k       sum of 1 / log2(rank + 1) over the hits in the first k / the same sum for min(k, |g|) hits in front
    map@k        sum of precision@rank over the hits in the first k / min(k, |g|)

An item of g that training never saw counts in |g| and is never hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noise2next.config import METRICS
from noise2next.data.interactions import Interactions


@dataclass(frozen=True)
class Truth:
    """What users took: keys [n] = user * I + item, sorted and distinct; sizes [U] = |g|; n_items = I."""

    keys: NDArray[np.int64]
    sizes: NDArray[np.int64]
    n_items: int

    @classmethod
    def of(cls, taken: Interactions, n_items: int) -> Truth:
        """A repeated item counts once; each interaction with an unknown item (-1) counts by itself."""
        keys = distinct_keys(taken, n_items)
        count = np.bincount(keys // n_items, minlength=taken.n_users)
        unknown = np.bincount(taken.users[taken.items < 0], minlength=taken.n_users)
        return cls(keys, count + unknown, n_items)


def distinct_keys(taken: Interactions, n_items: int) -> NDArray[np.int64]:
    """user * I + item of every interaction with a known item, sorted, repeats once."""
    known = taken.items >= 0
    keys = np.sort(taken.users[known] * n_items + taken.items[known])
    return keys[np.diff(keys, prepend=-1) > 0]  # np.unique hashes, which is ten times slower here


def hits(top: NDArray[np.int32], users: NDArray[np.int64], truth: Truth) -> NDArray[np.bool_]:
    """Which places of the lists top [M, K] of users [M] hold an item of the truth; padding (-1) never does. [M, K]"""
    if not len(truth.keys):
        return np.zeros(top.shape, dtype=np.bool_)
    wanted = users[:, None] * truth.n_items + top
    place = np.searchsorted(truth.keys, wanted)
    place[place == len(truth.keys)] = 0
    found: NDArray[np.bool_] = (truth.keys[place] == wanted) & (top >= 0)
    return found


def accuracy(
    hit: NDArray[np.bool_], sizes: NDArray[np.int64], cutoffs: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """Every metric at every cutoff, named `recall@20`: hit [M, K], sizes [M] >= 1 -> float32 [M] each; K >= cutoffs."""
    rank = np.arange(1, hit.shape[1] + 1)
    gain = 1 / np.log2(rank + 1)
    count = hit.cumsum(axis=1)
    gained = (hit * gain).cumsum(axis=1)
    precisions = (hit * (count / rank)).cumsum(axis=1)
    ideal = gain.cumsum()
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, np.inf)
    found: dict[str, NDArray[np.float64]] = {}
    for k in cutoffs:
        most = np.minimum(sizes, k)
        found[f"recall@{k}"] = count[:, k - 1] / sizes
        found[f"ndcg@{k}"] = gained[:, k - 1] / ideal[most - 1]
        found[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0)
        found[f"precision@{k}"] = count[:, k - 1] / k
        found[f"hit_rate@{k}"] = (count[:, k - 1] > 0).astype(np.float64)
        found[f"map@{k}"] = precisions[:, k - 1] / most
    return {f"{name}@{k}": found[f"{name}@{k}"].astype(np.float32) for name in METRICS for k in cutoffs}
