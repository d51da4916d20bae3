"""L-DiffRec: diffusion over the latent of item clusters (Wang et al., SIGIR 2023, arXiv 2304.04971, section 3.4).

LT-DiffRec is the same model on linearly weighted histories: an entry in `params.yaml`, not a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.diffusion.noise import normals
from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import Schedule, betas
from noise2next.diffusion.step_sampler import StepSampler
from noise2next.errors import UserError
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.models.rows import item_rows
from noise2next.nn.activations import tanh
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import gaussian_kl, multinomial_nll
from noise2next.nn.mlp import Denoiser, Perceptron
from noise2next.nn.sparse import SparseLinear, SparseRows

DropoutShare = Annotated[float, Field(ge=0, lt=1)]


class LDiffRec(Trainable):
    """Encode each cluster of items by a variational autoencoder of its own, diffuse the joint latent, decode it.

    Encoders, and decoders of a cluster each, see the items cluster by cluster; outside they stand as everywhere.
    """

    inputs = ("item_clusters",)
    item_clusters: Tensor
    position: Tensor  # [I], an item's place when the clusters are laid end to end

    class Config(ModelConfig):
        clusters: Annotated[int, Field(ge=1, le=5)] = 2  # C
        encoder: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (300,)  # widths of all clusters together
        decoder: tuple[PositiveInt, ...] = ()  # empty: one layer for all; else C = 1: its widths, C > 1: the encoders'
        input_dropout: DropoutShare = 0.1  # of the row
        nll_target: Literal["dropped", "clean"] = "dropped"  # the authors' code restores the row after its dropout
        steps: PositiveInt = 5  # T
        hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (300,)  # of the denoiser
        schedule: Schedule = "linear-var"
        noise_scale: PositiveFloat = 0.1
        noise_min: PositiveFloat = 0.0001
        noise_max: PositiveFloat = 0.02
        first_beta: PositiveFloat | None = None  # here, unlike in DiffRec, the authors leave it as scheduled
        step_embedding_size: NonNegativeInt = 10
        dropout: DropoutShare = 0.5  # of the noised latent
        diffusion_weight: NonNegativeFloat = 0.03  # lambda before it falls
        reweight: bool = True  # by the evidence bound; False: plain mean squared error
        denoiser_learning_rate: PositiveFloat | None = None  # None: the trainer's, as the autoencoders have
        sampling_steps: NonNegativeInt = 0  # T': noise added before the reverse chain, which always takes T steps
        sampling_noise: bool = False  # draw from each reverse step instead of taking its mean

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.sampling_steps > self.steps:
                raise ValueError(f"sampling_steps {self.sampling_steps} is above steps {self.steps}")
            self.betas()
            return self

        def betas(self) -> Tensor:
            """[T] float64"""
            return betas(self.schedule, self.steps, self.noise_scale, self.noise_min, self.noise_max, self.first_beta)

    def __init__(self, config: Config, n_items: int, item_clusters: Tensor) -> None:
        """item_clusters [I] int64, labels from 0. Raises UserError for labels that are not as `config` wants them."""
        super().__init__()
        self.config = config
        self.sizes = cluster_sizes(item_clusters, config.clusters, n_items)
        self.register_buffer("item_clusters", item_clusters.clone())
        self.register_buffer("position", item_clusters.argsort(stable=True).argsort(), persistent=False)
        widths = [cluster_widths(self.sizes, width) for width in config.encoder]  # a layer, then a cluster
        self.latent_sizes = widths[-1]
        self.input_dropout = Dropout(config.input_dropout)
        self.encoders = nn.ModuleList(
            Perceptron([size, *hidden, 2 * latent], sparse=True)
            for size, *hidden, latent in zip(self.sizes, *widths, strict=True)
        )
        self.decoders = nn.ModuleList(map(Perceptron, self._decoder_widths(widths)))
        for layer in chain(self.encoders.modules(), self.decoders.modules()):
            if isinstance(layer, nn.Linear | SparseLinear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        latent = config.encoder[-1]
        self.process = GaussianDiffusion(config.betas())
        self.step_sampler = StepSampler(config.steps)
        self.denoiser = Denoiser(
            latent, config.steps, config.hidden, config.step_embedding_size, config.dropout, False, bias_deviation=0
        )

    def _decoder_widths(self, encoders: Sequence[Sequence[int]]) -> list[list[int]]:
        """Of each decoder, from the latent to the items."""
        if not self.config.decoder or self.config.clusters == 1:
            return [[self.config.encoder[-1], *self.config.decoder, sum(self.sizes)]]
        return [[*reversed(mine), size] for size, *mine in zip(self.sizes, *encoders, strict=True)]

    def trained_in(self, phase: str, learning_rate: float) -> Iterator[dict[str, Any]]:
        autoencoders = [*self.encoders.parameters(), *self.decoders.parameters()]
        yield {"params": autoencoders, "lr": learning_rate}
        yield {"params": list(self.denoiser.parameters()), "lr": self.config.denoiser_learning_rate or learning_rate}

    # --- training (with the weights of the authors' code) -------------------------------------------------------------

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        clean = item_rows(batch)
        row = clean.with_values(self.input_dropout(clean.values))
        mean, log_variance = self._encode(row)
        z0 = mean + (log_variance / 2).exp() * torch.randn_like(mean)  # [B, Z], not detached from the diffusion
        t, divisor = self.step_sampler(len(z0))
        restored = self.denoiser(self.process.add_noise(z0, t, torch.randn_like(z0)), t).float()
        errors = (restored - z0).square().mean(dim=1)
        if self.config.reweight:
            errors = self.process.loss_weight("x0", t) * errors
        self.step_sampler.record(t, errors.detach())
        target = row if self.config.nll_target == "dropped" else clean
        of_diffusion, of_kl = self.weights_at(clock)
        of_autoencoder = 1.0
        if not self.config.reweight:
            of_diffusion, of_autoencoder = 1.0, of_diffusion
        return {
            "diffusion": of_diffusion * (errors / divisor).mean(),
            "nll": of_autoencoder * multinomial_nll(self._decode(restored), target),
            "kl": of_autoencoder * of_kl * gaussian_kl(mean, log_variance),
        }

    def weights_at(self, clock: Clock) -> tuple[float, float]:
        """Lambda, which falls over 500 epochs, and what the KL counts, which grows from 0 for 60 batches."""
        of_diffusion = max((1 - clock.epoch / 500) * self.config.diffusion_weight, 0.005)
        return of_diffusion, min(0.3, clock.batch / 200)

    # --- scoring ------------------------------------------------------------------------------------------------------

    @property
    def stochastic(self) -> bool:
        return self.config.sampling_noise or self.config.sampling_steps > 0

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        for _, predicted in self._reverse(queries):
            z0 = predicted
        return self._decode(z0)

    @torch.no_grad()
    def denoising(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """What is predicted at each step, decoded to scores [B, I]."""
        for step, z0 in self._reverse(queries):
            yield step, self._decode(z0)

    def _reverse(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """(t, the z_0 [B, Z] predicted from z_t) for t from T - 1 down to 0; the last is what the chain returns."""
        z, _ = self._encode(item_rows(queries))
        if self.config.sampling_steps:
            t = self._step(z, self.config.sampling_steps - 1)
            z = self.process.add_noise(z, t, self._noise(queries, self.config.steps))
        for step in reversed(range(self.config.steps)):
            t = self._step(z, step)
            z0 = self.denoiser(z, t)
            yield step, z0
            if self.config.sampling_noise and step > 0:
                z = self.process.posterior_sample(z0, z, t, self._noise(queries, step))
            else:
                z = self.process.posterior_mean(z0, z, t)

    def _noise(self, queries: Queries, step: int) -> Tensor:
        """[B, Z], by user"""
        return normals(self.scoring_seed, queries.keys, step, sum(self.latent_sizes))

    def _step(self, like: Tensor, step: int) -> Tensor:
        """[B], the same step for every row"""
        return torch.full((len(like),), step, device=like.device)

    # --- the autoencoders ---------------------------------------------------------------------------------------------

    def _encode(self, rows: SparseRows) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, [B, Z] each, cluster by cluster; tanh keeps both within (-1, 1)."""
        rows = replace(rows, columns=self.position[rows.columns])
        bounds = pairwise(accumulate(self.sizes, initial=0))
        found = [
            tanh(encoder(rows.between(*bound)).float()).chunk(2, dim=1)
            for encoder, bound in zip(self.encoders, bounds, strict=True)
        ]
        mean, log_variance = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return mean, log_variance

    def _decode(self, z: Tensor) -> Tensor:
        """[B, Z] -> [B, I]. One decoder for all clusters has the items where they stand; several have their own."""
        if len(self.decoders) == 1:
            logits: Tensor = self.decoders[0](z)
            return logits
        parts = torch.split(z, self.latent_sizes, dim=1)
        found = [decoder(part) for decoder, part in zip(self.decoders, parts, strict=True)]
        return torch.cat(found, dim=1)[:, self.position]


