"""GRU4Rec: a recurrent network over a history (Hidasi et al., ICLR 2016, arXiv 1511.06939), in its form for users.

The paper reads parallel sessions one step at a time, with the gradient cut after each step. For users' histories the
usual form is taken: a history is one session, the gradient goes back through all of its steps, and the loss is
cross-entropy against all items. The items' embeddings are read and scored by the same table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.dropout import Dropout
from noise2next.nn.gru import gru_states
from noise2next.nn.losses import softmax_cross_entropy
from noise2next.nn.packing import Packing


class GRU4Rec(Trainable):
    """Carry a state from item to item, and score by the last one."""

    class Config(ModelConfig):
        embedding_size: PositiveInt = 64  # D
        hidden: PositiveInt = 128  # H
        max_length: PositiveInt = 50
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of the embeddings that are read

    reads_order: ClassVar[bool] = True

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(n_items, config.embedding_size)
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(config.embedding_size, config.hidden)
        self.dense = nn.Linear(config.hidden, config.embedding_size)
        self._initialise()

    def states(self, items: Tensor, packing: Packing) -> Tensor:
        """What is known after each item, oldest first: items [n] -> [n, D]."""
        state: Tensor = self.dense(gru_states(self.gru, self.dropout(self.items(items)), packing))
        return state

    @torch.no_grad()
    def _initialise(self) -> None:
        """Glorot's uniform for every matrix, of a gate as in the authors' code, and zero biases."""
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            elif parameter.shape[0] == 3 * self.config.hidden:
                for gate in parameter.chunk(3):
                    nn.init.xavier_uniform_(gate)
            else:
                nn.init.xavier_uniform_(parameter)

    # --- training: a user is a sample, and each of its places asks for the next item ----------------------------------

    def samples(self, train: Queries) -> int:
        return int((train.lengths > 1).sum())

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        """One epoch of the histories that have a next item."""
        return super().batches(train.select((train.lengths > 1).nonzero().squeeze(1)), size, order)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        history, targets = batch.last(self.config.max_length + 1).with_next()
        states = self.states(history.items, Packing(history.indptr))
        return {"cross_entropy": softmax_cross_entropy(states, self.items.weight, targets)}

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        """By the state after the newest item; a history without items scores all alike."""
        recent = queries.last(self.config.max_length)
        packing = Packing(recent.indptr)
        return F.linear(packing.newest(self.states(recent.items, packing)), self.items.weight)
