"""Recommend: to a known user, to any history, or to everyone; from the champion or from a trained variant."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import Frozen, Params, Settings
from noise2next.data.interactions import Split
from noise2next.data.names import item_names
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.registry.packaging import CONTENT, Package, Questions
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import gate
from noise2next.training.device import choose_device
from noise2next.workspace import MANIFEST, Workspace, read_json, remove, replacing, require, verify, write_json, writing

log = logging.getLogger(__name__)

TABLE, REPORT = "recommendations.parquet", "report.json"
POPULARITY = "noise2next.models.popularity.MostPop"


class Source(Frozen):
    """Where a recommendation comes from."""

    dataset: str
    variant: str
    model: str  # the registered model, or the artifact's folder
    version: str | None  # None for an artifact that is not registered
    data_version: str


class Shown(Source):
    """One list, best first, in raw ids and by name, and where it comes from."""

    items: list[str]
    names: list[str]  # what people call them, an id where there is no name; empty where the data names nothing
    user: str | None
    known: int  # items of the history that the model knows
    unknown: list[str]  # items of the history that it does not


class RecommendReport(Shown):
    """A list by score."""

    scores: list[float]


class DrawnReport(Shown):
    """A list by the share of the draws in which each item makes the top k."""

    shares: list[float]
    draws: int
    diversity: float  # 1 - the common part of two draws' lists, mean over the pairs of draws
    distinct: int  # items in all draws together


class BatchReport(Source):
    """Everyone's lists in one Parquet file, and where they come from."""

    path: str
    users: int
    left_out: int  # users of whom the model knows no item
    rows: int
    k: int


class Offline(Frozen):
    """What the evaluator found on the test window, for the day on which the lists are judged by what came of them."""

    recall: float  # at the table's k
    popularity: float | None  # of the most popular items, on the same window


class KeptReport(BatchReport):
    """The champion's table that is kept. `known_until`: microseconds since 1970, the newest that its lists know of."""

    made: datetime
    known_until: int | None
    offline: Offline | None


@dataclass(frozen=True)
class Opened:
    """A model that answers, where it comes from, and what its items are called."""

    package: Package
    source: Source
    exclude_seen: bool
    names: Mapping[str, str]

    def said(self, items: Sequence[str]) -> list[str]:
        """The items' names, in their order; empty where the data names nothing."""
        return [self.names.get(item, item) for item in items] if self.names else []

    def ask_user(self, user: str) -> Questions:
        """What is known of a user by raw id. Raises UserError for one of whom the model knows nothing."""
        questions = self.package.ask_users([user])
        if not questions.lengths[0]:
            raise UserError(
                f"user {user!r}: the model of {self.source.dataset} knows none of this user's items; give others "
                "(--history ID,ID,...)"
            )
        return questions

    def ask_history(self, items: Sequence[str]) -> Questions:
        """Raw item ids, oldest first. Raises UserError where the model knows none of them."""
        questions = self.package.ask_histories([items])
        if not questions.lengths[0]:
            given = ", ".join(repr(item) for item in items[:3]) or "nothing"
            raise UserError(
                f"--history: the model of {self.source.dataset} knows none of the items ({given}); "
                "give ids as the log writes them"
            )
        return questions


def for_user(
    params: Params,
    space: Workspace,
    settings: Settings,
    user: str,
    k: int,
    variant: str | None = None,
    draws: int | None = None,
) -> RecommendReport | DrawnReport:
    """What `user` of the log, by raw id, is to see next; with `draws` by what so many draws agree on.

    Raises UserError for a user who is not known, and for draws of a model that draws nothing.
    """
    opened = open_model(params, space, settings, variant)
    return _answer(opened, opened.ask_user(user), user, k, draws)


def for_history(
    params: Params,
    space: Workspace,
    settings: Settings,
    items: Sequence[str],
    k: int,
    variant: str | None = None,
    draws: int | None = None,
) -> RecommendReport | DrawnReport:
    """What someone who took `items`, raw ids with the oldest first, is to see next, be it nobody of the log.

    Items that the model does not know are reported; UserError where it knows none, and for draws of a model that draws
    nothing.
    """
    opened = open_model(params, space, settings, variant)
    return _answer(opened, opened.ask_history(items), None, k, draws)


def for_all(
    params: Params, space: Workspace, settings: Settings, out: Path, k: int, variant: str | None = None
) -> BatchReport:
    """Everyone's top k as the Parquet file `out`, streamed; it appears whole or not at all."""
    if out.is_dir():
        raise UserError(f"{out}: a folder; name a file, as --out recommendations.parquet")
    opened = open_model(params, space, settings, variant)
    with replacing(out) as fresh:
        counts = _write(opened, k, datetime.now(UTC), fresh)
    return BatchReport(path=str(out), k=k, **counts, **opened.source.model_dump())


