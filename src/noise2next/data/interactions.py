"""Interactions in memory, and the split that a model learns and is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import SplitConfig
from noise2next.data.vocabulary import Vocabulary
from noise2next.workspace import require, verify


@dataclass(frozen=True)
class Interactions:
    """All users' histories as flat arrays sorted by (user, time, line of the log).

    indptr [U+1], items [N] (index, or -1 for an item that training never saw), times [N] (microseconds since 1970, or
    a place in the order) or None, weights [N]. What was seen is told by structure alone, never by a weight.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | None
    weights: NDArray[np.float32]

    @classmethod
    def of(
        cls, users: NDArray[np.integer], items: NDArray[np.integer], times: NDArray[np.int64] | None, n_users: int
    ) -> Interactions:
        """From rows that are sorted by user already; weights are one."""
        if len(users) and np.any(np.diff(users) < 0):
            raise ValueError("rows are not sorted by user")
        if len(users) and users[-1] >= n_users:
            raise ValueError(f"user {users[-1]} is beyond the {n_users} users")
        indptr = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n_users), out=indptr[1:])
        return cls(indptr, items.astype(np.int32), times, np.ones(len(items), dtype=np.float32))

    @property
    def n_users(self) -> int:
        return len(self.indptr) - 1

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[U]"""
        return np.diff(self.indptr)

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """[N], the user of each interaction"""
        return np.repeat(np.arange(self.n_users), self.lengths)

    def weighted(self, weights: NDArray[np.float32]) -> Interactions:
        return replace(self, weights=weights)

    def followed_by(self, later: Interactions) -> Interactions:
        """Each user's history with `later` appended."""
        users = np.concatenate([self.users, later.users])
        order = np.argsort(users, kind="stable")
        times = None if self.times is None or later.times is None else np.concatenate([self.times, later.times])[order]
        return Interactions(
            self.indptr + later.indptr,
            np.concatenate([self.items, later.items])[order],
            times,
            np.concatenate([self.weights, later.weights])[order],
        )

    def in_time_order(self) -> Interactions:
        """Each history oldest first; rows of equal time, and histories without times, stay as they are."""
        if self.times is None:
            return self
        order = np.lexsort((self.times, self.users))
        return replace(self, items=self.items[order], times=self.times[order], weights=self.weights[order])


@dataclass(frozen=True)
class Split:
    """Train, validation and test of one dataset over one user and one item vocabulary.

    Items are those of train; a validation or test row of another item has index -1: it can only be missed.
    """

    config: SplitConfig
    users: Vocabulary
    items: Vocabulary
    train: Interactions
    valid: Interactions
    test: Interactions
    has_clock: bool

    @classmethod
    def load(cls, folder: Path, config: SplitConfig, has_clock: bool, with_test: bool = True) -> Split:
        """Read what the step `prepare` wrote; without the test part, which stays empty, for who may not see it."""
        verify(require(folder, "prepare"))
        users, items = Vocabulary.load(folder / "users.parquet"), Vocabulary.load(folder / "items.parquet")

        def part(name: str) -> Interactions:
            table = pq.read_table(folder / f"{name}.parquet")
            timed = "time" in table.column_names and table.column("time").null_count == 0
            times = table.column("time").to_numpy() if timed else None
            return Interactions.of(table.column("user").to_numpy(), table.column("item").to_numpy(), times, len(users))

        nothing = np.empty(0, dtype=np.int32)
        test = part("test") if with_test else Interactions.of(nothing, nothing, None, len(users))
        return cls(config, users, items, part("train"), part("valid"), test, has_clock)

    @property
    def n_items(self) -> int:
        return len(self.items)

    def known(self, at: str) -> Interactions:
        """What a model may read of each user when it is judged `at` "valid" or "test", unweighted."""
        return self._before_test() if at == "test" and self.config.history == "train+valid" else self.train

    def seen(self, at: str) -> Interactions | None:
        """What is left out of the ranking: everything before the part that is judged, by structure."""
        if not self.config.mask_seen:
            return None
        return self._before_test() if at == "test" else self.train

    def truth(self, at: str) -> Interactions:
        return self.test if at == "test" else self.valid

    def _before_test(self) -> Interactions:
        both = self.train.followed_by(self.valid)
        return both.in_time_order() if self.config.kind == "random" else both  # parts drawn by lot interleave in time
