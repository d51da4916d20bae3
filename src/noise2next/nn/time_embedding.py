"""The place in the chain as a vector of waves (Vaswani et al., 2017, as diffusion models use it)."""

from __future__ import annotations

import torch
from torch import Tensor


def step_embedding(t: Tensor, size: int) -> Tensor:
    """[cos(t w_k) ..., sin(t w_k) ...] with w_k = 10000^(-k / (size // 2)), a zero appended when `size` is odd.

    t [B], 0-based and unscaled -> [B, size] float64.
    """
    half = size // 2
    waves = torch.pow(10000.0, -torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = t.double()[:, None] * waves
    padding = angles.new_zeros(len(t), size % 2)
    return torch.cat([angles.cos(), angles.sin(), padding], dim=1)


def interleaved_step_embedding(t: Tensor, size: int) -> Tensor:
    """[sin(t w_0), cos(t w_0), sin(t w_1), cos(t w_1), ...] with w_k = 10000^(-2k / size), as Vaswani et al. write it.

    t [B], unscaled -> [B, size] float64.
    """
    waves = torch.pow(10000.0, -torch.arange(0, size, 2, dtype=torch.float64, device=t.device) / size)
    angles = t.double()[:, None] * waves
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :size]
