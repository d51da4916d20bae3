"""How sure a mean over users is: the bootstrap, users drawn anew with replacement (Efron, 1979)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise2next.config import Frozen

DRAWS_AT_ONCE = 2**22


class Interval(Frozen):
    """A mean and the percentile interval around it."""

    mean: float
    low: float
    high: float


def resampled_means(values: NDArray[Any], samples: int, seed: int) -> NDArray[np.float64]:
    """values [M, F], a row a user -> means [samples, F] over M users drawn with replacement.

    One draw of users serves all columns, so the difference of two columns is resampled in pairs. The same seed draws
    the same users. Memory is bounded whatever M is.
    """
    users = len(values)
    draw = np.random.default_rng(seed)
    columns = np.ascontiguousarray(values, dtype=np.float64)
    means = np.empty((samples, columns.shape[1]))
    for start in range(0, samples, block := max(1, DRAWS_AT_ONCE // users)):
        rows = min(block, samples - start)
        drawn = draw.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        means[start : start + rows] = times.astype(np.float64) @ columns / users
    return means


def intervals(values: NDArray[Any], resampled: NDArray[np.float64], confidence: float) -> list[Interval]:
    """One interval a column: values [M, F] give the means, resampled [samples, F] the ends."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    means = values.mean(axis=0, dtype=np.float64)
    return [
        Interval(mean=m, low=lo, high=hi) for m, lo, hi in zip(*map(np.ndarray.tolist, (means, low, high)), strict=True)
    ]


def paired_difference(one: NDArray[Any], other: NDArray[Any], samples: int, confidence: float, seed: int) -> Interval:
    """The mean of one - other, [M] each over the same users in the same order, with its interval."""
    difference = (one.astype(np.float64) - other)[:, None]
    return intervals(difference, resampled_means(difference, samples, seed), confidence)[0]
