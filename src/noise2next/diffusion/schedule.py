"""How much noise each step adds: the schedules of DiffRec (Wang et al., 2023), and of diffusion over embeddings."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["linear-var", "linear", "cosine", "binomial"]
EmbeddingSchedule = Literal[
    "truncated-linear", "linear", "quadratic", "piecewise-linear", "cosine", "truncated-cosine", "sqrt"
]

_LARGEST_BETA = 0.999  # keeps the last steps of a steep schedule invertible
_FALLING = 10  # first steps of the piecewise-linear schedule


def betas(
    schedule: Schedule, steps: int, scale: float, low: float, high: float, first_beta: float | None = None
) -> Tensor:
    """Variances beta_t [T] float64 of q(x_t | x_{t-1}), t = 0..T-1.

    `scale` * [`low`, `high`] bounds the total variance 1 - abar_t (`linear-var`) or beta_t itself (`linear`); `cosine`
    and `binomial` take no bounds. `first_beta` then replaces beta_0, and with it every later abar_t: the authors pin it
    to 1e-5. Raises ValueError for low >= high, and for a beta outside (0, 1].
    """
    if schedule in ("linear-var", "linear") and low >= high:
        raise ValueError(f"noise_min {low} must be below noise_max {high}")
    values = {
        "linear-var": lambda: _from_total_variance(scale * torch.linspace(low, high, steps, dtype=torch.float64)),
        "linear": lambda: scale * torch.linspace(low, high, steps, dtype=torch.float64),
        "cosine": lambda: _cosine(steps),
        "binomial": lambda: 1 / torch.arange(steps + 1, 1, -1, dtype=torch.float64),
    }[schedule]()
    if first_beta is not None:
        values[0] = first_beta
    return _checked(values, schedule, "noise_scale, noise_min, noise_max or first_beta")


def embedding_betas(schedule: EmbeddingSchedule, steps: int) -> Tensor:
    """Variances beta_t [T] float64, t = 0..T-1, for a process over item embeddings (DiffuRec, Li et al., 2023; DNR).

    The linear kinds run from 1e-4 to 0.02 times 1000 / T, at most 0.999; `truncated-linear` lies 0.01 higher, and ends
    at a twentieth where its end would pass 1. `sqrt` and the cosines are given by abar. Raises ValueError where the
    steps are too few.
    """
    low, high = 1000 / steps * 1e-4, 1000 / steps * 0.02

    def linear(first: float, last: float, count: int = steps) -> Tensor:
        return torch.linspace(first, last, count, dtype=torch.float64)

    if schedule == "piecewise-linear" and steps <= _FALLING:
        raise ValueError(f"schedule piecewise-linear needs more than {_FALLING} steps, not {steps}")
    values = {
        "truncated-linear": lambda: linear(low + 0.01, (high if high + 0.01 <= 1 else high / 20) + 0.01),
        "linear": lambda: linear(low, high).clamp(max=_LARGEST_BETA),
        "quadratic": lambda: linear(low**0.5, high**0.5).square().clamp(max=_LARGEST_BETA),
        "piecewise-linear": lambda: torch.cat(
            [linear(low + 0.01, low, _FALLING), linear(low, high, steps - _FALLING).clamp(max=_LARGEST_BETA)]
        ),
        "cosine": lambda: _cosine(steps),
        "truncated-cosine": lambda: _ratios(torch.cat([torch.ones(1), _squared_cosine(steps, 0.1)[:-1]])),
        "sqrt": lambda: _ratios(1 - (torch.arange(steps + 1, dtype=torch.float64) / steps + 1e-4).clamp(max=1).sqrt()),
    }[schedule]()
    return _checked(values, schedule, "steps")


def _checked(values: Tensor, schedule: str, remedy: str) -> Tensor:
    if not bool(((values > 0) & (values <= 1)).all()):
        raise ValueError(
            f"schedule {schedule} has a beta outside (0, 1], from {values.min():.3g} to {values.max():.3g}; "
            f"mend {remedy}"
        )
    return values


def _from_total_variance(variance: Tensor) -> Tensor:
    """The betas whose products give 1 - abar_t = variance_t."""
    if variance[-1] > 1:
        raise ValueError(f"noise_scale * noise_max is {float(variance[-1]):.3g}, and a total variance is at most 1")
    return _ratios(torch.cat([variance.new_ones(1), 1 - variance]))


def _cosine(steps: int) -> Tensor:
    """Nichol and Dhariwal (2021), equation 17."""
    return _ratios(_squared_cosine(steps, 0.008))


def _squared_cosine(steps: int, offset: float) -> Tensor:
    """abar at 0, 1/T, ..., 1: [T+1]."""
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    return torch.cos((share + offset) / (1 + offset) * math.pi / 2).square()


def _ratios(kept: Tensor) -> Tensor:
    """beta_t = 1 - kept_{t+1} / kept_t from kept [T+1]."""
    return (1 - kept[1:] / kept[:-1]).clamp(max=_LARGEST_BETA)
