"""LightGCN: vectors of users and items, spread over the graph of interactions (He et al., SIGIR 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.graph import BipartiteGraph


class LightGCN(Trainable):
    """A vector for each user and item; what is scored is the mean of its layers, spread over the training graph.

    The graph has no weights: a weighted history is read by its structure. It is no part of the model on disk: what
    scoring needs of it are two tables of the items, so that anyone is scored from a history (see `score`).
    """

    class Config(ModelConfig):
        embedding_size: PositiveInt = 64  # D
        layers: PositiveInt = 3  # K
        decay: NonNegativeFloat = 1e-4  # weight of the squared norms of the vectors before they spread

    inputs = ("user_keys",)

    def __init__(self, config: Config, n_items: int, user_keys: Tensor) -> None:
        super().__init__()
        self.config = config
        self.users = nn.Parameter(torch.empty(len(user_keys), config.embedding_size).normal_(std=0.1))  # layer 0
        self.items = nn.Parameter(torch.empty(n_items, config.embedding_size).normal_(std=0.1))
        self.user_keys: Tensor
        self.register_buffer("user_keys", user_keys)
        self.sorted_keys: Tensor
        self.places: Tensor
        for name, value in zip(("sorted_keys", "places"), torch.sort(user_keys), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.item_vectors: Tensor  # mean of the layers
        self.item_messages: Tensor  # what an item gives to each user who has taken it
        self.register_buffer("item_vectors", torch.zeros(n_items, config.embedding_size))
        self.register_buffer("item_messages", torch.zeros(n_items, config.embedding_size))
        self._graph: BipartiteGraph | None = None

    # --- training (paper section 3.3) ---------------------------------------------------------------------------------

    def samples(self, train: Queries) -> int:
        """As many draws an epoch as there are interactions."""
        return len(train.items)

    def begin_training(self, train: Queries) -> None:
        """Lay out the graph, which judging needs too. Raises UserError where every user has taken every item."""
        once = train.folded()
        if int(once.lengths.min()) == train.n_items:
            raise UserError("every user has taken every item: there is no preference to learn")
        self._graph = BipartiteGraph(once.indptr, once.items, train.n_items)

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        """One epoch of preferences: a row is an item that the user has taken, then one that he has not.

        Users are drawn alike, whatever the lengths of their histories, as in the authors' code.
        """
        assert self._graph is not None
        for start in range(0, self.samples(train), size):
            users, taken, others = self._graph.preferences(min(size, self.samples(train) - start), order)
            rows = torch.stack([taken, others], dim=1)
            indptr = torch.arange(0, rows.numel() + 1, 2, device=train.device)
            ones = torch.ones(rows.numel(), device=train.device)
            yield Queries(indptr, rows.flatten(), ones, None, train.keys[users], train.n_items)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        assert self._graph is not None
        users = self._places(batch.keys)[0]
        taken, others = batch.items.view(-1, 2).unbind(dim=1)
        of_users, of_items = self._graph.spread(self.users, self.items, self.config.layers)
        ahead = F.embedding(taken, of_items) - F.embedding(others, of_items)
        margin = (F.embedding(users, of_users) * ahead).sum(dim=1)
        first = (F.embedding(users, self.users), F.embedding(taken, self.items), F.embedding(others, self.items))
        norms = torch.stack([one.square().sum() for one in first]).sum()
        return {"bpr": F.softplus(-margin).mean(), "decay": self.config.decay * norms / (2 * len(batch))}

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin_scoring(self) -> None:
        """While the training graph is there, bring the items' tables up to date."""
        if self._graph is not None:
            self.item_vectors.copy_(self._graph.spread(self.users, self.items, self.config.layers)[1])
            self.item_messages.copy_(self._graph.scaled_layers(self.users, self.items, self.config.layers - 1)[1])

    def item_embeddings(self) -> Tensor:
        """[I, D], the mean of the layers"""
        return self.item_vectors

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        """A user's layers follow from the items of his history: e_u^(k+1) = sum of e_i^(k) / sqrt(|N_u| |N_i|).

        N_i are the item's users in training, N_u the history. For a training user and history this is the spread over
        the graph itself; a history of someone else lacks only the learned e_u^(0).
        """
        once = queries.folded()
        received = F.embedding_bag(once.items, self.item_messages, once.indptr, mode="mean", include_last_offset=True)
        places, known = self._places(queries.keys)
        own = self.users[places] * known[:, None]
        vectors = (own + received * once.lengths.sqrt()[:, None]) / (self.config.layers + 1)
        return vectors @ self.item_vectors.t()

    def _places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Where each user's vector stands, and whether there is one: keys [B] -> int64 [B], bool [B]."""
        found = torch.searchsorted(self.sorted_keys, keys).clamp_(max=len(self.sorted_keys) - 1)
        return self.places[found], self.sorted_keys[found] == keys

    # The graph lies on the device that training took place on.

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._graph = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
