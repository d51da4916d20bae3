"""Gaussian diffusion: noising, reverse means and loss weights for a fixed variance schedule."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Parameterisation = Literal["x0", "eps"]  # what a network predicts: the clean value, or the noise in x_t


class GaussianDiffusion(nn.Module):
    """The forward and reverse process of T steps, t = 0..T-1, over values of any shape [B, ...]; knows no network.

    Tables [T] are float64, made from the betas and kept out of checkpoints; a row is cast when it meets a value.
    abar_{-1} = 1, so the reverse step at t = 0 returns the predicted x_0 itself.
    """

    signal: Tensor  # sqrt(abar_t)
    noise: Tensor  # sqrt(1 - abar_t)
    to_clean: Tensor  # the posterior mean's share of x_0
    to_noisy: Tensor  # the posterior mean's share of x_t
    betas: Tensor  # of q(x_t | x_{t-1})
    variance: Tensor  # of q(x_{t-1} | x_t, x_0); zero at t = 0
    weight_x0: Tensor  # of the evidence bound, for a network that predicts x_0
    weight_eps: Tensor  # of the authors' code, for a network that predicts the noise; not of the bound

    def __init__(self, betas: Tensor) -> None:
        """betas [T], T >= 1, as `schedule.betas` gives them."""
        super().__init__()
        if len(betas) < 1:
            raise ValueError("a diffusion process needs at least one step")
        betas = betas.double()
        kept = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        snr = kept / (1 - kept)
        self.steps = len(betas)
        self._table("betas", betas)
        self._table("signal", kept.sqrt())
        self._table("noise", (1 - kept).sqrt())
        self._table("to_clean", betas * before.sqrt() / (1 - kept))
        self._table("to_noisy", (1 - before) * (1 - betas).sqrt() / (1 - kept))
        self._table("variance", betas * (1 - before) / (1 - kept))
        # DiffRec equation 10 without its half and its sum over items, as in the authors' code; t = 0: plain error.
        self._table("weight_x0", torch.cat([snr.new_ones(1), snr[:-1] - snr[1:]]))
        # The authors' code, and not the bound: (1 - abar_t) / ((1 - abar_{t-1})^2 (1 - beta_t)), where the bound in
        # the noise's error has beta_t / ((1 - abar_{t-1}) (1 - beta_t)). At t = 0 half the error of x_0, which is
        # (1/abar_0 - 1) times that of the noise.
        first = (1 / kept[:1] - 1) / 2
        self._table("weight_eps", torch.cat([first, ((1 - kept) / ((1 - before).square() * (1 - betas)))[1:]]))

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) for standard normal `noise`: x0 [B, ...], t [B]."""
        return torch.addcmul(_at(self.signal, t, x0) * x0, _at(self.noise, t, x0), noise)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), with a prediction in the place of x0."""
        return _at(self.to_clean, t, x0) * x0 + _at(self.to_noisy, t, x0) * x_t

    def posterior_sample(self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_{t-1} from q(x_{t-1} | x_t, x_0) with standard normal `noise`, which counts nothing at t = 0."""
        return self.posterior_mean(x0, x_t, t) + _at(self.variance, t, x0).sqrt() * noise

    def posterior_sample_wide(self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """As `posterior_sample` with the variance beta_t, its upper bound (Ho et al., 2020, section 3.2); none at 0."""
        spread = torch.where(t > 0, self.betas[t], 0).sqrt().to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return self.posterior_mean(x0, x_t, t) + spread * noise

    def respaced(self, count: int) -> tuple[GaussianDiffusion, Tensor]:
        """The process seen at `count` of its steps only, the last among them, and which those are: [count] int64.

        Its forward marginals at these steps are the same (Nichol and Dhariwal, 2021, section 4).
        """
        chosen = torch.linspace(self.steps - 1, 0, count, dtype=torch.float64).round().long().flip(0)
        kept = self.signal[chosen.to(self.signal.device)].square()
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        return GaussianDiffusion(1 - kept / before), chosen

    def clean_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_0 that `noise` has turned into x_t."""
        return (x_t - _at(self.noise, t, x_t) * noise) / _at(self.signal, t, x_t)

    def reverse_shares(self, parameterisation: Parameterisation) -> tuple[Tensor, Tensor]:
        """(a, c), each [T] float64, with which the reverse mean is a_t x_t + c_t f for a network's output f."""
        if parameterisation == "x0":
            return self.to_noisy, self.to_clean
        return self.to_noisy + self.to_clean / self.signal, -self.to_clean * self.noise / self.signal

    def loss_weight(self, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        """[B] float32: what the mean squared error at step t counts.

        For x0 it is the evidence bound's SNR(t-1) - SNR(t), SNR(t) = abar_t / (1 - abar_t). For eps it is the authors'
        choice, which weighs a step t >= 1 (1 - abar_t) / ((1 - abar_{t-1}) beta_t) times as much as the bound would.
        """
        return (self.weight_x0 if parameterisation == "x0" else self.weight_eps)[t].float()

    def _table(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] as [B, 1, ...], in the precision of `like`."""
    return table[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
