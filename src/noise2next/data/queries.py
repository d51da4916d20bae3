"""What a model is asked with: a batch of histories on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noise2next.data.interactions import Interactions


@dataclass(frozen=True)
class Queries:
    """B histories as flat tensors, each oldest first.

    indptr [B+1] int64, items [n] int64, weights [n] float32, times [n] int64 or None, keys [B] int64: a stable number
    for each user, from which stochastic models draw (with the seed), so that a list never depends on batch-mates.
    """

    indptr: Tensor
    items: Tensor
    weights: Tensor
    times: Tensor | None
    keys: Tensor
    n_items: int

    @classmethod
    def of(
        cls, histories: Interactions, n_items: int, keys: NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> Queries:
        """All users of `histories`; unknown items (-1) are left out. keys [U] as `Vocabulary.keys` gives them."""
        known = histories.items >= 0
        lengths = np.bincount(histories.users[known], minlength=histories.n_users)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        times = None if histories.times is None else torch.from_numpy(histories.times[known]).to(device)
        return cls(
            torch.from_numpy(indptr).to(device),
            torch.from_numpy(histories.items[known].astype(np.int64)).to(device),
            torch.from_numpy(histories.weights[known]).to(device),
            times,
            torch.from_numpy(keys).to(device),
            n_items,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def device(self) -> torch.device:
        return self.items.device

    @property
    def lengths(self) -> Tensor:
        """[B]"""
        return self.indptr.diff()

    def rows(self) -> Tensor:
        """[n], the place in the batch of each interaction"""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.device), self.lengths, output_size=len(self.items)
        )

    def select(self, users: Tensor) -> Queries:
        """The histories at `users` [b], in that order."""
        indptr, flat = ranges(self.indptr[users], self.lengths[users])
        times = None if self.times is None else self.times[flat]
        return Queries(indptr, self.items[flat], self.weights[flat], times, self.keys[users], self.n_items)

    def last(self, count: int) -> Queries:
        """The newest `count` interactions of each history."""
        lengths = self.lengths.clamp(max=count)
        return self._cut(self.indptr[1:] - lengths, lengths)

    def before_last(self) -> tuple[Queries, Tensor]:
        """Each history without its newest interaction, and that one's item [B]. No history may be empty."""
        return self._cut(self.indptr[:-1], self.lengths - 1), self.items[self.indptr[1:] - 1]

    def with_next(self) -> tuple[Queries, Tensor]:
        """Each history without its newest interaction, and after each of the n - B left the item that came next.

        No history may be empty.
        """
        before, _ = self.before_last()
        place = torch.arange(len(before.items), device=self.device) + before.rows()  # a history is one longer here
        return before, self.items[place + 1]

    def _cut(self, starts: Tensor, lengths: Tensor) -> Queries:
        """Of each history the `lengths` [B] interactions from the flat place `starts` [B] on."""
        indptr, flat = ranges(starts, lengths)
        times = None if self.times is None else self.times[flat]
        return Queries(indptr, self.items[flat], self.weights[flat], times, self.keys, self.n_items)

    def multi_hot(self) -> Tensor:
        """[B, I] float32: the weight of each item in a history, zero elsewhere; of repeats the largest counts."""
        dense = torch.zeros(len(self) * self.n_items, device=self.device)
        place = self.rows() * self.n_items + self.items
        dense.scatter_reduce_(0, place, self.weights, reduce="amax")
        return dense.view(len(self), self.n_items)

    def folded(self) -> Queries:
        """The same histories with each item once, by item, its largest weight kept, times left out."""
        place, inverse = torch.unique(self.rows() * self.n_items + self.items, return_inverse=True)
        weights = self.weights.new_zeros(len(place)).scatter_reduce_(0, inverse, self.weights, reduce="amax")
        indptr = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        indptr[1:] = torch.bincount(place // self.n_items, minlength=len(self)).cumsum(0)
        return Queries(indptr, place % self.n_items, weights, None, self.keys, self.n_items)


@dataclass(frozen=True)
class Prefixes:
    """Every interaction that has one before it, as a training sample: what was before, and what came next.

    Index ranges over the flat arrays of `train`, on its device: sample p is the range starts[p] to targets[p], both
    included, of user users[p]. All [P] int64.
    """

    train: Queries
    users: Tensor
    starts: Tensor
    targets: Tensor

    @classmethod
    def of(cls, train: Queries, max_length: int) -> Prefixes:
        """The samples of all histories; each reads at most the `max_length` interactions before its target."""
        rows = train.rows()
        place = torch.arange(len(rows), device=train.device)
        first = train.indptr[:-1][rows]
        targets = (place > first).nonzero().squeeze(1)
        return cls(train, rows[targets], torch.maximum(first[targets], targets - max_length), targets)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, chosen: Tensor) -> Queries:
        """The samples at `chosen` [b]: histories whose newest interaction is the target, see `Queries.before_last`."""
        starts = self.starts[chosen]
        indptr, flat = ranges(starts, self.targets[chosen] - starts + 1)
        of = self.train
        times = None if of.times is None else of.times[flat]
        return Queries(indptr, of.items[flat], of.weights[flat], times, of.keys[self.users[chosen]], of.n_items)

    def batches(self, size: int, order: torch.Generator) -> Iterator[Queries]:
        """One epoch: every sample once in random order, the last batch may be smaller. `order` lives on the CPU."""
        for chosen in torch.split(torch.randperm(len(self), generator=order).to(self.targets.device), size):
            yield self.batch(chosen)


def ranges(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Flat ranges laid end to end: starts [B], lengths [B] -> bounds [B+1] and the flat places [sum of lengths]."""
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    total = int(indptr[-1])
    shift = torch.repeat_interleave(starts - indptr[:-1], lengths, output_size=total)
    return indptr, torch.arange(total, device=starts.device) + shift
