"""What recommended lists are like, apart from being right: how much of the catalogue they show, and which part.

`popularity` [I] is the number of training users of each item; every item of a catalogue has at least one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noise2next.data.interactions import Interactions
from noise2next.evaluation.metrics import distinct_keys

BANDS = 10


def popularity(train: Interactions, n_items: int) -> NDArray[np.int64]:
    """[I]: how many users have each item, a repeat counted once."""
    return np.bincount(distinct_keys(train, n_items) % n_items, minlength=n_items)


def describe(
    top: NDArray[np.int32], popularity: NDArray[np.int64], n_users: int, cutoffs: Sequence[int]
) -> dict[str, float]:
    """For each cutoff k, over the first k of the lists top [M, K] (-1 is padding), `n_users` having trained:

    coverage@k    share of the catalogue that is in some list
    gini@k        inequality of the items' exposures: 0 all equal, near 1 one item has all (Gini, 1912)
    novelty@k     mean self-information -log2(users of the item / training users), in bits (Zhou et al., 2010)
    popularity@k  mean number of training users of a recommended item (Yin et al., 2012)
    """
    information = -np.log2(np.maximum(popularity, 1) / n_users)
    found: dict[str, float] = {}
    for k in cutoffs:
        shown = exposure(top[:, :k], len(popularity))
        slots = max(1, shown.sum())
        found[f"coverage@{k}"] = float((shown > 0).mean())
        found[f"gini@{k}"] = gini(shown)
        found[f"novelty@{k}"] = float(shown @ information / slots)
        found[f"popularity@{k}"] = float(shown @ popularity / slots)
    return found


def exposure(top: NDArray[np.int32], n_items: int) -> NDArray[np.int64]:
    """[I]: in how many lists each item is."""
    return np.bincount(top[top >= 0], minlength=n_items)


def gini(amounts: NDArray[np.int64]) -> float:
    """sum_i (2 i - n - 1) x_i / (n sum x) over x ascending, i from 1; 0 where nothing is shared out."""
    if not amounts.sum():
        return 0.0
    place = np.arange(1, len(amounts) + 1)
    return float((2 * place - len(amounts) - 1) @ np.sort(amounts) / (len(amounts) * amounts.sum()))


def band_shares(amounts: NDArray[np.int64], popularity: NDArray[np.int64]) -> list[float]:
    """How `amounts` [I] fall on ten bands of the catalogue, most popular tenth of the items first; sum 1."""
    order = np.argsort(-popularity, kind="stable")
    total = max(1, int(amounts.sum()))
    return [float(amounts[band].sum() / total) for band in np.array_split(order, BANDS)]
