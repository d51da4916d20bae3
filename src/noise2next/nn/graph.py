"""The graph of users and items that interactions draw, and how vectors spread over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class BipartiteGraph:
    """An edge for each item that a user has taken, without weights, in the order of either side.

    With A the adjacency and D its degrees, vectors x spread as (D^-1/2 A D^-1/2)^k x = D^1/2 (D^-1 A)^k D^-1/2 x.
    So between the two scalings each step is a mean over neighbours: no weight an edge, and a gather that is several
    times faster than a sparse product.
    """

    def __init__(self, bounds: Tensor, items: Tensor, n_items: int) -> None:
        """The items of user u are items[bounds[u]:bounds[u + 1]], ascending, each once; bounds [U+1], items [N]."""
        self.n_users, self.n_items = len(bounds) - 1, n_items
        self.user_degrees = bounds.diff()
        self.item_degrees = torch.bincount(items, minlength=n_items)
        users = torch.repeat_interleave(
            torch.arange(self.n_users, device=items.device), self.user_degrees, output_size=len(items)
        )
        self._edges = users * n_items + items  # ascending, for `linked`
        self._items, self._of_user = items, bounds
        self._users = users[torch.argsort(items, stable=True)]
        self._of_item = torch.cat([bounds.new_zeros(1), self.item_degrees.cumsum(0)])

    def spread(self, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """The mean of layers 0 to `layers`: users [U, D], items [I, D] -> the same shapes, differentiable."""
        return _Spread.apply(users, items, self, layers)  # type: ignore[no-any-return, no-untyped-call]

    def scaled_layers(self, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """D^-1/2 times layer k, summed over k from 0 to `layers`."""
        y, z = users / _root(self.user_degrees, users), items / _root(self.item_degrees, items)
        of_users, of_items = y.clone(), z.clone()
        for _ in range(layers):
            y, z = self.to_users(z), self.to_items(y)
            of_users += y
            of_items += z
        return of_users, of_items

    def to_users(self, items: Tensor) -> Tensor:
        """The mean over each user's items: [I, D] -> [U, D]"""
        return _mean(self._items, items, self._of_user, self.user_degrees)

    def to_items(self, users: Tensor) -> Tensor:
        """The mean over each item's users: [U, D] -> [I, D]"""
        return _mean(self._users, users, self._of_item, self.item_degrees)

    def linked(self, users: Tensor, items: Tensor) -> Tensor:
        """[B] bool: whether users [B] have taken items [B]."""
        wanted = users * self.n_items + items
        place = torch.searchsorted(self._edges, wanted).clamp_(max=len(self._edges) - 1)
        return self._edges[place] == wanted

    def preferences(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Users, an item that each has taken and one that he has not, all [count] and each uniform (Rendle, 2009).

        `draws` lives on the CPU. Who has taken everything prefers nothing and is never drawn; one user must be left.
        """
        device = self._items.device
        choosers = (self.user_degrees < self.n_items).nonzero().squeeze(1)
        users = choosers[torch.randint(len(choosers), (count,), generator=draws).to(device)]
        share = torch.rand(count, generator=draws, dtype=torch.float64).to(device)
        taken = self._items[self._of_user[users] + (share * self.user_degrees[users]).long()]
        others = torch.randint(self.n_items, (count,), generator=draws).to(device)
        again = self.linked(users, others).nonzero().squeeze(1)
        while len(again):
            others[again] = torch.randint(self.n_items, (len(again),), generator=draws).to(device)
            again = again[self.linked(users[again], others[again])]
        return users, taken, others


class _Spread(torch.autograd.Function):
    """The map from vectors to their layer mean is symmetric, so that it carries gradients back as well."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, graph: BipartiteGraph, layers: int) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.layers = graph, layers
        return _layer_mean(graph, users, items, layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_layer_mean(ctx.graph, gradients[0], gradients[1], ctx.layers), None, None


def _layer_mean(graph: BipartiteGraph, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    of_users, of_items = graph.scaled_layers(users, items, layers)
    of_users *= _root(graph.user_degrees, users) / (layers + 1)
    of_items *= _root(graph.item_degrees, items) / (layers + 1)
    return of_users, of_items


def _mean(places: Tensor, values: Tensor, bounds: Tensor, degrees: Tensor) -> Tensor:
    # Summed and then divided: the bag's own mean takes twice as long on a CPU.
    summed = embedding_bag(places, values, bounds, mode="sum", include_last_offset=True)
    return summed.div_(degrees.clamp(min=1).to(values.dtype)[:, None])


def _root(degrees: Tensor, like: Tensor) -> Tensor:
    """[N, 1], the square root; an isolated node, which receives nothing, has the scale of one neighbour."""
    return degrees.clamp(min=1).to(like.dtype).sqrt()[:, None]
