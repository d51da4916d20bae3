"""SASRec: self-attention over a history in its order (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

The authors' code, not the paper alone, decides two points: the residual connections add what was normalised, and keys
and values come from what was not. The authors draw users with replacement and use Adam's beta2 of 0.98; here an epoch
has every user once, and the optimiser is the one of all models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from noise2next.data.negatives import Unseen
from noise2next.data.queries import Queries
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import softmax_cross_entropy
from noise2next.nn.packing import Packing, evened


class SASRec(Trainable):
    """Attend from each item of a history to what is older, and score by the newest one's state."""

    class Config(ModelConfig):
        embedding_size: PositiveInt = 50  # D
        blocks: PositiveInt = 2
        heads: PositiveInt = 1
        max_length: PositiveInt = 50  # 200 on ML-1M
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # 0.2 on ML-1M
        loss: Literal["bce", "ce"] = "bce"  # against one item that the user never took, as published; or against all

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.embedding_size % self.heads:
                raise ValueError(f"embedding_size {self.embedding_size} cannot be shared by {self.heads} heads")
            return self

    reads_order: ClassVar[bool] = True

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(n_items, config.embedding_size)
        self.positions = nn.Embedding(config.max_length, config.embedding_size)  # the last one is the newest's
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.embedding_size, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.embedding_size, eps=1e-8)
        self._initialise()

    # --- the network (paper section 3) --------------------------------------------------------------------------------

    def states(self, items: Tensor, packing: Packing, newest_only: bool = False) -> Tensor:
        """What is known after each item, oldest first: items [n] -> [n, D], or [B, D] with `newest_only`."""
        x = self.items(items) * self.config.embedding_size**0.5 + self.positions(
            self.config.max_length - 1 - packing.age
        )
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, packing, newest_only=newest_only and block is self.blocks[-1])
        state: Tensor = self.norm(x)
        return state

    @torch.no_grad()
    def _initialise(self) -> None:
        """Glorot's uniform for every matrix, embeddings too, and zero biases, as in the authors' code."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    # --- training (paper section 3.5): a user is a sample, and each of its places asks for the next item --------------

    def samples(self, train: Queries) -> int:
        return int((train.lengths > 1).sum())

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        """One epoch of the whole histories that have a next item; an item outside them can so be told."""
        return super().batches(train.select((train.lengths > 1).nonzero().squeeze(1)), size, order)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        history, targets = batch.last(self.config.max_length + 1).with_next()
        items, packing = evened(history.items, history.indptr)
        states = self.states(items, packing)[: len(targets)]  # [n, D]
        if self.config.loss == "ce":
            return {"cross_entropy": softmax_cross_entropy(states, self.items.weight, targets)}
        negatives = Unseen(batch).draw(packing.rows[: len(targets)])
        asked = self.items(torch.stack([targets, negatives]))  # [2, n, D]
        right, wrong = (asked * states).sum(dim=-1)
        return {"binary_cross_entropy": (F.softplus(-right) + F.softplus(wrong)).mean()}

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        """By the state at the newest item; a history without items scores all alike."""
        some = queries.lengths.nonzero().squeeze(1)
        recent = queries.last(self.config.max_length).select(some)
        state = self.items.weight.new_zeros(len(queries), self.config.embedding_size)
        state[some] = self.states(recent.items, Packing(recent.indptr), newest_only=True)
        return F.linear(state, self.items.weight)


class Block(nn.Module):
    """Attention, then two layers at each place; both add to what they normalised."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(size, eps=1e-8)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.before_layers = nn.LayerNorm(size, eps=1e-8)
        self.inner, self.outer = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, newest_only: bool = False) -> Tensor:
        """x [n, D] -> [n, D], or [B, D] with `newest_only`."""
        asking = self.before_attention(packing.newest(x) if newest_only else x)
        found = packing.attend(
            self.query(asking),
            self.key(x),
            self.value(x),
            self.heads,
            causal=True,
            dropout=self.dropout,
            newest_only=newest_only,
        )
        x = self.before_layers(asking + found)
        inner = self.dropout(self.inner(x).relu_())
        out: Tensor = x + self.dropout(self.outer(inner))
        return out
