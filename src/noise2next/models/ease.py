"""EASE: Embarrassingly Shallow Autoencoders for sparse data (Steck, WWW 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import embedding_bag

from noise2next.data.queries import Queries
from noise2next.models.base import ClosedForm, ModelConfig
from noise2next.models.co_occurrence import sparse_rows
from noise2next.nn.packing import Packing


class EASE(ClosedForm):
    """Regress each item on all others with a ridge, in closed form (equations 5 to 8 of the paper).

    With G = X'X and P = (G + l2 I)^-1 the weights are B_ij = -P_ij / P_jj, zero on the diagonal; scores are X B. For
    the next item the row that is asked with may fade with age; what is learned stays the same.
    """

    class Config(ModelConfig):
        l2: PositiveFloat = 1000.0
        decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of a weight for every newer interaction, when asked
        last: PositiveInt | None = None  # the newest interactions that are asked with; None: all

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(n_items, n_items))

    @classmethod
    def bytes_needed(cls, n_items: int) -> int:
        """The Gram matrix twice in float64 and the weights in float32: 80 GB at 64,000 items."""
        return 20 * n_items**2

    @classmethod
    def needs_order(cls, config: ModelConfig) -> bool:
        assert isinstance(config, cls.Config)
        return config.decay < 1 or config.last is not None

    def solve(self, train: Queries) -> None:
        rows = sparse_rows(train)
        # float64: a float32 inverse moves the fourth digit of the metrics once the Gram matrix is ill conditioned
        gram = torch.from_numpy((rows.T @ rows).toarray()).to(self.weights.device)
        gram.diagonal().add_(self.config.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram), out=gram)
        weights = inverse.div_(-inverse.diagonal().clone())
        self.weights.copy_(weights.fill_diagonal_(0))

    def score(self, queries: Queries) -> Tensor:
        once = self._fading(queries).folded()
        return embedding_bag(
            once.items,
            self.weights,
            once.indptr,
            mode="sum",
            per_sample_weights=once.weights,
            include_last_offset=True,
        )

    def _fading(self, queries: Queries) -> Queries:
        """The newest `last` interactions, each weight times decay^age; of repeats the newest then weighs most."""
        kept = queries if self.config.last is None else queries.last(self.config.last)
        return replace(kept, weights=kept.weights * self.config.decay ** Packing(kept.indptr).age)
