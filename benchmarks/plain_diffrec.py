"""DiffRec as one would first write it from the paper: the peer that `speed.py` measures against.

Dense rows through a DataLoader, the network on a concatenation, torch's own dropout and optimiser, a loss history kept
sample by sample in Python, the reverse chain over all items, one pass of it for each part of the split, and metrics in
Python loops. Same mathematics as `noise2next.models.diffrec`: a test compares the two.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise2next.data.interactions import Interactions, Split

MEMORY = 10


class PlainModel(Protocol):
    """A peer that reads dense rows [B, I]."""

    network: nn.Module

    def loss(self, x0: Tensor) -> Tensor:
        """A scalar."""

    def score(self, x0: Tensor) -> Tensor:
        """[B, I]"""


class PlainNetwork(nn.Module):
    """tanh layers over [dropped x_t, step embedding]; widths I + d -> h_k ... h_1 ... h_k -> I."""

    def __init__(self, n_items: int, hidden: tuple[int, ...], step_size: int = 10) -> None:
        super().__init__()
        widths = [n_items + step_size, *reversed(hidden), *hidden[1:], n_items]
        self.step_size = step_size
        self.embedding = nn.Linear(step_size, step_size)
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1))
        self.dropout = nn.Dropout(0.5)
        for layer in (self.embedding, *self.layers):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / sum(layer.weight.shape)))
            nn.init.normal_(layer.bias, 0.0, 0.001)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.step_size // 2
        waves = torch.exp(-math.log(10000) * torch.arange(half, dtype=x.dtype) / half)
        angles = t[:, None].to(x.dtype) * waves[None]
        e = self.embedding(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        state = torch.cat([self.dropout(x), e], dim=-1)
        for layer in self.layers[:-1]:
            state = torch.tanh(layer(state))
        return self.layers[-1](state)


class PlainDiffRec:
    """The process, the importance-sampled loss and the reverse chain, x0 parameterisation, linear variance."""

    def __init__(
        self,
        network: PlainNetwork,
        steps: int,
        scale: float,
        low: float,
        high: float,
        first_beta: float | None = 1e-5,
    ) -> None:
        self.network = network
        self.steps = steps
        variance = scale * np.linspace(low, high, steps)
        betas = [float(variance[0]) if first_beta is None else first_beta]
        for t in range(1, steps):
            betas.append(min(1 - (1 - variance[t]) / (1 - variance[t - 1]), 0.999))
        self.kept = np.cumprod(1 - np.array(betas))
        before = np.append(1.0, self.kept[:-1])
        self.to_clean = np.array(betas) * np.sqrt(before) / (1 - self.kept)
        self.to_noisy = (1 - before) * np.sqrt(1 - np.array(betas)) / (1 - self.kept)
        snr = self.kept / (1 - self.kept)
        self.weights = np.append(1.0, snr[:-1] - snr[1:])
        self.history = np.zeros((steps, MEMORY))
        self.counts = np.zeros(steps, dtype=int)

    def draw_steps(self, size: int) -> tuple[Tensor, Tensor]:
        if (self.counts < MEMORY).any():
            return torch.randint(0, self.steps, (size,)), torch.ones(size)
        rms = np.sqrt((self.history**2).mean(axis=-1))
        law = torch.tensor(0.999 * rms / rms.sum() + 0.001 / self.steps)
        t = torch.multinomial(law, size, replacement=True)
        return t, law[t] * self.steps

    def loss(self, x0: Tensor) -> Tensor:
        t, divisor = self.draw_steps(len(x0))
        return self.loss_of(x0, t, divisor, torch.randn_like(x0))

    def loss_of(self, x0: Tensor, t: Tensor, divisor: Tensor, noise: Tensor) -> Tensor:
        return self.error_of(x0, self.restored(x0, t, noise), t, divisor)

    def restored(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network makes of the noised row."""
        kept = torch.tensor(self.kept)[t][:, None]
        x_t = torch.sqrt(kept).to(x0.dtype) * x0 + torch.sqrt(1 - kept).to(x0.dtype) * noise
        return self.network(x_t, t)

    def error_of(self, x0: Tensor, restored: Tensor, t: Tensor, divisor: Tensor) -> Tensor:
        """The weighted loss, remembered sample by sample."""
        error = ((x0 - restored) ** 2).mean(dim=1)
        losses = torch.tensor(self.weights)[t].to(x0.dtype) * error
        for step, one in zip(t, losses, strict=True):
            step, value = int(step), float(one.detach())
            if self.counts[step] == MEMORY:
                self.history[step, :-1] = self.history[step, 1:]
                self.history[step, -1] = value
            else:
                self.history[step, self.counts[step]] = value
                self.counts[step] += 1
        return (losses / divisor.to(x0.dtype)).mean()

    @torch.no_grad()
    def score(self, x0: Tensor) -> Tensor:
        x = x0
        for step in reversed(range(self.steps)):
            guess = self.network(x, torch.full((len(x),), step))
            x = float(self.to_clean[step]) * guess + float(self.to_noisy[step]) * x
        return x


