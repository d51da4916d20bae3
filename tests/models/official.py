"""The papers' own files as splits, for tests on real data."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from noise2next.config import EvaluationConfig, OfficialSplit, Params, UniformWeights
from noise2next.data.interactions import Interactions, Split
from noise2next.data.vocabulary import Vocabulary
from noise2next.evaluation.evaluator import judge
from noise2next.models.base import Recommender
from noise2next.stages import ingest, prepare
from noise2next.workspace import Workspace


def diffrec(shared: Path, name: str) -> Split:
    """DiffRec's archive of that name (ml-1m_clean, ml-1m_noisy) as its authors split it."""
    with zipfile.ZipFile(shared / "diffrec_official" / f"{name}.zip") as archive:
        rows = {
            part: np.load(io.BytesIO(archive.read(f"{name}/{part}_list.npy")), allow_pickle=False)
            for part in ("train", "valid", "test")
        }
    users, items = rows["train"].max(axis=0) + 1
    made = {part: Interactions.of(pairs[:, 0], pairs[:, 1], None, users) for part, pairs in rows.items()}
    names = [Vocabulary(tuple(map(str, range(count)))) for count in (users, items)]
    return Split(OfficialSplit(history="train"), *names, made["train"], made["valid"], made["test"], False)


def diffurec(shared: Path, name: str, folder: Path) -> Split:
    """DiffuRec's file of that name (amazon_beauty, toys, ml-1m), ingested and prepared by us in `folder`."""
    space = Workspace(folder, name)
    space.data.mkdir()
    space.data.joinpath("log.parquet").symlink_to(shared / "diffurec_official" / f"{name}.parquet")
    entry = {
        "path": "log.parquet",
        "format": "diffurec",
        "columns": {"time": "position"},
        "time_unit": "order",
        "split": {"kind": "official"},
    }
    params = Params.model_validate({"datasets": {name: entry}, "variants": {}})
    ingest.run(params, space)
    prepare.run(params, space)
    return Split.load(space.prepared, params.dataset(name).split, has_clock=False)


def percent(model: Recommender, split: Split, mask_seen: bool) -> list[float]:
    """Hit rate at 5, 10 and 20, then NDCG, on test, to the four digits that are quoted."""
    judged = replace(split, config=split.config.model_copy(update={"mask_seen": mask_seen}))
    found = judge(model, judged, UniformWeights(), ["test"], EvaluationConfig(cutoffs=(5, 10, 20)), "cpu")["test"]
    return [round(100 * found.means()[f"{name}@{k}"], 4) for name in ("hit_rate", "ndcg") for k in (5, 10, 20)]
