"""Items in groups by their vectors: k-means, no group below two items."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

LEAST = 2  # items: an encoder of a single item has nothing to compress


@dataclass(frozen=True)
class Clustering:
    """labels [I] int64 from 0, numbered by their lowest item; inertia: squared distances to the own group's mean."""

    labels: NDArray[np.int64]
    inertia: float

    @property
    def sizes(self) -> list[int]:
        return [int(size) for size in np.bincount(self.labels)]


def cluster(vectors: NDArray[np.float32], count: int, seed: int, n_init: int) -> Clustering:
    """The best of `n_init` k-means runs over vectors [I, D], I at least 2 * `count`; equal seeds give equal labels."""
    from sklearn.cluster import KMeans  # half a second that who only asks for `LEAST` need not wait
    from sklearn.exceptions import ConvergenceWarning

    points = vectors.astype(np.float64)
    # One thread: the partial sums of several are added in whatever order they finish.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than groups: filled up below
        found = KMeans(count, n_init=n_init, random_state=seed).fit(points)
    labels = _in_order(_filled(points, found.labels_.astype(np.int64), found.cluster_centers_))
    means = np.stack([points[labels == one].mean(axis=0) for one in range(count)])
    return Clustering(labels, float(((points - means[labels]) ** 2).sum()))


def _filled(points: NDArray[np.float64], labels: NDArray[np.int64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give a group below `LEAST` items the nearest items to its centre from groups that can spare one."""
    labels, sizes = labels.copy(), np.bincount(labels, minlength=len(centres))
    while sizes.min() < LEAST:
        poor = int(np.flatnonzero(sizes < LEAST)[0])
        distance = ((points - centres[poor]) ** 2).sum(axis=1)
        distance[sizes[labels] <= LEAST] = np.inf
        moved = int(distance.argmin())  # of equal distances the lower index
        sizes[labels[moved]] -= 1
        sizes[poor] += 1
        labels[moved] = poor
    return labels


def _in_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups: 0 holds the lowest item, 1 the lowest of the rest, and so on."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