def cluster_sizes(item_clusters: Tensor, clusters: int, n_items: int) -> list[int]:
    """How many items each cluster has. Raises UserError unless every item is in one and each holds two or more."""
    if item_clusters.shape != (n_items,):
        raise UserError(f"item_clusters has {len(item_clusters)} labels for {n_items} items: cluster this dataset anew")
    sizes: list[int] = torch.bincount(item_clusters.clamp(min=0), minlength=clusters).tolist()
    if len(sizes) != clusters or bool((item_clusters < 0).any()):
        raise UserError(
            f"item_clusters has labels from {int(item_clusters.min())} to {int(item_clusters.max())}, "
            f"and options.clusters {clusters} asks for 0 to {clusters - 1}"
        )
    if min(sizes) < 2:
        raise UserError(f"item_clusters holds clusters of {sizes} items, and each needs at least 2: ask for fewer")
    return sizes


def cluster_widths(sizes: Sequence[int], width: int) -> list[int]:
    """A layer's `width` shared among clusters by size, rounded down and at least 1; the last has the remainder."""
    shares = [max(1, width * size // sum(sizes)) for size in sizes[:-1]]
    remainder = width - sum(shares)
    if remainder < 1:
        raise UserError(f"options.encoder: a width of {width} is too small for {len(sizes)} clusters")
    return [*shares, remainder]
