"""Which steps a batch trains on: more often those whose loss is large (Nichol and Dhariwal, 2021, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MEMORY = 10  # last losses kept per step
_UNIFORM_SHARE = 0.001  # of the draws are uniform, so that no step is forgotten
_TINY = 1e-30  # keeps the law defined when every loss is zero


class StepSampler(nn.Module):
    """Draws steps: uniformly until each has ten losses, then with P(t) in proportion to their root mean square.

    The last ten losses of each step are buffers, so a resumed run draws as the uninterrupted one.
    `importance=False` stays uniform.
    """

    losses: Tensor  # [T, 10] float64, a ring per step
    seen: Tensor  # [T] int64, losses ever recorded

    def __init__(self, steps: int, importance: bool = True) -> None:
        super().__init__()
        self.steps = steps
        self.importance = importance
        self.register_buffer("losses", torch.zeros(steps, _MEMORY, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """P(t) [T] float64."""
        size = self.losses.square().mean(dim=1).sqrt() + _TINY
        weighted = (1 - _UNIFORM_SHARE) * size / size.sum() + _UNIFORM_SHARE / self.steps
        warm = self.importance & (self.seen >= _MEMORY).all()
        return torch.where(warm, weighted, torch.full_like(weighted, 1 / self.steps))

    def forward(self, size: int) -> tuple[Tensor, Tensor]:
        """Steps t [B] int64, and what their losses are divided by to stay unbiased: T P(t) [B] float32."""
        probabilities = self.probabilities()
        t = torch.multinomial(probabilities, size, replacement=True)
        return t, (self.steps * probabilities[t]).float()

    @torch.no_grad()
    def record(self, t: Tensor, losses: Tensor) -> None:
        """Remember the weighted losses [B] of the steps t [B], before their division; only the last ten a step stay."""
        order = torch.argsort(t, stable=True)
        step = t[order]
        counts = torch.bincount(t, minlength=self.steps)
        rank = torch.arange(len(t), device=t.device) - (counts.cumsum(0) - counts)[step]
        newest = rank >= counts[step] - _MEMORY
        place = (self.seen[step] + rank) % _MEMORY
        self.losses[step[newest], place[newest]] = losses.double()[order][newest]
        self.seen += counts
