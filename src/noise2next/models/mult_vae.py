"""Mult-VAE: a variational autoencoder with a multinomial likelihood (Liang et al., WWW 2018, arXiv 1802.05814)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.models.rows import item_rows
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import gaussian_kl, multinomial_nll
from noise2next.nn.mlp import Perceptron
from noise2next.nn.sparse import SparseLinear, SparseRows


class MultVAE(Trainable):
    """Draw a latent from a user's row and restore the row as draws from one multinomial over the items."""

    class Config(ModelConfig):
        hidden: tuple[PositiveInt, ...] = (600,)  # of the encoder, from the items on; the decoder mirrors it
        latent_size: PositiveInt = 200
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of the row at length 1
        anneal_cap: NonNegativeFloat = 0.2  # the largest beta, which weighs the KL
        total_anneal_steps: PositiveInt = 200_000  # batches in which beta would grow to 1

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.encoder = Perceptron([n_items, *config.hidden, 2 * config.latent_size], sparse=True)
        self.decoder = Perceptron([config.latent_size, *reversed(config.hidden), n_items])
        for layer in self.modules():
            if isinstance(layer, nn.Linear | SparseLinear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        row = item_rows(batch)
        unit = row.normalised()
        mean, log_variance = self._encode(unit.with_values(self.dropout(unit.values)))
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return {
            "nll": multinomial_nll(self.decoder(z), row),
            "kl": self.beta(clock) * gaussian_kl(mean, log_variance),
        }

    def beta(self, clock: Clock) -> float:
        return min(self.config.anneal_cap, clock.batch / self.config.total_anneal_steps)

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        mean, _ = self._encode(item_rows(queries).normalised())
        logits: Tensor = self.decoder(mean)
        return logits

    def _encode(self, rows: SparseRows) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, [B, Z] each."""
        mean, log_variance = self.encoder(rows).float().chunk(2, dim=1)
        return mean, log_variance
