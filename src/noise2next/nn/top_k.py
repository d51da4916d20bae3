"""The best k of each row in one order everywhere: score down, then index up."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row: scores [B, I] -> values [B, k], indices [B, k] int64; k is cut to I. No NaN.

    Of equal scores the lower index comes first, also at the edge of the list. torch.topk promises no order among
    equals and orders them differently on a CPU and a GPU, so rows whose edge is tied are settled again.
    """
    width = scores.shape[1]
    k = min(k, width)
    values, indices = torch.topk(scores, min(k + 1, width), dim=1)
    if width > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        values, indices = values[:, :k], indices[:, :k].contiguous()
        if len(tied):
            indices[tied] = _lowest(scores[tied], values[tied, -1:], k)
    indices = indices.sort(dim=1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _lowest(scores: Tensor, edge: Tensor, k: int) -> Tensor:
    """[b, k]: everything above `edge` [b, 1] and the first indices at it, in index order."""
    above, at_edge = scores > edge, scores == edge
    room = k - above.sum(dim=1, keepdim=True, dtype=torch.int32)
    chosen = above | (at_edge & (at_edge.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)
