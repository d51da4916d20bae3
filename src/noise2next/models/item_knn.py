"""ItemKNN: items that the same people take (Sarwar et al., 2001; Deshpande and Karypis, 2004)."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import embedding_bag

from noise2next.data.queries import Queries
from noise2next.models.base import ClosedForm, ModelConfig
from noise2next.models.co_occurrence import sparse_rows
from noise2next.nn.top_k import top_k

COLUMNS = 1024  # target items whose similarities are dense at one time


class ItemKNN(ClosedForm):
    """Score item j by the summed similarity of a history's items that are among j's nearest neighbours.

    s_ij = x_i . x_j / (|x_i| |x_j| + shrink) over the weighted columns of the training matrix, s_jj = 0; each target
    item keeps its `neighbours` largest. Buffers: neighbours [I, K], similarities [I, K], where K is cut to I.
    """

    class Config(ModelConfig):
        neighbours: PositiveInt = 100
        shrink: NonNegativeFloat = 20.0

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        kept = min(config.neighbours, n_items)
        self.neighbours: Tensor
        self.similarities: Tensor
        self.register_buffer("neighbours", torch.zeros(n_items, kept, dtype=torch.int64))
        self.register_buffer("similarities", torch.zeros(n_items, kept))

    def solve(self, train: Queries) -> None:
        rows = sparse_rows(train)
        columns = rows.tocsc()
        norms = np.sqrt(np.asarray(columns.multiply(columns).sum(axis=0)))  # [I]
        for start in range(0, train.n_items, COLUMNS):
            targets = np.arange(start, min(start + COLUMNS, train.n_items))
            together = (columns[:, targets].T @ rows).toarray()  # [targets, I]
            size = norms[targets, None] * norms + self.config.shrink
            similar = np.divide(together, size, out=np.zeros_like(together), where=size > 0)
            similar[np.arange(len(targets)), targets] = 0
            values, indices = top_k(torch.from_numpy(similar), self.neighbours.shape[1])
            self.similarities[targets] = values.to(self.similarities)
            self.neighbours[targets] = indices.to(self.neighbours)

    def score(self, queries: Queries) -> Tensor:
        history = queries.multi_hot().T.contiguous()  # [I, B]; a target's score is a sum of its neighbours' rows
        return embedding_bag(self.neighbours, history, mode="sum", per_sample_weights=self.similarities).T
