"""From the ingested log to train, validation and test over dense indices."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from noise2next.config import OFFICIAL, Dataset, Frozen, Params
from noise2next.data.preparation import Prepared, prepare
from noise2next.data.splitting import PARTS, Cuts
from noise2next.data.tables import connect
from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, Workspace, digest, read_json, require, sha256, verify, write_json, writing

log = logging.getLogger(__name__)


class PrepareReport(Frozen):
    """What was asked, what is left after each step, and what a reader of the numbers must know."""

    dataset: str
    engine: str
    split: str
    history: str
    mask_seen: bool
    k_core: int
    positive: str | None
    repeats: str
    rows: dict[str, int]  # ingested, positive, after_repeats, after_k_core
    users: int
    items: int  # that the filters leave
    items_in_train: int  # of these; what only later windows have cannot be learned
    train: int
    valid: int
    test: int
    cuts: dict[str, str] | None  # ISO time of the first instant of the windows valid and test
    unlearnable: dict[str, int]  # rows of items that train has not
    cold_users: dict[str, int]  # users to judge who have no training row
    leakage: list[str]
    notes: list[str]
    data_version: str


def run(params: Params, space: Workspace) -> PrepareReport:
    """Prepare `space.dataset` with the engine that params.yaml names.

    Raises UserError where the ingested log failed its contract, nothing is left after a filter, a part is empty, or the
    split leaks.
    """
    dataset = params.dataset(space.dataset)
    verify(require(space.ingested, "ingest"))
    _stop_at_a_breach(space)
    source = space.ingested / "interactions.parquet"
    with (
        writing(space.prepared) as folder,
        tempfile.TemporaryDirectory(dir=folder) as place,
    ):
        scratch = Path(place)
        with connect(params.engine, scratch) as backend:
            prepared = prepare(backend, source, dataset, space.dataset, params.seed, folder, scratch)
        if prepared.leakage:
            raise UserError(
                f"datasets.{space.dataset}.split: it leaks: {'; '.join(prepared.leakage)}; nothing was written"
            )
        report = _report(params, space.dataset, dataset, prepared, folder)
        write_json(folder / "report.json", report.model_dump())
    told = _told(prepared.rows, dataset)
    log.info("%s: %s, %d users, %d items", space.dataset, told, report.users, report.items)
    return report


def _told(rows: Mapping[str, int], dataset: Dataset) -> str:
    """How many rows are left, of how many, and what took the others."""
    taken = {
        f"not {dataset.positive}": rows["ingested"] - rows["positive"],
        "repeats": rows["positive"] - rows["after_repeats"],
        f"outside the {dataset.k_core}-core": rows["after_repeats"] - rows["after_k_core"],
    }
    lost = ", ".join(f"{count} {reason}" for reason, count in taken.items() if count)
    return f"{rows['after_k_core']} rows" + (f" of {rows['ingested']} ({lost})" if lost else "")


def _stop_at_a_breach(space: Workspace) -> None:
    """Raise UserError where this very log was held against its contract and failed; one never held may go on."""
    if not (space.validation / MANIFEST).is_file():
        return
    verify(space.validation)
    held = read_json(space.validation / "report.json")
    if not held["success"] and held.get("ingested") == digest(space.ingested):
        raise UserError(
            f"{space.dataset}: its log failed the contract ({held['breaches'][0]}), see {held['docs']}; "
            f"{held['remedy']}, then `noise2next ingest` and `noise2next validate` it again"
        )


def _report(params: Params, name: str, dataset: Dataset, prepared: Prepared, folder: Path) -> PrepareReport:
    steps = ("ingested", "positive", "after_repeats", "after_k_core")
    return PrepareReport(
        dataset=name,
        engine=params.engine,
        split=dataset.split.kind,
        history=dataset.split.history,
        mask_seen=dataset.split.mask_seen,
        k_core=dataset.k_core,
        positive=dataset.positive,
        repeats=dataset.repeats,
        rows={step: prepared.rows[step] for step in steps},
        users=prepared.users,
        items=prepared.items,
        items_in_train=prepared.items_in_train,
        train=prepared.rows["train"],
        valid=prepared.rows["valid"],
        test=prepared.rows["test"],
        cuts=_iso(prepared.cuts),
        unlearnable=prepared.unlearnable,
        cold_users=prepared.cold_users,
        leakage=prepared.leakage,
        notes=_notes(dataset, prepared),
        data_version=_version(folder),
    )


def _notes(dataset: Dataset, prepared: Prepared) -> list[str]:
    notes = []
    if dataset.split.kind in OFFICIAL:
        notes.append("official split: rows are as the files say; positive, repeats and k_core are not applied")
    if dataset.split.kind == "official" and dataset.format == "diffrec":
        notes.append(
            "in DiffRec's official files every user's test rows are older than the validation rows, "
            "so reading validation at test time would be a leak"
        )
    if dataset.split.kind == "official_train":
        left_out = prepared.rows["ingested"] - sum(prepared.rows[part] for part in PARTS)
        notes.append(
            f"validation is of each user's newest training rows; {left_out:,} of the files' own validation part are "
            "left out"
        )
    if dataset.split.kind not in OFFICIAL and dataset.k_core > 1:
        notes.append(
            "k_core counts the whole log, as published preprocessing does: who is kept depends on later rows too"
        )
    if dataset.split.kind == "global_time" and dataset.repeats == "last":
        notes.append("repeats: last moves an interaction out of train where the user comes back to the item later")
    if dataset.split.kind == "random":
        notes.append("random split: test rows may be older than training rows, so this says nothing about the future")
    return notes


def _iso(cuts: Cuts | None) -> dict[str, str] | None:
    if cuts is None:
        return None
    start = datetime(1970, 1, 1, tzinfo=UTC)
    return {
        "valid": (start + timedelta(microseconds=cuts.valid)).isoformat(),
        "test": (start + timedelta(microseconds=cuts.test)).isoformat(),
    }


def _version(folder: Path) -> str:
    """One hash over the tables, which engine, clock and place of the run leave alone."""
    hashes = {path.name: sha256(path) for path in sorted(folder.glob("*.parquet"))}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
