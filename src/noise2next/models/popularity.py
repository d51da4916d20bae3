"""MostPop: everyone gets what most have taken. The row that any personal model must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from noise2next.data.queries import Queries
from noise2next.models.base import ClosedForm, ModelConfig


class MostPop(ClosedForm):
    """Score an item by the sum of its training interactions' weights.

    With uniform weights that is its number of interactions; with weights by age, recent popularity.
    """

    class Config(ModelConfig):
        pass

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.popularity: Tensor
        self.register_buffer("popularity", torch.zeros(n_items))

    def solve(self, train: Queries) -> None:
        counts = torch.bincount(train.items, weights=train.weights.double(), minlength=train.n_items)
        self.popularity.copy_(counts)

    def score(self, queries: Queries) -> Tensor:
        return self.popularity.repeat(len(queries), 1)
