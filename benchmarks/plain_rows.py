"""L-DiffRec and LightGCN as one would first write them from the papers: the peers of `speed_rows.py`.

L-DiffRec takes dense rows, permutes their columns cluster by cluster, encodes each cluster by layers of torch and takes
the likelihood against the dense row. LightGCN multiplies by the square normalised adjacency of all users and items,
and draws its preferences one by one. Same mathematics as `noise2next.models`: a test compares the two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from plain_diffrec import PlainDiffRec


class PlainLDiffRec:
    """One encoder layer for each cluster and one decoder layer for all; `diffusion` is over the joint latent [B, Z].

    Counts its batches and epochs itself, for the weights that change with them.
    """

    def __init__(
        self,
        clusters: Sequence[Tensor],
        latents: Sequence[int],
        input_dropout: float,
        diffusion_weight: float,
        diffusion: PlainDiffRec,
    ) -> None:
        """The items of each cluster, and the width of its latent."""
        self.order = torch.cat(list(clusters))
        self.sizes = [len(items) for items in clusters]
        self.diffusion, self.diffusion_weight = diffusion, diffusion_weight
        self.encoders = nn.ModuleList(
            nn.Linear(size, 2 * latent) for size, latent in zip(self.sizes, latents, strict=True)
        )
        self.decoder = nn.Linear(sum(latents), len(self.order))
        self.dropout = nn.Dropout(input_dropout)
        for layer in (*self.encoders, self.decoder):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.network = nn.ModuleList([*self.encoders, self.decoder, self.dropout, diffusion.network])
        self.epochs = self.batches = 0

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [B, I] -> mean and log variance [B, Z]"""
        parts = rows[:, self.order].split(self.sizes, dim=1)
        found = [torch.tanh(encoder(part)).chunk(2, dim=1) for encoder, part in zip(self.encoders, parts, strict=True)]
        return torch.cat([mean for mean, _ in found], dim=1), torch.cat([log for _, log in found], dim=1)

    def loss(self, x0: Tensor) -> Tensor:
        rows = self.dropout(x0)
        t, divisor = self.diffusion.draw_steps(len(x0))
        latent = len(x0), self.decoder.in_features
        value = self.loss_of(rows, torch.randn(latent), t, divisor, torch.randn(latent))
        self.batches += 1
        return value

    def loss_of(self, rows: Tensor, spread: Tensor, t: Tensor, divisor: Tensor, noise: Tensor) -> Tensor:
        """Of rows [B, I] after their dropout; spread [B, Z] draws the latent, noise [B, Z] noises it."""
        mean, log_variance = self.encode(rows)
        z0 = mean + torch.exp(0.5 * log_variance) * spread
        restored = self.diffusion.restored(z0, t, noise)
        likelihood = (F.log_softmax(self.decoder(restored), dim=1) * rows).sum(dim=1).mean()
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
        of_diffusion = max((1 - self.epochs / 500) * self.diffusion_weight, 0.005)
        of_divergence = min(0.3, self.batches / 200)
        error = self.diffusion.error_of(z0, restored, t, divisor)
        return of_diffusion * error - likelihood + of_divergence * divergence

    @torch.no_grad()
    def score(self, x0: Tensor) -> Tensor:
        return self.decoder(self.diffusion.score(self.encode(x0)[0]))


class PlainLightGCN(nn.Module):
    """A vector for each node of the graph, users first, and the mean of its layers."""

    adjacency: Tensor  # D^-1/2 A D^-1/2, sparse [U + I, U + I]

    def __init__(self, n_users: int, n_items: int, pairs: Tensor, size: int, layers: int, decay: float) -> None:
        """pairs [N, 2]: a user and an item that he has taken, each once."""
        super().__init__()
        self.n_users, self.layers, self.decay = n_users, layers, decay
        self.nodes = nn.Parameter(torch.empty(n_users + n_items, size).normal_(std=0.1))
        users, items = pairs[:, 0], pairs[:, 1] + n_users
        edges = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
        scale = torch.bincount(edges[0], minlength=n_users + n_items).float().rsqrt()
        weights = scale[edges[0]] * scale[edges[1]]
        shape = (n_users + n_items, n_users + n_items)
        square = torch.sparse_coo_tensor(edges, weights, shape, check_invariants=True).coalesce()
        self.register_buffer("adjacency", square)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The mean of all layers, of users [U, D] and items [I, D]"""
        layers = [self.nodes]
        for _ in range(self.layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        mean = torch.stack(layers).mean(dim=0)
        return mean[: self.n_users], mean[self.n_users :]

    def loss(self, users: Tensor, taken: Tensor, others: Tensor) -> Tensor:
        """Three of [B] -> a scalar."""
        of_users, of_items = self()
        right = (of_users[users] * of_items[taken]).sum(dim=1)
        wrong = (of_users[users] * of_items[others]).sum(dim=1)
        first = [self.nodes[users], self.nodes[self.n_users + taken], self.nodes[self.n_users + others]]
        norms = sum(one.norm(2).pow(2) for one in first) / (2 * len(users))
        return F.softplus(wrong - right).mean() + self.decay * norms


def preferences(histories: Sequence[list[int]], n_items: int, count: int) -> Tensor:
    """`count` users, each with an item of his and one that he never took, drawn until it fits: [count, 3]."""
    seen = [set(history) for history in histories]
    drawn = []
    for _ in range(count):
        user = random.randrange(len(histories))
        other = random.randrange(n_items)
        while other in seen[user]:
            other = random.randrange(n_items)
        drawn.append((user, random.choice(histories[user]), other))
    return torch.tensor(drawn)
