"""A small shop: packages of several versions whose lists differ, and a registry of them in memory."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from fastapi import FastAPI

from noise2next.config import Dataset, GlobalTime, Variant
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import ClosedForm, build
from noise2next.registry import packaging
from noise2next.serving.app import create_app
from noise2next.serving.batching import Batcher
from noise2next.serving.following import Follower
from noise2next.serving.metrics import Metrics
from noise2next.workspace import digest, verify

USERS, ITEMS = 40, 30
DAY = 86_400_000_000
DATASET = Dataset.model_validate(
    {"path": "shop.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"}
)


def split(seed: int) -> Split:
    """Two tastes; `i0` is what most took, long ago, and the last item what most took of late. u39 took nothing."""
    draw = np.random.default_rng(seed)
    users = np.sort(draw.integers(0, USERS - 1, 300))
    half = ITEMS // 2
    items = draw.integers(1, half, 300) + np.where(users % 2, half - 1, 0)
    times = np.arange(300) * DAY // 10
    users, items = np.concatenate([users, np.arange(30)]), np.concatenate([items, np.zeros(30, dtype=np.int64)])
    times = np.concatenate([times, np.arange(30)])
    users, items = np.concatenate([users, np.arange(20)]), np.concatenate([items, np.full(20, ITEMS - 1)])
    times = np.concatenate([times, np.full(20, 400 * DAY)])
    order = np.lexsort((times, users))
    train = Interactions.of(users[order], items[order], times[order], USERS)
    nothing = Interactions.of(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, np.int64), USERS)
    names = Vocabulary(tuple(f"u{user}" for user in range(USERS))), Vocabulary(tuple(f"i{i}" for i in range(ITEMS)))
    return Split(GlobalTime(), *names, train, nothing, nothing, True)


def trained(place: Path, seed: int) -> Path:
    """EASE on the log of `seed`, which is also its data version."""
    variant = Variant.model_validate({"name": "ease", "model": "noise2next.models.ease.EASE", "options": {"l2": 5}})
    model = build(variant, ITEMS)
    assert isinstance(model, ClosedForm)
    log = split(seed)
    model.solve(Queries.of(log.train, ITEMS, log.users.keys))
    card = ModelCard(
        dataset="shop", variant=variant, n_items=ITEMS, seed=1, data_version=f"{seed:064d}", fingerprint=f"{seed:064d}"
    )
    Artifact(model, log.items, card).save(place, {"run_id": "r"})
    return place


@functools.cache
def package(root: Path, seed: int) -> Path:
    """Made once in a session: MLflow takes a second for each."""
    place = root / f"package-{seed}"
    packaging.build(trained(root / f"model-{seed}", seed), split(seed), DATASET, place)
    return place


class Shelf:
    """A registry in memory: version N is the package of seed N."""

    name = "noise2next-shop"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.champion: str | None = "1"
        self.away = False
        self.places: dict[str, Path] = {}  # of versions that are not what the session's packages are

    def at(self, alias: str) -> SimpleNamespace | None:
        assert alias == "champion"
        if self.away:
            raise ConnectionRefusedError("nobody there")
        if self.champion is None:
            return None
        return SimpleNamespace(version=self.champion, tags={"digest": digest(self.place(self.champion))})

    def fetch(self, version: SimpleNamespace) -> Path:
        verify(self.place(version.version))
        return self.place(version.version)

    def place(self, version: str) -> Path:
        return self.places.get(version) or package(self.root, int(version))


class Service:
    """The app over a shelf, as the server puts it together, with its champion loaded."""

    def __init__(self, shelf: Shelf, threads: int = 2, seconds: float = 0.02, exclude_seen: bool = True) -> None:
        self.metrics = Metrics()
        self.follower = Follower(lambda: shelf, seconds, self.metrics, exclude_seen)
        self.batcher = Batcher(threads, self.metrics.together.observe)
        self.follower.look()
        self.app: FastAPI = create_app(self.follower, self.batcher, self.metrics)

    @property
    def package(self) -> packaging.Package:
        assert self.follower.champion is not None
        return self.follower.champion.package
