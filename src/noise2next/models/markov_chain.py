"""Item-to-item transitions: what followed the newest items of a history, in others' histories. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from scipy import sparse
from torch import Tensor

from noise2next.data.queries import Queries, ranges
from noise2next.models.base import ClosedForm, ModelConfig
from noise2next.nn.packing import Packing

POPULARITY = 1e-6  # of the most popular item: it orders what no transition tells apart


class MarkovChain(ClosedForm):
    """Score an item by how often, and how soon, it followed the newest items of a history.

    M_ij sums 1/g over all places of the training histories where j came g steps after i, g up to `window`; row i is
    divided by a power of its sum. The score of j is the sum over ages a < `last` of decay^a M_ij, i the item of age a.
    Every interaction counts one: time weights are not read.
    Buffers: M by rows, indptr [I+1], followers [n], strengths [n]; popularity [I], the most popular item's being one.
    """

    reads_order = True

    class Config(ModelConfig):
        window: PositiveInt = 10
        last: PositiveInt = 5
        decay: Annotated[float, Field(gt=0, le=1)] = 0.7
        row_power: NonNegativeFloat = 0.5

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.indptr: Tensor
        self.followers: Tensor
        self.strengths: Tensor
        self.popularity: Tensor
        self.register_buffer("indptr", torch.zeros(n_items + 1, dtype=torch.int64))
        self.register_buffer("followers", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("strengths", torch.zeros(0))
        self.register_buffer("popularity", torch.zeros(n_items))
        self.register_load_state_dict_pre_hook(_make_room)  # type: ignore[no-untyped-call]

    def solve(self, train: Queries) -> None:
        moves = _transitions(train, self.config.window)
        totals = moves.sum(axis=1)
        moves.data /= np.repeat(totals, np.diff(moves.indptr)) ** self.config.row_power
        self.indptr.copy_(torch.from_numpy(moves.indptr))
        self.followers = torch.from_numpy(moves.indices).to(self.followers)
        self.strengths = torch.from_numpy(moves.data).to(self.strengths)
        counts = torch.bincount(train.items, minlength=train.n_items).double()
        self.popularity.copy_(counts / counts.max().clamp(min=1))

    def score(self, queries: Queries) -> Tensor:
        """[B, I] float64: in float32 the popularity would be lost beside a transition."""
        scores = (POPULARITY * self.popularity.double()).repeat(len(queries), 1)
        starts, lengths = self.indptr[:-1], self.indptr.diff()
        for age in range(self.config.last):
            users = (queries.lengths > age).nonzero().squeeze(1)
            items = queries.items[queries.indptr[1:][users] - 1 - age]
            _, flat = ranges(starts[items], lengths[items])
            rows = torch.repeat_interleave(users, lengths[items], output_size=len(flat))
            place = rows * queries.n_items + self.followers[flat]
            # one item leads to another once, so no place is met twice and the sum has one order on every device
            scores.view(-1).index_add_(0, place, self.strengths[flat].double(), alpha=self.config.decay**age)
        return scores


def _transitions(train: Queries, window: int) -> sparse.csr_array:
    """M [I, I] float64 before its rows are divided, columns in order."""
    age, items = Packing(train.indptr).age.cpu().numpy(), train.items.cpu().numpy()
    shape = (train.n_items, train.n_items)
    moves = sparse.csr_array(shape)
    for gap in range(1, min(window, len(items) - 1) + 1):
        before = np.flatnonzero(age >= gap)
        pairs = (items[before], items[before + gap])
        moves = moves + sparse.csr_array((np.ones(len(before)), pairs), shape=shape) / gap
    moves.sort_indices()
    return moves


def _make_room(model: Any, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """How many transitions there are is known only once they are counted."""
    for name in ("followers", "strengths"):
        if prefix + name in state:
            setattr(model, name, getattr(model, name).new_empty(state[prefix + name].shape))
