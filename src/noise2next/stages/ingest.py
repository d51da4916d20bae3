"""Read a raw log: interactions that can be used, and a quarantine of the rows that cannot."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from noise2next.config import Frozen, Params
from noise2next.data import ingestion
from noise2next.data.pieces import folder_files
from noise2next.errors import UserError
from noise2next.workspace import Workspace, sha256, write_json, writing

log = logging.getLogger(__name__)


class IngestReport(Frozen):
    """accepted + quarantined == read. `bad_share` leaves exact duplicates out; times are ISO text in UTC."""

    dataset: str
    read: int
    accepted: int
    quarantined: int
    reasons: dict[str, int]
    bad_share: float
    users: int
    items: int
    time_from: str | None
    time_to: str | None
    time_unit: str | None
    files: dict[str, str]  # path below data/: sha256
    data_version: str


def run(params: Params, space: Workspace, now: datetime | None = None) -> IngestReport:
    """Write `interactions.parquet`, `quarantine.parquet` and `report.json` into `space.ingested`.

    `now` is the moment after which (plus a day) a time lies in the future. Raises UserError for a log that cannot be
    read as a whole, for one that changed meanwhile and for one without an acceptable row; then nothing has changed.
    """
    dataset = params.dataset(space.dataset)
    with writing(space.ingested) as fresh:
        before = _log_state(params, space)
        files = log_files(params, space)
        found = ingestion.ingest(dataset, space.data, fresh, now)
        if _log_state(params, space) != before:  # the hashes may be of other bytes than those that were read
            raise UserError(f"{space.data / dataset.path}: the log changed while it was read; run again")
        if not found.accepted:
            raise UserError(f"{space.data / dataset.path}: {_why_nothing(found)}")
        report = IngestReport(
            dataset=space.dataset,
            read=found.read,
            accepted=found.accepted,
            quarantined=found.quarantined,
            reasons=found.reasons,
            bad_share=(found.quarantined - found.reasons.get(ingestion.DUPLICATE, 0)) / found.read,
            users=found.users,
            items=found.items,
            time_from=_iso(found.first),
            time_to=_iso(found.last),
            time_unit=dataset.time_unit,
            files=files,
            data_version=log_version(files),
        )
        write_json(fresh / "report.json", report.model_dump(mode="json"))
    log.info(
        "ingest: read %d, accepted %d, quarantined %d %s", found.read, found.accepted, found.quarantined, found.reasons
    )
    return report


def _why_nothing(found: ingestion.Ingested) -> str:
    if not found.read:
        return "the log holds no row; put the interaction log there"
    reason = max(found.reasons, key=lambda one: found.reasons[one])
    return (
        f"none of its {found.read} rows can be used, {found.reasons[reason]} for {reason!r}; correct the dataset's"
        " entry in params.yaml or the file"
    )


def log_files(params: Params, space: Workspace) -> dict[str, str]:
    """The sha256 of each file of the raw log as it lies there, by its path below data/; none where the log is not."""
    return {one.relative_to(space.data).as_posix(): sha256(one) for one in _log_paths(params, space)}


def _log_paths(params: Params, space: Workspace) -> Sequence[Path]:
    path = space.data / params.dataset(space.dataset).path
    return folder_files(path) if path.is_dir() else [path] if path.exists() else []


def _log_state(params: Params, space: Workspace) -> dict[Path, tuple[int, int, int]]:
    """What tells a file that was written to, or put in another's place, without reading it a second time."""
    found = {one: one.stat() for one in _log_paths(params, space)}
    return {one: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for one, stat in found.items()}


def log_version(files: Mapping[str, str]) -> str:
    """One hash over `log_files`."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _iso(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).isoformat()
