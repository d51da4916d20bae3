"""Mult-DAE: a denoising autoencoder with a multinomial likelihood (Liang et al., WWW 2018, arXiv 1802.05814)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.models.rows import item_rows
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import multinomial_nll
from noise2next.nn.mlp import Perceptron
from noise2next.nn.sparse import SparseLinear


class MultDAE(Trainable):
    """Drop a part of a user's row and restore the whole as draws from one multinomial over the items."""

    class Config(ModelConfig):
        hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (200,)
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of the row at length 1
        l2: NonNegativeFloat = 0.01 / 500  # times the sum of squared weights, biases apart; the authors' batch is 500

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.layers = Perceptron([n_items, *config.hidden, n_items], sparse=True)
        for layer in self._linear_layers():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        row = item_rows(batch)
        unit = row.normalised()
        logits = self.layers(unit.with_values(self.dropout(unit.values)))
        squares = torch.stack([layer.weight.square().sum() for layer in self._linear_layers()])
        return {"nll": multinomial_nll(logits, row), "l2": self.config.l2 * squares.sum()}

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        logits: Tensor = self.layers(item_rows(queries).normalised())
        return logits

    def _linear_layers(self) -> list[nn.Linear | SparseLinear]:
        return [layer for layer in self.layers.modules() if isinstance(layer, nn.Linear | SparseLinear)]
