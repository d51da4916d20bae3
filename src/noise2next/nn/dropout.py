"""Dropout whose mask costs a sixth of a Bernoulli draw: 16 random bits an element instead of a generator call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero each element with probability `p`, exact to 2^-16, and scale the others by 1 / (1 - p); in training only.

    One 64-bit draw from torch's generator decides four elements, each by 16 bits of its own, so they are independent.
    """

    def __init__(self, p: float) -> None:
        """0 <= p < 1."""
        super().__init__()
        self.dropped = min(round(p * _LEVELS), _LEVELS - 1)  # of 2^16 values

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        if not self.training or self.dropped == 0:
            return x
        return x * self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        """float32 in the shape of `x`: 0, or 1 / (1 - p)."""
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        lanes = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15 .. 2^15 - 1
        kept = torch.ge(lanes, self.dropped - _LEVELS // 2, out=torch.empty(x.shape, device=x.device))  # in one pass
        return kept.mul_(_LEVELS / (_LEVELS - self.dropped))
