"""How much noise each step adds: the four variance schedules of DiffRec (Wang et al., 2023)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["linear-var", "linear", "cosine", "binomial"]

_LARGEST_BETA = 0.999  # keeps the last steps of a steep schedule invertible


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
    if not bool(((values > 0) & (values <= 1)).all()):
        raise ValueError(
            f"schedule {schedule} has a beta outside (0, 1], from {values.min():.3g} to {values.max():.3g}; "
            "mend noise_scale, noise_min, noise_max or first_beta"
        )
    return values


def _from_total_variance(variance: Tensor) -> Tensor:
    """The betas whose products give 1 - abar_t = variance_t."""
    if variance[-1] > 1:
        raise ValueError(f"noise_scale * noise_max is {float(variance[-1]):.3g}, and a total variance is at most 1")
    kept = torch.cat([variance.new_ones(1), 1 - variance])
    return (1 - kept[1:] / kept[:-1]).clamp(max=_LARGEST_BETA)


def _cosine(steps: int) -> Tensor:
    """Nichol and Dhariwal (2021), equation 17."""
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((share + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=_LARGEST_BETA)
