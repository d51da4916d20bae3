"""The split that row models are measured on: ML-1M clean of DiffRec's authors, or a generated one."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from noise2next.config import OfficialSplit
from noise2next.data.clustering import cluster
from noise2next.data.interactions import Interactions, Split
from noise2next.data.vocabulary import Vocabulary

USERS, ITEMS, ROWS = 5949, 2810, {"train": 403_277, "valid": 110_722, "test": 57_532}


def load() -> tuple[str, Split]:
    """What it is, and the official split, or one of its size."""
    archive = _archive()
    if archive is None:
        return "generated, of the size of ml-1m_clean", split_of(generated(USERS, ITEMS, ROWS), USERS, ITEMS)
    with zipfile.ZipFile(archive) as files:
        return "ml-1m_clean", split_of({part: _array(files, f"{part}_list") for part in ROWS}, USERS, ITEMS)


def halves(split: Split) -> tuple[str, np.ndarray]:
    """Two clusters of the items [I], and how they were made: from the authors' item vectors where they are there."""
    archive = _archive()
    if archive is None:
        popularity = np.bincount(split.train.items, minlength=split.n_items)
        return "by popularity", (popularity.argsort().argsort() * 2 // split.n_items).astype(np.int64)
    with zipfile.ZipFile(archive) as files:
        return "k-means of the authors' item vectors", cluster(_array(files, "item_emb"), 2, seed=1, n_init=10).labels


def _archive() -> Path | None:
    shared = Path(os.environ.get("NOISE2NEXT_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
    found = shared / "data" / "diffrec_official" / "ml-1m_clean.zip"
    return found if found.is_file() else None


def _array(files: zipfile.ZipFile, name: str) -> np.ndarray:
    return np.load(io.BytesIO(files.read(f"ml-1m_clean/{name}.npy")), allow_pickle=False)


def generated(n_users: int, n_items: int, rows: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Distinct pairs (user, item), long-tailed on both sides, dealt to parts of so many `rows`; each sorted by user."""
    draw = np.random.default_rng(0)
    activity, popularity = draw.lognormal(0, 1, n_users), 1 / np.arange(10, n_items + 10)
    wanted, pairs = sum(rows.values()), np.zeros(0, dtype=np.int64)
    while len(pairs) < wanted:
        users = draw.choice(n_users, 400_000, p=activity / activity.sum())
        items = draw.choice(n_items, 400_000, p=popularity / popularity.sum())
        pairs = np.unique(np.concatenate([pairs, users * n_items + items]))
    pairs = draw.permutation(pairs)[:wanted]
    cuts = np.cumsum(list(rows.values()))[:-1]
    return {
        part: np.stack(np.divmod(np.sort(chosen), n_items), axis=1)
        for part, chosen in zip(rows, np.split(pairs, cuts), strict=True)
    }


def split_of(parts: Mapping[str, np.ndarray], n_users: int, n_items: int) -> Split:
    """Rows (user, item) of each part, sorted by user."""
    made = {part: Interactions.of(rows[:, 0], rows[:, 1], None, n_users) for part, rows in parts.items()}
    users, items = (Vocabulary(tuple(map(str, range(size)))) for size in (n_users, n_items))
    return Split(OfficialSplit(history="train"), users, items, made["train"], made["valid"], made["test"], False)
