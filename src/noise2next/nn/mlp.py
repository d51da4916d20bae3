"""Perceptrons: plain ones, and the denoiser of DiffRec over a whole row and the step (Wang et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noise2next.nn.activations import tanh
from noise2next.nn.dropout import Dropout
from noise2next.nn.sparse import SparseLinear, SparseRows
from noise2next.nn.time_embedding import step_embedding


class Perceptron(nn.Module):
    """Linear layers with tanh between them and nothing after the last: widths (w0, ..., wk), [B, w0] -> [B, wk].

    A `sparse` one reads SparseRows. Its user gives the initial values.
    """

    def __init__(self, widths: Sequence[int], sparse: bool = False) -> None:
        super().__init__()
        self.first = (SparseLinear if sparse else nn.Linear)(widths[0], widths[1])
        self.others = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths[1:]))

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        state: Tensor = self.first(x)
        for layer in self.others:
            state = layer(tanh(state))
        return state


class Denoiser(nn.Module):
    """tanh layers from a row x_t [B, I] and its step t to a row [B, I]; a row is of items, or a latent.

    `hidden` (h1, ..., hk) is read as the authors read `dims`: widths I + d -> hk -> ... -> h1 -> ... -> hk -> I, with d
    the size of the step embedding. The first layer of [x, e(t)] is kept as two, one for each half, so the items need no
    copy and enter linearly: `forward` is `project`, plus `condition`, then `inner`, then `decode`. With d = 0 the
    network is not told the step.
    """

    steps: Tensor

    def __init__(
        self,
        width: int,
        steps: int,
        hidden: Sequence[int],
        step_size: int,
        dropout: float,
        normalise: bool,
        bias_deviation: float = 0.001,
    ) -> None:
        """width: I. `bias_deviation` is that of the initial biases."""
        super().__init__()
        widths = [*reversed(hidden), *hidden[1:]]
        self.normalise = normalise
        self.dropout = Dropout(dropout)
        self.register_buffer("steps", step_embedding(torch.arange(steps), step_size).float(), persistent=False)
        self.embedding = nn.Linear(step_size, step_size) if step_size else None
        self.from_items = nn.Linear(width, widths[0], bias=not step_size)
        self.from_step = nn.Linear(step_size, widths[0]) if step_size else None
        self.middle = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.decode = nn.Linear(widths[-1], width)
        self._initialise(step_size, bias_deviation)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, I], t [B] -> [B, I]: the clean row, or its noise, as the model wants it."""
        if self.normalise:
            x = F.normalize(x)
        last = self.inner(self.project(self.dropout(x)) + self.condition(t))
        return F.linear(last, self.decode.weight, self.decode.bias)

    def project(self, x: Tensor) -> Tensor:
        """The first layer's linear part of the items: [B, I] -> [B, H]."""
        return F.linear(x, self.from_items.weight)

    def condition(self, t: Tensor) -> Tensor:
        """What the step and the bias add to the first layer: t [B] -> [B, H]."""
        if self.embedding is None or self.from_step is None:
            return self.from_items.bias.expand(len(t), -1)
        e = F.linear(self.steps[t], self.embedding.weight, self.embedding.bias)
        return F.linear(e, self.from_step.weight, self.from_step.bias)

    def inner(self, first: Tensor) -> Tensor:
        """From the first layer's sum [B, H] to the last hidden layer [B, H]."""
        state = tanh(first)
        for layer in self.middle:
            state = tanh(layer(state))
        return state

    @torch.no_grad()
    def _initialise(self, step_size: int, bias_deviation: float) -> None:
        """Weights N(0, 2 / (fan in + fan out)), biases N(0, 0.001^2) in DiffRec, 0 in L-DiffRec, as in their code."""
        for layer in self._linear_layers():
            fan_out, fan_in = layer.weight.shape
            if layer in (self.from_items, self.from_step):  # two halves of one layer
                fan_in = self.from_items.in_features + step_size
            layer.weight.normal_(0.0, (2 / (fan_in + fan_out)) ** 0.5)
            if layer.bias is not None:
                layer.bias.normal_(0.0, bias_deviation)

    def _linear_layers(self) -> Iterable[nn.Linear]:
        return (module for module in self.modules() if isinstance(module, nn.Linear))
