"""Known users' lists, worked out once for a version.

What a model gives to a known user is the same for as long as the version serves, so a thread works everyone out when
the version has begun, at a lower priority, and from then on such a user is looked up. Whoever is not there yet,
histories, longer lists and lists that treat seen items otherwise than the dataset are scored when they are asked for.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np

from noise2next.registry.packaging import Asked, Package, Reply

DEPTH = 100  # items of a list
MOST_BYTES = 512 << 20
LEAST_DEPTH = 10  # where not even this fits into the bytes, nothing is kept
TOGETHER = 256  # users of one call: more gain no speed, and the memory of a call is held for long
LOWER_PRIORITY = 5  # nice: whoever waits goes first, and yet under full load a fifth of a core is left for this


class KnownLists:
    """The lists of all users of `package`, in their order, as far as `done` [users]."""

    def __init__(self, package: Package, exclude_seen: bool) -> None:
        self._package, self._exclude_seen = package, exclude_seen
        users, items = len(package.users), len(package.artifact.items)
        fits = MOST_BYTES // (8 * max(1, users))
        self.depth = 0 if fits < min(LEAST_DEPTH, items) else min(DEPTH, fits, items)
        self.done = 0
        self._items = np.full((users, self.depth), -1, dtype=np.int32)
        self._scores = np.full((users, self.depth), -math.inf, dtype=np.float32)

    def begin(self, wanted: Callable[[], bool]) -> None:
        """Work them out in a thread, for as long as they are `wanted`."""
        threading.Thread(target=self.fill, args=(wanted,), name="listing", daemon=True).start()

    def fill(self, wanted: Callable[[], bool]) -> None:
        """Work them out here and now. On Linux a thread has a priority of its own, which is lowered for good."""
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWER_PRIORITY)
        if not self.depth:
            return
        for users, items, scores in self._package.everyone(self.depth, self._exclude_seen, TOGETHER):
            self._items[users], self._scores[users] = items, scores
            self.done = int(users[-1]) + 1
            if not wanted():
                return

    def find(self, asked: Sequence[Asked], k: int, exclude_seen: bool) -> list[Reply | None]:
        """The replies that are here, and None for queries that must be scored."""
        found: list[Reply | None] = [None] * len(asked)
        if exclude_seen != self._exclude_seen or k > self.depth:
            return found
        index, lengths, ids = (
            self._package.users.index,
            self._package.histories.lengths,
            self._package.artifact.items.ids,
        )
        rows = [-1 if one.user is None else index.get(one.user, -1) for one in asked]
        here = [place for place, row in enumerate(rows) if 0 <= row < self.done and lengths[row]]
        users = np.asarray([rows[place] for place in here], dtype=np.int64)
        items, scores = self._items[users, :k].tolist(), self._scores[users, :k].tolist()
        for place, row_items, row_scores, known in zip(here, items, scores, lengths[users].tolist(), strict=True):
            left = sum(score > -math.inf for score in row_scores)
            found[place] = Reply(
                items=[ids[item] for item in row_items[:left]],
                scores=row_scores[:left],
                known=known,
                unknown=[],
                fallback=None,
                reason=None,
            )
        return found