def run(params: Params, space: Workspace, settings: Settings, now: datetime | None = None) -> KeptReport:
    """The champion's lists for everyone, kept below `space.artifacts`: recommendations.parquet and report.json.

    There is one table for each model of each data, and a table once made stays as it is: what it recommended is judged
    when later events arrive. Of more than `recommendations.keep` tables the oldest go. Raises UserError where there is
    no champion.
    """
    opened = open_model(params, space, settings, None)
    assert opened.source.version is not None  # a champion has one
    k, place = params.recommendations.k, space.recommended(opened.source.version, opened.source.data_version)
    if (place / MANIFEST).is_file() and (found := _whole(place)) is not None and found.k == k:
        return found
    made = datetime.now(UTC) if now is None else now
    with writing(place) as folder:
        counts = _write(opened, k, made, folder / TABLE)
        report = KeptReport(
            path=str(place / TABLE),
            k=k,
            made=made,
            known_until=opened.package.about.known_until,
            offline=_offline(params, space, opened.package.artifact.card, k),
            **counts,
            **opened.source.model_dump(),
        )
        write_json(folder / REPORT, report.model_dump(mode="json", exclude={"path"}))
    tables = sorted(space.kept_recommendations(), key=lambda one: (one == place, _made(one)))
    for old in tables[: -params.recommendations.keep]:
        remove(old)
        log.info("%s: taken away, %d newer tables are kept", old, params.recommendations.keep)
    return report


def kept(place: Path) -> KeptReport:
    """The report of the table in the folder `place`, its files hashed again. Raises UserError where one differs."""
    verify(place)
    return KeptReport.model_validate({**read_json(place / REPORT), "path": str(place / TABLE)})


def _whole(place: Path) -> KeptReport | None:
    try:
        return kept(place)
    except UserError as error:
        log.warning("%s; it is made again", error)
        return None


def _made(place: Path) -> datetime:
    """When a table was made; long ago where its report is damaged, so that it goes first."""
    try:
        return datetime.fromisoformat(read_json(place / REPORT)["made"])
    except UserError:
        return datetime.min.replace(tzinfo=UTC)


def _offline(params: Params, space: Workspace, card: ModelCard, k: int) -> Offline | None:
    """Test recall of the model, and of popularity beside it, where these very ones were evaluated here at this k."""
    found = {name: report for name in params.variants if (report := gate.evaluation_of(space, name)) is not None}
    own = next((one for one in found.values() if one.fingerprint == card.fingerprint), None)
    if own is None:
        return None
    if (name := f"recall@{k}") not in own.metrics["test"]:
        log.warning(
            "%s: recommendations.k is %d and evaluation.cutoffs is without it, so no test window says what is to come "
            "of these lists; let the one name what the other has before the next champion is evaluated",
            space.dataset,
            k,
        )
        return None
    popular = next(
        (
            one.metrics["test"][name].mean
            for one in found.values()
            if one.model == POPULARITY
            and one.weighting.kind == "uniform"
            and one.data_version == own.data_version
            and name in one.metrics["test"]
        ),
        None,
    )
    return Offline(recall=own.metrics["test"][name].mean, popularity=popular)


_SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "rank": pa.int32(),
        "item": pa.string(),
        "score": pa.float32(),
        "model_version": pa.string(),
        "data_version": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),  # of the making, one for the whole table
    }
)


def open_model(params: Params, space: Workspace, settings: Settings, variant: str | None) -> Opened:
    """The champion, or the trained `variant`. Raises UserError where there is none."""
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
    return Opened(package, source, dataset.split.mask_seen, item_names(dataset, space.data))


def _answer(
    opened: Opened, questions: Questions, user: str | None, k: int, draws: int | None
) -> RecommendReport | DrawnReport:
    whence = {"user": user, **opened.source.model_dump()}
    if draws is None:
        (answer,) = opened.package.answer(questions, k, opened.exclude_seen)
        return RecommendReport(**answer.model_dump(), names=opened.said(answer.items), **whence)
    if not opened.package.artifact.model.stochastic:
        raise UserError(
            f"--draws: {opened.source.variant} of {opened.source.dataset} does not draw, so every draw would be the "
            "same list; leave --draws out, or name with --variant one that draws: diffurec, dnr, or a DiffRec with the "
            "option sampling_noise: true or sampling_steps above 0"
        )
    (drawn,) = opened.package.draw(questions, k, draws, opened.exclude_seen)
    return DrawnReport(**drawn.model_dump(), names=opened.said(drawn.items), draws=draws, **whence)


def _write(opened: Opened, k: int, made: datetime, path: Path) -> dict[str, int]:
    """Stream everyone's lists to `path`, a block of users at a time: how many users, left out, and rows there are."""
    users = rows = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for table in _tables(opened, k, made):
            writer.write_table(table)
            users += pc.count_distinct(table.column("user")).as_py()
            rows += len(table)
    log.info("%s: %d users, %d rows", path, users, rows)
    return {"users": users, "left_out": len(opened.package.users) - users, "rows": rows}


def _tables(opened: Opened, k: int, made: datetime) -> Iterator[pa.Table]:
    package, source = opened.package, opened.source
    user_ids, item_ids = pa.array(package.users.ids, pa.string()), pa.array(package.artifact.items.ids, pa.string())
    version = source.version or source.variant
    active = package.histories.lengths > 0
    for users, items, scores in package.everyone(k, opened.exclude_seen):
        keep = (scores > -math.inf) & active[users][:, None]
        of_user, rank = _places(keep)
        whole = pa.array(np.zeros(len(rank), dtype=np.int64))
        yield pa.table(
            {
                "user": user_ids.take(pa.array(users[of_user])),
                "rank": pa.array(rank + 1, pa.int32()),
                "item": item_ids.take(pa.array(items[keep])),
                "score": pa.array(scores[keep]),
                "model_version": pa.array([version]).take(whole),
                "data_version": pa.array([source.data_version]).take(whole),
                "time": pa.array([made], pa.timestamp("us", tz="UTC")).take(whole),
            },
            schema=_SCHEMA,
        )


def _places(keep: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each kept cell, row by row."""
    rows, columns = np.nonzero(keep)
    return rows, columns
