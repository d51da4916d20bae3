"""Activations where torch's own is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tanh(x: Tensor) -> Tensor:
    """Elementwise hyperbolic tangent, with its gradient.

    In float32 on a CPU it is 2 s(2x) - 1, s the logistic function: the same within 2e-7 and four times as fast as
    torch.tanh, which would take a fifth of a scoring pass.
    """
    y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        logistic = x.is_cpu and x.dtype == torch.float32  # bfloat16 would lose the digits near zero
        y = torch.mul(x, 2).sigmoid_().mul_(2).sub_(1) if logistic else torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return gradient * (1 - y * y)
