"""DiffRec: diffusion over a user's row of items (Wang et al., SIGIR 2023, arXiv 2304.04971).

T-DiffRec is the same model on linearly weighted histories: an entry in `params.yaml`, not a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from noise2next.data.queries import Queries
from noise2next.diffusion.noise import normals
from noise2next.diffusion.process import GaussianDiffusion, Parameterisation
from noise2next.diffusion.schedule import Schedule, betas
from noise2next.diffusion.step_sampler import StepSampler
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.losses import row_error
from noise2next.nn.mlp import Denoiser


class DiffRec(Trainable):
    """Noise a user's row a little, learn to restore it, and read the restored row as scores."""

    class Config(ModelConfig):
        steps: PositiveInt = 5  # T
        hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1000,)  # widths inside out, see Denoiser
        schedule: Schedule = "linear-var"
        noise_scale: NonNegativeFloat = 0.1  # 0: no noise at all, a plain autoencoder applied T times
        noise_min: PositiveFloat = 0.0001
        noise_max: PositiveFloat = 0.02
        first_beta: PositiveFloat | None = 1e-5  # the authors pin the first step; None: as scheduled
        parameterisation: Parameterisation = "x0"
        step_embedding_size: NonNegativeInt = 10  # 0: the network is not told the step
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of the noised input
        normalise: bool = False  # each noised row to length 1
        importance_sampling: bool = True  # train more often on the steps that cost most
        reweight: bool = True  # x0: by the evidence bound; eps: as the authors do; False: plain mean squared error
        sampling_steps: NonNegativeInt = 0  # T': noise added before the reverse chain, which always takes T steps
        sampling_noise: bool = False  # draw from each reverse step instead of taking its mean

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.sampling_steps > self.steps:
                raise ValueError(f"sampling_steps {self.sampling_steps} is above steps {self.steps}")
            if self.noise_scale > 0:
                self.betas()
            elif self.parameterisation == "eps" or self.sampling_noise or self.sampling_steps > 0:
                raise ValueError("noise_scale 0 leaves no noise to predict or to sample: take x0 and sample none")
            return self

        def betas(self) -> Tensor:
            """[T] float64"""
            return betas(self.schedule, self.steps, self.noise_scale, self.noise_min, self.noise_max, self.first_beta)

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.process = GaussianDiffusion(config.betas()) if config.noise_scale > 0 else None
        self.step_sampler = StepSampler(config.steps, config.importance_sampling)
        self.denoiser = Denoiser(
            n_items, config.steps, config.hidden, config.step_embedding_size, config.dropout, config.normalise
        )
        self._chain: HiddenChain | None = None
        self.register_load_state_dict_post_hook(_forget_chain)  # type: ignore[no-untyped-call]

    # --- training (paper section 3.2; equations 8 to 11) --------------------------------------------------------------

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        x0 = batch.multi_hot()  # [B, I]
        t, divisor = self.step_sampler(len(x0))  # [B], [B]
        errors = self._errors(x0, t, torch.randn_like(x0))
        self.step_sampler.record(t, errors.detach())
        return {"denoising": (errors / divisor).mean()}

    @torch.no_grad()
    def elbo_terms(self, queries: Queries) -> Tensor | None:
        """[T]: the mean over users of each step's weighted error, without dropout; the noise is fixed by the user.

        These are the bound's terms, less its half and its sum over items, only where the loss is weighed by the bound:
        None when the noise is predicted (the authors' weights are others), without noise, and without `reweight`.
        """
        if self.process is None or self.config.parameterisation == "eps" or not self.config.reweight:
            return None
        x0 = queries.multi_hot()
        terms = []
        for step in range(self.config.steps):
            noise = normals(self.scoring_seed, queries.keys, step, queries.n_items)
            terms.append(self._errors(x0, self._step(x0, step), noise).mean())
        return torch.stack(terms)

    def _errors(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """[B]: w_t times the mean over items of the squared error; sums and weights in float32 also under bfloat16."""
        if self.process is None:
            return row_error(self.denoiser(x0, t), x0)
        output = self.denoiser(self.process.add_noise(x0, t, noise), t)
        error = row_error(output, x0 if self.config.parameterisation == "x0" else noise)
        return self.process.loss_weight(self.config.parameterisation, t) * error if self.config.reweight else error

    # --- scoring (paper section 3.3) ----------------------------------------------------------------------------------

    def begin_scoring(self) -> None:
        self._chain = self._hidden_chain() if self.reads_in_hidden_space else None

    @property
    def reads_in_hidden_space(self) -> bool:
        """Whether the reverse chain is affine in the row outside the network, so that `HiddenChain` is exact."""
        return not (self.config.normalise or self.config.sampling_noise)

    @property
    def stochastic(self) -> bool:
        return self.config.sampling_noise or self.config.sampling_steps > 0

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        if not self.reads_in_hidden_space:
            return self.restore(self._start(queries), queries.keys)
        if self._chain is None:
            self.begin_scoring()
        assert self._chain is not None
        return self._restore_hidden(queries, self._chain)

    @torch.no_grad()
    def denoising(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """The predicted x_0 [B, I] at each step, in item space; see `HasDenoising`."""
        for step, x0, _ in self._reverse(self._start(queries), queries.keys):
            yield step, x0

    @torch.no_grad()
    def restore(self, x: Tensor, keys: Tensor) -> Tensor:
        """The reverse chain in item space: x_T [B, I] -> x_0 [B, I]. keys [B] decide the draws of `sampling_noise`."""
        for _, _, state in self._reverse(x, keys):
            restored = state
        return restored

    def _reverse(self, x: Tensor, keys: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(t, the x_0 [B, I] predicted from x_t, the next state x_{t-1} [B, I]) for t from T - 1 down to 0."""
        for step in reversed(range(self.config.steps)):
            t = self._step(x, step)
            output = self.denoiser(x, t)
            if self.process is None:
                x0 = x = output
            else:
                x0 = output if self.config.parameterisation == "x0" else self.process.clean_from_noise(x, t, output)
                if self.config.sampling_noise and step > 0:
                    noise = normals(self.scoring_seed, keys, step, x.shape[1])
                    x = self.process.posterior_sample(x0, x, t, noise)
                else:
                    x = self.process.posterior_mean(x0, x, t)
            yield step, x0, x

    def _start(self, queries: Queries) -> Tensor:
        """x_T [B, I]: the row itself, or noised by T' steps."""
        x0 = queries.multi_hot()
        if self.process is None or self.config.sampling_steps == 0:
            return x0
        noise = normals(self.scoring_seed, queries.keys, self.config.steps, queries.n_items)
        return self.process.add_noise(x0, self._step(x0, self.config.sampling_steps - 1), noise)

    def _restore_hidden(self, queries: Queries, chain: HiddenChain) -> Tensor:
        """The reverse chain with the row kept as x = `kept` x_T + V g + `given` b, of which only g [B, H] is stored.

        V, b are the last layer's weight and bias. The network reads x through its first layer alone, and that is
        linear, so a step costs [H, H] products; the items are touched at the start and at the end only.
        """
        noised = self._start(queries) if self.config.sampling_steps else None
        first = _gather(queries, chain.from_items) if noised is None else self.denoiser.project(noised)
        g = torch.zeros_like(chain.mixing[:1]).expand(len(queries), -1)
        for step in chain.steps:
            state = torch.addmm(first, g, chain.mixing, beta=step.kept).add_(step.added)
            g = self.denoiser.inner(state).mul_(step.of_output).add_(g, alpha=step.of_row)
        scores = F.linear(g, self.denoiser.decode.weight, chain.bias)
        if chain.kept == 0:
            return scores
        return scores.add_(queries.multi_hot() if noised is None else noised, alpha=chain.kept)

    @torch.no_grad()
    def _hidden_chain(self) -> HiddenChain:
        net, steps = self.denoiser, self.config.steps
        if self.process is None:
            of_row, of_output = torch.zeros(steps), torch.ones(steps)
        else:
            of_row, of_output = self.process.reverse_shares(self.config.parameterisation)
        bias = net.from_items.weight @ net.decode.bias
        conditions = net.condition(torch.arange(steps, device=net.steps.device)).unbind()
        chain, kept, given = [], 1.0, 0.0
        for a, c, condition in zip(of_row.tolist()[::-1], of_output.tolist()[::-1], conditions[::-1], strict=True):
            chain.append(ChainStep(kept, given * bias + condition, a, c))
            kept, given = a * kept, a * given + c
        return HiddenChain(
            from_items=net.from_items.weight.t().contiguous(),
            mixing=(net.from_items.weight @ net.decode.weight).t().contiguous(),
            steps=chain,
            kept=kept,
            bias=given * net.decode.bias,
        )

    def _step(self, like: Tensor, step: int) -> Tensor:
        """[B], the same step for every row"""
        return torch.full((len(like),), step, device=like.device)

    # What was precomputed for scoring is only true of the weights and the device it was made with.

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._chain = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._chain = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@dataclass(frozen=True)
class ChainStep:
    """One reverse step, whatever the row."""

    kept: float  # x_T's share of the state
    added: Tensor  # [H], to the first layer: of the step, and of the last layer's bias so far
    of_row: float  # a_t of `GaussianDiffusion.reverse_shares`
    of_output: float  # c_t


@dataclass(frozen=True)
class HiddenChain:
    """What the reverse chain needs of the item dimension, computed once for fixed weights W (first), V, b (last)."""

    from_items: Tensor  # W^T [I, H]
    mixing: Tensor  # (W V)^T [H, H]
    steps: list[ChainStep]  # in the order in which they are taken
    kept: float  # x_T's share of the end
    bias: Tensor  # b's part of the end [I]


def _gather(queries: Queries, table: Tensor) -> Tensor:
    """The rows' products with `table` [I, H] from their few items: [B, H]."""
    once = queries.folded()
    return F.embedding_bag(once.items, table, once.indptr[:-1], mode="sum", per_sample_weights=once.weights)


def _forget_chain(model: Any, _: Any) -> None:
    model._chain = None
