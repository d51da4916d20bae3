"""Recommend: to a known user, to any history, or to everyone; from the champion or from a trained variant."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import Frozen, Params, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact
from noise2next.registry.packaging import CONTENT, Answer, Package
from noise2next.registry.versions import ModelRegistry
from noise2next.training.device import choose_device
from noise2next.workspace import Workspace, replacing, require

log = logging.getLogger(__name__)


class Source(Frozen):
    """Where a recommendation comes from."""

    dataset: str
    variant: str
    model: str  # the registered model, or the artifact's folder
    version: str | None  # None for an artifact that is not registered
    data_version: str


class RecommendReport(Source):
    """One list, best first, in raw ids, and where it comes from."""

    items: list[str]
    scores: list[float]
    user: str | None
    known: int  # items of the history that the model knows
    unknown: list[str]  # items of the history that it does not


class BatchReport(Source):
    """Everyone's lists in one Parquet file, and where they come from."""

    path: str
    users: int
    left_out: int  # users of whom the model knows no item
    rows: int
    k: int


@dataclass(frozen=True)
class _Opened:
    package: Package
    source: Source
    exclude_seen: bool


def for_user(
    params: Params, space: Workspace, settings: Settings, user: str, k: int, variant: str | None = None
) -> RecommendReport:
    """What `user` of the log, by raw id, is to see next. Raises UserError for a user who is not known."""
    opened = _open(params, space, settings, variant)
    (answer,) = opened.package.for_users([user], k, opened.exclude_seen)
    if not answer.known:
        raise UserError(
            f"user {user!r}: the model of {space.dataset} knows none of this user's items; give others "
            "(--history ID,ID,...)"
        )
    return _report(answer, user, opened)


def for_history(
    params: Params, space: Workspace, settings: Settings, items: Sequence[str], k: int, variant: str | None = None
) -> RecommendReport:
    """What someone who took `items`, raw ids with the oldest first, is to see next, be it nobody of the log.

    Items that the model does not know are reported; UserError where it knows none.
    """
    opened = _open(params, space, settings, variant)
    (answer,) = opened.package.for_histories([items], k, opened.exclude_seen)
    if not answer.known:
        given = ", ".join(repr(item) for item in items[:3]) or "nothing"
        raise UserError(
            f"--history: the model of {space.dataset} knows none of the items ({given}); "
            "give ids as the log writes them"
        )
    return _report(answer, None, opened)


def for_all(
    params: Params, space: Workspace, settings: Settings, out: Path, k: int, variant: str | None = None
) -> BatchReport:
    """Everyone's top k as the Parquet file `out`, streamed; it appears whole or not at all."""
    if out.is_dir():
        raise UserError(f"{out}: a folder; name a file, as --out recommendations.parquet")
    opened = _open(params, space, settings, variant)
    users = rows = 0
    with replacing(out) as fresh, pq.ParquetWriter(fresh, _SCHEMA, compression="zstd") as writer:
        for table in _tables(opened, k):
            writer.write_table(table)
            users += pc.count_distinct(table.column("user")).as_py()
            rows += len(table)
    log.info("%s: %d users, %d rows", out, users, rows)
    left_out = len(opened.package.users) - users
    return BatchReport(path=str(out), users=users, left_out=left_out, rows=rows, k=k, **opened.source.model_dump())


_SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "rank": pa.int32(),
        "item": pa.string(),
        "score": pa.float32(),
        "model_version": pa.string(),
        "data_version": pa.string(),
    }
)


def _open(params: Params, space: Workspace, settings: Settings, variant: str | None) -> _Opened:
    dataset = params.dataset(space.dataset)
    if variant is None:
        registry = ModelRegistry(settings, space)
        champion = registry.champion()
        package = Package.load(registry.fetch(champion) / CONTENT, settings.device)
        model, version = registry.name, str(champion.version)
    else:
        params.variant(variant, space.dataset)
        place = require(space.model(variant), f"train --dataset {space.dataset} --variant {variant}")
        split = Split.load(space.prepared, dataset.split, dataset.has_clock)
        package = Package.of(Artifact.load(place, choose_device(settings.device)), split, dataset)
        model, version = str(place), None
    card = package.artifact.card
    source = Source(
        dataset=space.dataset, variant=card.variant.name, model=model, version=version, data_version=card.data_version
    )
    return _Opened(package, source, dataset.split.mask_seen)


def _report(answer: Answer, user: str | None, opened: _Opened) -> RecommendReport:
    return RecommendReport(**answer.model_dump(), user=user, **opened.source.model_dump())


def _tables(opened: _Opened, k: int) -> Iterator[pa.Table]:
    package, source = opened.package, opened.source
    user_ids, item_ids = pa.array(package.users.ids, pa.string()), pa.array(package.artifact.items.ids, pa.string())
    version = source.version or source.variant
    active = package.histories.lengths > 0
    for users, items, scores in package.everyone(k, opened.exclude_seen):
        keep = (scores > -math.inf) & active[users][:, None]
        of_user, rank = _places(keep)
        yield pa.table(
            {
                "user": user_ids.take(pa.array(users[of_user])),
                "rank": pa.array(rank + 1, pa.int32()),
                "item": item_ids.take(pa.array(items[keep])),
                "score": pa.array(scores[keep]),
                "model_version": pa.array([version]).take(pa.array(np.zeros(len(rank), dtype=np.int64))),
                "data_version": pa.array([source.data_version]).take(pa.array(np.zeros(len(rank), dtype=np.int64))),
            },
            schema=_SCHEMA,
        )


def _places(keep: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each kept cell, row by row."""
    rows, columns = np.nonzero(keep)
    return rows, columns
