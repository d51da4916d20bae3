"""EASE: Embarrassingly Shallow Autoencoders for sparse data (Steck, WWW 2019)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import embedding_bag

from noise2next.data.queries import Queries
from noise2next.models.base import ClosedForm, ModelConfig
from noise2next.models.co_occurrence import sparse_rows


class EASE(ClosedForm):
    """Regress each item on all others with a ridge, in closed form (equations 5 to 8 of the paper).

    With G = X'X and P = (G + l2 I)^-1 the weights are B_ij = -P_ij / P_jj, zero on the diagonal; scores are X B.
    """

    class Config(ModelConfig):
        l2: PositiveFloat = 1000.0

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(n_items, n_items))

    @classmethod
    def bytes_needed(cls, n_items: int) -> int:
        """The Gram matrix twice in float64 and the weights in float32: 80 GB at 64,000 items."""
        return 20 * n_items**2

    def solve(self, train: Queries) -> None:
        rows = sparse_rows(train)
        # float64: a float32 inverse moves the fourth digit of the metrics once the Gram matrix is ill conditioned
        gram = torch.from_numpy((rows.T @ rows).toarray()).to(self.weights.device)
        gram.diagonal().add_(self.config.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram), out=gram)
        weights = inverse.div_(-inverse.diagonal().clone())
        self.weights.copy_(weights.fill_diagonal_(0))

    def score(self, queries: Queries) -> Tensor:
        once = queries.folded()
        return embedding_bag(
            once.items,
            self.weights,
            once.indptr,
            mode="sum",
            per_sample_weights=once.weights,
            include_last_offset=True,
        )
