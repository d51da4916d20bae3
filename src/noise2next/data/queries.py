"""What a model is asked with: a batch of histories on a device."""

from __future__ import annotations

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
        lengths = self.lengths[users]
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        starts = self.indptr[users] - indptr[:-1]
        flat = torch.arange(int(indptr[-1]), device=self.device) + torch.repeat_interleave(starts, lengths)
        times = None if self.times is None else self.times[flat]
        return Queries(indptr, self.items[flat], self.weights[flat], times, self.keys[users], self.n_items)

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
