"""Standard normal draws that depend on (seed, key, step, place) alone, never on the batch or the order of calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood, 2014): a counter times the golden step, then a mixing of bits. int64 wraps around.
_GOLDEN = -0x61C8864680B583EB
_MIX = (30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)


def normals(seed: int, keys: Tensor, step: int, size: int) -> Tensor:
    """Standard normals [B, size] float32, row b a function of (seed, keys[b], step): a counter-based generator.

    keys [B] int64. Computed in float64 and rounded, so that a row's bits are the same in every batch.
    """
    origin, turn = keys.new_tensor([seed, step + 1])
    stream = _mix(_mix(keys ^ _mix(origin)) + turn * _GOLDEN)
    pairs = torch.arange(1, (size + 1) // 2 + 1, device=keys.device)
    bits = _mix(stream[:, None] + pairs * _GOLDEN)  # 64 random bits make two normals (Box and Muller, 1958)
    radius = ((_high(bits, 32).double() + 1) * 2**-32).log().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFFFF).double().mul_(2 * math.pi * 2**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size].float()


def _mix(value: Tensor) -> Tensor:
    for shift, factor in _MIX:
        value = (value ^ _high(value, 64 - shift)) * factor
    return value ^ _high(value, 33)


def _high(value: Tensor, bits: int) -> Tensor:
    """The `bits` highest bits as a number >= 0: a shift to the right that brings in zeros."""
    return (value >> (64 - bits)) & ((1 << bits) - 1)


class NormalTable:
    """Many standard normals for little: rows of a table that is drawn once, at a place that (seed, key, step) decides.

    Within one (key, step) the rows are independent as long as there are no more than the table has; two keys may share
    rows, which no user can tell. For draws that are too many to make anew.
    """

    def __init__(self, seed: int, size: int, device: torch.device, rows: int = 1 << 14) -> None:
        """`size` normals a row."""
        self.seed = seed
        self.device = device
        self._table = normals(seed, torch.arange(rows, device=device), 0, size)

    def rows(self, keys: Tensor, step: int, numbers: Tensor) -> Tensor:
        """Row numbers[n] of the draw that belongs to keys[n] and `step`: keys [N], numbers [N] >= 0 -> [N, size]."""
        origin, turn = keys.new_tensor([self.seed, step + 1])
        start = _high(_mix(_mix(keys ^ _mix(origin)) + turn * _GOLDEN), 31)
        return self._table[(start + numbers) % len(self._table)]
