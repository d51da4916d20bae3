"""Judge a packaged model on today's split, although it speaks another vocabulary."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from noise2next.config import EvaluationConfig
from noise2next.data.interactions import Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.evaluation.evaluator import judge
from noise2next.models.base import ModelConfig, Recommender
from noise2next.registry.packaging import Package
from noise2next.registry.promotion import Judged


class Translated(Recommender):
    """A model over its own items, asked and answering in the indices of another vocabulary.

    Items that the model does not know are left out of a history and score minus infinity.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, inner: Recommender, its: Vocabulary, outer: Vocabulary) -> None:
        super().__init__()
        self.inner = inner
        self.n_inner = len(its)
        places = [its.index.get(raw, -1) for raw in outer.ids]
        self.places: Tensor  # [I]: the model's index of each outer item, or -1
        self.register_buffer("places", torch.tensor(places, dtype=torch.int64))

    def begin_scoring(self) -> None:
        self.inner.begin_scoring()

    def score(self, queries: Queries) -> Tensor:
        scores = self.inner.score(self._translate(queries))
        known = self.places >= 0
        found = scores.new_full((len(queries), len(self.places)), -torch.inf)
        found[:, known] = scores[:, self.places[known]]
        return found

    def _translate(self, queries: Queries) -> Queries:
        items = self.places[queries.items]
        keep = items >= 0
        lengths = torch.bincount(queries.rows()[keep], minlength=len(queries))
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        times = None if queries.times is None else queries.times[keep]
        return Queries(indptr, items[keep], queries.weights[keep], times, queries.keys, self.n_inner)


def shared_items(package: Package, split: Split) -> int:
    """How many of the split's items the package knows; with none it cannot be judged."""
    return sum(raw in package.artifact.items.index for raw in split.items.ids)


def judge_package(package: Package, split: Split, config: EvaluationConfig, device: torch.device) -> Judged:
    """The package's model on the test window of `split`, every user's history read through its own vocabulary."""
    model = Translated(package.artifact.model, package.artifact.items, split.items).to(device)
    found = judge(model, split, package.artifact.card.variant.weighting, ["test"], config, device)["test"]
    users = tuple(split.users.ids[user] for user in found.users)
    return Judged(users, split.known("test").lengths[found.users], found.per_user, found.lists)


def remarks(package: Package, split: Split, side: str) -> list[str]:
    """What makes the comparison uneven for the package, the `side` of it: items that it lacks, test rows that it was
    trained on.
    """
    said = []
    missing = split.n_items - shared_items(package, split)
    if missing:
        said.append(f"the {side} does not know {missing:,} of {split.n_items:,} items and cannot recommend them")
    until, times = package.about.trained_until, split.test.times
    if until is not None and times is not None and split.has_clock and len(times) and until >= times.min():
        share = float(np.mean(times <= until))
        said.append(
            f"the {side}'s training reaches into this test window ({share:.0%} of its rows are not newer), "
            f"which favours the {side}"
        )
    return said
