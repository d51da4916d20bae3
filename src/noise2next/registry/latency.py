"""What one request costs: packages side by side, on whatever machine the gate happens to stand on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from noise2next.registry.packaging import GOLDEN_K, Package

ROUNDS = 5
REQUESTS = 10  # of a round, each another user's history


def side_by_side(packages: Sequence[Package]) -> list[float]:
    """Milliseconds of one thread for one bare history, of each package: the least over the rounds of their medians.

    The packages take turns, round by round, so that one minute's weather is the same for all. The clock is the
    thread's own: on an idle machine it agrees with the one on the wall (benchmarks/latency.md), and on a busy one it
    stands still while others compute. What they still cost, by emptying caches or sharing a core, can only add, so the
    least reading is the nearest to the truth (benchmarks/gate.md shows all three under load).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock sees no other thread
    try:
        asked = [_histories(package) for package in packages]
        for package, histories in zip(packages, asked, strict=True):  # warm up
            package.for_histories(histories[:1], GOLDEN_K)
        rounds = [
            [_median(package, histories) for package, histories in zip(packages, asked, strict=True)]
            for _ in range(ROUNDS)
        ]
    finally:
        torch.set_num_threads(threads)
    return [min(readings) for readings in zip(*rounds, strict=True)]


def _median(package: Package, histories: Sequence[Sequence[str]]) -> float:
    spent = []
    for history in histories:
        start = time.thread_time()
        package.for_histories([history], GOLDEN_K)
        spent.append(1000 * (time.thread_time() - start))
    return statistics.median(spent)


def _histories(package: Package) -> list[list[str]]:
    """Of users spread over the vocabulary, as raw ids."""
    known, ids = package.histories, package.artifact.items.ids
    active = np.flatnonzero(known.lengths)
    chosen = active[np.unique(np.linspace(0, len(active) - 1, min(REQUESTS, len(active))).astype(np.int64))]
    return [[ids[item] for item in known.items[known.indptr[user] : known.indptr[user + 1]]] for user in chosen]
