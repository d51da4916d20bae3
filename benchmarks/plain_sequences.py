"""Sequence models as one would first write them from the paper: the peers that `speed_sequences.py` measures against.

Histories are Python lists, cut and padded on the left user by user; every network computes every padded place; the
wrong items of the pairwise loss are drawn one by one; cross-entropy takes the logits of all places at once and leaves
the padding out afterwards. Same mathematics as `noise2next.models`: tests compare the two. Items count from 1 here, 0
is padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainSASRec(nn.Module):
    """Causal self-attention as in the authors' code; modules are named as in `SASRec`."""

    def __init__(self, n_items: int, size: int, blocks: int, heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, size, padding_idx=0)
        self.positions = nn.Embedding(max_length, size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PlainBlock(size, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size, eps=1e-8)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [B, L] -> states [B, L, D]"""
        real = inputs > 0
        x = self.items(inputs) * self.items.embedding_dim**0.5
        x = x + self.positions(torch.arange(inputs.shape[1]))
        x = self.dropout(x) * real[:, :, None]
        for block in self.blocks:
            x = block(x, real) * real[:, :, None]
        return self.norm(x)

    def cross_entropy(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Against all items: [B, L], [B, L] -> a scalar."""
        logits = self(inputs) @ self.items.weight[1:].T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten() - 1, ignore_index=-1)

    def binary_cross_entropy(self, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Against one wrong item a place: three of [B, L] -> a scalar."""
        states, real = self(inputs), targets > 0
        right = (states * self.items(targets)).sum(dim=-1)
        wrong = (states * self.items(negatives)).sum(dim=-1)
        loss = F.binary_cross_entropy_with_logits(right, torch.ones_like(right), reduction="none")
        loss = loss + F.binary_cross_entropy_with_logits(wrong, torch.zeros_like(wrong), reduction="none")
        return (loss * real).sum() / real.sum()


class PlainBlock(nn.Module):
    """Attention, then two layers at each place; both add to what they normalised."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(size, eps=1e-8)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.before_layers = nn.LayerNorm(size, eps=1e-8)
        self.inner, self.outer = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x [B, L, D], real [B, L]"""
        batch, length, size = x.shape
        normed = self.before_attention(x)
        q, k, v = (
            y.view(batch, length, self.heads, -1).transpose(1, 2)
            for y in (self.query(normed), self.key(x), self.value(x))
        )
        logits = q @ k.transpose(-1, -2) / (size // self.heads) ** 0.5
        logits = logits.masked_fill(~real[:, None, None, :], -(2.0**32) + 1)
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -(2.0**32) + 1)
        share = self.dropout(logits.softmax(dim=-1) * real[:, None, :, None])
        x = normed + (share @ v).transpose(1, 2).reshape(batch, length, size)
        normed = self.before_layers(x)
        return normed + self.dropout(self.outer(self.dropout(F.relu(self.inner(normed)))))


def batches(
    histories: Sequence[list[int]], order: Sequence[int], size: int, max_length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Users in `order`, `size` at a time: inputs and what came next after each, both [B, L]."""
    for start in range(0, len(order), size):
        inputs, targets = [], []
        for user in order[start : start + size]:
            recent = histories[user][-max_length - 1 :]
            padding = [0] * (max_length + 1 - len(recent))
            inputs.append(padding + recent[:-1])
            targets.append(padding + recent[1:])
        yield torch.tensor(inputs), torch.tensor(targets)


def negatives(histories: Sequence[list[int]], users: Sequence[int], targets: Tensor, n_items: int) -> Tensor:
    """For each place [B, L] that has a target, an item that its user never took; drawn until it fits."""
    drawn = torch.zeros_like(targets)
    for row, user in enumerate(users):
        seen = set(histories[user])
        for place in range(targets.shape[1]):
            if targets[row, place] > 0:
                item = random.randint(1, n_items)
                while item in seen:
                    item = random.randint(1, n_items)
                drawn[row, place] = item
    return drawn
