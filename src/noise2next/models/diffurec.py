"""DiffuRec: diffusion of the next item's embedding, given the history (Li, Sun and Li, TOIS 2023, arXiv 2304.00686)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from noise2next.data.queries import Prefixes, Queries
from noise2next.diffusion.noise import NormalTable, normals
from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import EmbeddingSchedule, embedding_betas
from noise2next.diffusion.step_sampler import StepSampler
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import weighted_softmax_cross_entropy
from noise2next.nn.packing import Packing
from noise2next.nn.time_embedding import step_embedding
from noise2next.nn.transformer import EncoderLayer

_CLOCK = 1000.0  # the steps are told to the network on a scale of a thousand, however many there are


class DiffuRec(Trainable):
    """Noise the next item's embedding, restore it with a Transformer that reads the history, rank by inner product."""

    reads_order = True

    class Config(ModelConfig):
        embedding_size: PositiveInt = 128  # H
        blocks: PositiveInt = 4
        heads: PositiveInt = 4
        steps: Annotated[int, Field(ge=2)] = 32  # T
        schedule: EmbeddingSchedule = "truncated-linear"
        embedding_deviation: PositiveFloat = 1.0  # of the items' first vectors, N(0, s^2); the authors leave torch's 1
        uncertainty: NonNegativeFloat = 0.001  # delta: mean and deviation of lambda, the noised target's share
        max_length: PositiveInt = 50  # of a history
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
        embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
        importance_sampling: bool = False  # train more often on the steps that cost most; the authors' code never did
        mask_keys: bool = False  # False: as the authors' code, where items attend to the padding of a short history
        steps_at_inference: PositiveInt | None = None  # of the reverse chain; None: all T

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.embedding_size % self.heads:
                raise ValueError(f"embedding_size {self.embedding_size} is not a multiple of heads {self.heads}")
            if (self.steps_at_inference or 0) > self.steps:
                raise ValueError(f"steps_at_inference {self.steps_at_inference} is above steps {self.steps}")
            embedding_betas(self.schedule, self.steps)
            return self

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items
        self.process = GaussianDiffusion(embedding_betas(config.schedule, config.steps))
        self.step_sampler = StepSampler(config.steps) if config.importance_sampling else None
        self.items = nn.Embedding(n_items + 1, config.embedding_size)  # the last is the padding, learned as any other
        with torch.no_grad():
            self.items.weight.mul_(config.embedding_deviation)
        self.normalise = nn.LayerNorm(config.embedding_size, eps=1e-12)
        self.tell_step = nn.Sequential(
            nn.Linear(config.embedding_size, 4 * config.embedding_size),
            nn.SiLU(),
            nn.Linear(4 * config.embedding_size, config.embedding_size),
        )
        self.layers = nn.ModuleList(
            EncoderLayer(config.embedding_size, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.output_norm = nn.LayerNorm(config.embedding_size, eps=1e-12)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.dropout = Dropout(config.dropout)
        self._table: NormalTable | None = None  # of the draws of lambda in scoring

    # --- training (paper section 4.2) ---------------------------------------------------------------------------------

    def samples(self, train: Queries) -> int:
        return len(Prefixes.of(train, self.config.max_length))

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        """Every prefix of every history once, its next item as the newest of the batch's histories."""
        return Prefixes.of(train, self.config.max_length).batches(size, order)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        history, target = batch.before_last()
        x0 = self.items(target)  # [B, H]
        if self.step_sampler is None:
            t, weights = torch.randint(self.config.steps, (len(target),), device=x0.device), x0.new_ones(len(target))
        else:
            t, divisor = self.step_sampler(len(target))
            weights = 1 / divisor
        x_t = self.process.add_noise(x0, t, torch.randn_like(x0))
        tokens, packing, padded = self._read(history)
        share = torch.randn_like(tokens).add_(1).mul_(self.config.uncertainty)  # lambda ~ N(delta, delta)
        restored = self._restore(tokens, packing, padded, x_t, t, share)
        mean, losses = weighted_softmax_cross_entropy(restored, self.items.weight, target, weights)
        if self.step_sampler is not None:
            self.step_sampler.record(t, losses)
        return {"cross_entropy": mean}

    # --- the approximator (paper section 4.1) -------------------------------------------------------------------------

    def _read(self, history: Queries) -> tuple[Tensor, Packing, Tensor | None]:
        """Items as tokens [n, H], how they lie, and which are padding [n] (None where there is none).

        With `mask_keys` a history has as many tokens as items. Without it all have `max_length`, padded in front, and
        the padding is read: only its own attention is blind, as in the authors' code.
        """
        length = self.config.max_length
        history = history.last(length)
        if self.config.mask_keys:
            packing, ids, padded = Packing(history.indptr), history.items, None
        else:
            real = Packing(history.indptr)
            packing = Packing(torch.arange(0, (len(history) + 1) * length, length, device=history.device))
            ids = torch.full((len(history) * length,), self.n_items, device=history.device)
            ids[packing.indptr[1:][real.rows] - 1 - real.age] = history.items
            padded = ids == self.n_items
        return self.normalise(self.embedding_dropout(self.items(ids))), packing, padded

    def _restore(
        self, tokens: Tensor, packing: Packing, padded: Tensor | None, x_t: Tensor, t: Tensor, share: Tensor
    ) -> Tensor:
        """x_0 [B, H] from x_t [B, H], steps t [B] and lambda `share` [n, H]; zeros for a history without tokens."""
        noised = x_t + self.tell_step(self._waves(t).to(x_t.dtype))
        state = torch.addcmul(tokens, share, noised[packing.rows])
        for layer in self.layers:
            state = layer(state, packing, newest_only=layer is self.layers[-1], blind=padded)
            state = self.dropout(state)
        restored: Tensor = self.output_norm(self.dropout(state))
        return restored

    def _waves(self, t: Tensor) -> Tensor:
        """Steps t [B] as the network is told them: [B, H] float64."""
        return step_embedding(t.double() * (_CLOCK / self.config.steps), self.config.embedding_size)

    # --- scoring (paper section 4.3) ----------------------------------------------------------------------------------

    @property
    def stochastic(self) -> bool:
        return True

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        *_, (_, x0) = self._reverse(queries)
        return self._scores(x0)

    @torch.no_grad()
    def denoising(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """What is restored at each step, as scores [B, I]."""
        for step, x0 in self._reverse(queries):
            yield step, self._scores(x0)

    def _scores(self, x0: Tensor) -> Tensor:
        """[B, H] -> [B, I]: the padding is no item."""
        return F.linear(x0, self.items.weight[:-1])

    def _reverse(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """(t, the x_0 [B, H] restored from x_t) for t from T - 1 down to 0; the last is what the chain returns."""
        count = self.config.steps_at_inference or self.config.steps
        process, steps = self.process.respaced(count)
        tokens, packing, padded = self._read(queries)
        keys, table = queries.keys[packing.rows], self._draws(queries.device)
        x_t = normals(self.scoring_seed, queries.keys, self.config.steps, self.config.embedding_size)
        for at in reversed(range(count)):
            step = int(steps[at])
            share = table.rows(keys, step, packing.age).add_(1).mul_(self.config.uncertainty)
            t = torch.full((len(queries),), step, device=queries.device)
            x0 = self._restore(tokens, packing, padded, x_t, t, share)
            yield step, x0
            noise = normals(self.scoring_seed, queries.keys, step, self.config.embedding_size)
            x_t = process.posterior_sample_wide(x0, x_t, torch.full_like(t, at), noise)

    def _draws(self, device: torch.device) -> NormalTable:
        if self._table is None or (self._table.seed, self._table.device) != (self.scoring_seed, device):
            self._table = NormalTable(self.scoring_seed, self.config.embedding_size, device)
        return self._table
