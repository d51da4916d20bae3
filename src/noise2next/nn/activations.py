"""Activations where torch's own is slow."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FEW = 1 << 13  # values: below, four passes take longer than torch.tanh on any processor


def tanh(x: Tensor) -> Tensor:
    """Elementwise hyperbolic tangent, with its gradient.

    torch.tanh is MKL's, which is quick on Intel's processors and slow on others. There, in float32 and for many values,
    it is 2 s(2x) - 1, s the logistic function: the same within 2e-7, four times as fast on an AMD EPYC, and a third as
    fast on an Intel Xeon.
    """
    if torch.is_grad_enabled() and _by_logistic(x):
        y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
        return y
    return _values(x)


def _values(x: Tensor) -> Tensor:
    return torch.mul(x, 2).sigmoid_().mul_(2).sub_(1) if _by_logistic(x) else torch.tanh(x)


def _by_logistic(x: Tensor) -> bool:
    # bfloat16 would lose the digits near zero
    return x.is_cpu and x.dtype == torch.float32 and x.numel() > FEW and not _intel()


@cache
def _intel() -> bool:
    """Whether this machine says that its processor is Intel's."""
    told = Path("/proc/cpuinfo")
    return told.is_file() and "GenuineIntel" in told.read_text()


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _values(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return gradient * (1 - y * y)
