"""A prepared split of users with two tastes, a few variants of small models, and a registry of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noise2next.config import Params, Settings
from noise2next.data.vocabulary import Vocabulary
from noise2next.registry.packaging import CONTENT
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import evaluate, register, train
from noise2next.workspace import Workspace, write_json, writing

USERS, ITEMS = 120, 20
DAY = 86_400_000_000
POLICY = """
metric: recall@5
bootstrap: {samples: 200, level: 0.95, seed: 1}
guards: {ndcg@5: 0.05}
baseline: {variant: most_pop}
floors: {coverage@5: 0.05}
limits: {latency_ms: 1000, size_mb: 100}
"""


class World(NamedTuple):
    params: Params
    space: Workspace
    settings: Settings

    def offer(self, *variants: str) -> register.RegistrationReport:
        """Train and evaluate `variants`, forget the other evaluations, register."""
        shutil.rmtree(self.space.artifacts / "evaluate", ignore_errors=True)
        for name in ("most_pop", *variants):
            train.run(self.params, self.space, self.settings, name)
            evaluate.run(self.params, self.space, self.settings, name)
        return register.run(self.params, self.space, self.settings)

    def copy(self, root: Path) -> World:
        """The same shop in another folder; what is registered there is another's no more."""
        shutil.copytree(self.space.root, root)
        return World(self.params, Workspace(root, self.space.dataset), Settings(root=root, device="cpu"))

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry(self.settings, self.space)

    def aliases(self) -> dict[str, str]:
        found = {name: self.registry.at(name) for name in ("challenger", "champion", "previous")}
        return {name: str(version.version) for name, version in found.items() if version}

    def damage(self, version: str) -> None:
        """Turn one bit of a version's weights."""
        weights = self.registry.fetch(self.registry.version(version)) / CONTENT / "model" / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)

    def count(self) -> int:
        return len(self.registry.client.search_model_versions(f"name = '{self.registry.name}'"))


def prepare(space: Workspace, seed: int, start: int, items: list[str]) -> None:
    """Users of two tastes, three windows of time; half of each window's rows are of the user's taste."""
    draw = np.random.default_rng(seed)
    with writing(space.prepared) as folder:
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(items)).save(folder / "items.parquet")
        for at, (name, rows) in enumerate({"train": 1500, "valid": 400, "test": 600}.items()):
            users = np.sort(draw.integers(0, USERS, rows)).astype(np.int32)
            half = len(items) // 2
            taste = draw.integers(0, half, rows) + np.where(users % 2, half, 0)
            chosen = np.where(draw.random(rows) < 0.9, taste, draw.integers(0, len(items), rows)).astype(np.int32)
            times = (start + 100 * at) * DAY + np.arange(rows)
            pq.write_table(pa.table({"user": users, "item": chosen, "time": times}), folder / f"{name}.parquet")
        report = {"data_version": f"{seed:064d}", "items": len(items), "notes": []}
        write_json(folder / "report.json", report)


def small_shop(root: Path, empty_store: Path) -> World:
    """In the folder `root`, with a copy of the database `empty_store`."""
    ease, knn = "noise2next.models.ease.EASE", "noise2next.models.item_knn.ItemKNN"
    split = {"kind": "global_time", "mask_seen": False}
    shop = {"path": "s.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s", "split": split}
    params = Params.model_validate(
        {
            "datasets": {"shop": shop},
            "variants": {
                "most_pop": {"model": "noise2next.models.popularity.MostPop"},
                "faint": {"model": knn, "options": {"neighbours": 1}},
                "ease": {"model": ease, "options": {"l2": 50}},
                "twin": {"model": ease, "options": {"l2": 51}},
                "noised": {"model": ease, "options": {"l2": 50}, "noise": {"share": 0.01}},
            },
            "trainer": {"metric": "recall@5"},
            "evaluation": {"cutoffs": [5], "bootstrap_samples": 100},
        }
    )
    space = Workspace(root, "shop")
    space.promotion_policy.parent.mkdir()
    space.promotion_policy.write_text(POLICY)
    shutil.copy(empty_store, space.tracking_store)
    prepare(space, 1, 0, [f"i{item}" for item in range(ITEMS)])
    return World(params, space, Settings(root=root, device="cpu"))