class DenseSplit:
    """The whole split as matrices of users and items, and what each user took as a list."""

    def __init__(self, split: Split) -> None:
        def dense(interactions: Interactions) -> NDArray[np.float32]:
            rows = np.zeros((len(split.users), split.n_items), dtype=np.float32)
            rows[interactions.users, interactions.items] = 1
            return rows

        self.rows = dense(split.train)
        self.seen = {"valid": self.rows > 0, "test": (self.rows + dense(split.valid)) > 0}
        self.truth = {
            part: [
                right.tolist() if known else []  # without a history nobody is judged
                for right, known in zip(
                    np.split(truth.items, truth.indptr[1:-1]), split.train.lengths.tolist(), strict=True
                )
            ]
            for part, truth in (("valid", split.valid), ("test", split.test))
        }

    def evaluate(self, model: PlainModel, part: str, size: int, cutoffs: tuple[int, ...]) -> dict[str, float]:
        """`size` users at a time."""
        return evaluate(model, loader(self.rows, size, shuffle=False), self.seen[part], self.truth[part], cutoffs)


def loader(rows: NDArray[np.float32], batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of dense rows [B, I]."""
    return DataLoader(TensorDataset(torch.from_numpy(rows)), batch_size=batch_size, shuffle=shuffle)


def train_epoch(model: PlainModel, batches: DataLoader[tuple[Tensor, ...]], optimiser: torch.optim.Optimizer) -> float:
    """One epoch; returns the mean loss."""
    model.network.train()
    total = 0.0
    for (x0,) in batches:
        optimiser.zero_grad()
        loss = model.loss(x0)
        loss.backward()
        optimiser.step()
        total += float(loss.detach())
    return total / len(batches)


def evaluate(
    model: PlainModel,
    batches: DataLoader[tuple[Tensor, ...]],
    seen: NDArray[np.bool_],
    truth: list[list[int]],
    cutoffs: tuple[int, ...],
) -> dict[str, float]:
    """Recall and NDCG at each cutoff over all users who took something: the model is asked for this part alone."""
    model.network.eval()
    lists: list[list[int]] = []
    for (x0,) in batches:
        scores = model.score(x0)
        scores[torch.from_numpy(seen[len(lists) : len(lists) + len(x0)])] = -np.inf
        lists.extend(torch.topk(scores, max(cutoffs)).indices.tolist())
    judged = [(top, right) for top, right in zip(lists, truth, strict=True) if right]
    found = {}
    for k in cutoffs:
        recall = ndcg = 0.0
        for top, right in judged:
            hits, gain, ideal = 0, 0.0, 0.0
            for place in range(k):
                if top[place] in right:
                    hits += 1
                    gain += 1 / math.log2(place + 2)
            for place in range(min(k, len(right))):
                ideal += 1 / math.log2(place + 2)
            recall += hits / len(right)
            ndcg += gain / ideal
        found[f"recall@{k}"] = recall / len(judged)
        found[f"ndcg@{k}"] = ndcg / len(judged)
    return found
