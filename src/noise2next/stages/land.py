"""Take new files into a dataset's log: tried on a copy first, then laid beside the log and versioned; or nothing of it.

A log of one file becomes a folder of files: what history holds is never written to again, each delivery keeps its name
and its own line in DVC's listing, and compressed files and Parquet, which cannot be appended to, are taken as they are.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from noise2next.config import OFFICIAL, Dataset, Frozen, Params, load_params
from noise2next.data.ingestion import DUPLICATE
from noise2next.data.pieces import delivered, folder_files
from noise2next.data.validation_report import ValidationReport, percent
from noise2next.errors import UserError
from noise2next.stages import ingest, validate
from noise2next.stages.datasets import SAMPLE, SCRATCH, one_change, refuse_loss, restored, rewritten, version
from noise2next.workspace import MANIFEST, Workspace, read_json, sha256, write_atomically

log = logging.getLogger(__name__)


class LandReport(Frozen):
    """The files that were taken, by their places below data/, and what the log holds with them."""

    dataset: str
    taken: list[str]
    rows: int | None  # accepted, of the whole log; None where nothing new was read
    next: str


class _Refused(Exception):
    """Why a file was not taken."""


def run(params: Params, space: Workspace, files: Sequence[Path] | None = None) -> LandReport:
    """Take `files` into the log of `space.dataset`, all that wait in its landing folder where None is said.

    A file from the landing folder is moved, any other copied. Raises UserError, after the good files were taken, where
    one was refused: it lies in the folder `refused` then, with its reason beside it, if it came from the landing
    folder. Raises UserError, and does nothing, for a dataset whose log can take no file, and where none is there.
    """
    inbox = space.landing(params.automation.landing)
    _refuse_kind(params, space)
    chosen = delivered(inbox) if files is None else list(files)
    if not chosen:
        raise UserError(f"{inbox}: no file waits there; lay one in it, or name it after the command")
    if absent := [str(one) for one in chosen if not one.is_file()]:
        raise UserError(f"{', '.join(absent)}: no such file; check the path")
    taken: dict[str, int | None] = {}
    refused: dict[str, str] = {}
    with one_change(space):
        refuse_loss(space)
        for file in chosen:
            try:
                place, rows = _take(space, file)
            except _Refused as reason:
                refused[str(_set_aside(file, str(reason)) if _landed(file, inbox) else file)] = str(reason)
                continue
            taken[place] = rows
            if _landed(file, inbox):
                file.unlink()
            log.info("%s: %s is taken as data/%s", space.dataset, file, place)
    if refused:
        others = f"; taken: {', '.join(taken)}" if taken else "; the log is as it was"
        reasons = "; ".join(f"{file}: {reason}" for file, reason in refused.items())
        raise UserError(f"{space.dataset}: {len(refused)} of {len(chosen)} files refused: {reasons}{others}")
    counted = next((rows for rows in reversed(taken.values()) if rows is not None), None)
    return LandReport(
        dataset=space.dataset,
        taken=list(taken),
        rows=counted,
        next=f"commit {space.data_pointer.name} and {space.params.name}, then noise2next run --dataset {space.dataset}",
    )


def _landed(file: Path, inbox: Path) -> bool:
    return file.resolve().parent == inbox.resolve()


def _refuse_kind(params: Params, space: Workspace) -> None:
    """Logs that no file can be added to."""
    entry = params.dataset(space.dataset)
    if space.dataset == SAMPLE:
        raise UserError("land: sample is the generated log; give yours a name with `noise2next datasets add NAME FILE`")
    if entry.split.kind in OFFICIAL:
        raise UserError(
            f"land: {space.dataset} has an official split, which further rows would break; add them as a dataset of"
            " their own with `noise2next datasets add`"
        )


def _set_aside(file: Path, reason: str) -> Path:
    """Move a refused file into the folder `refused` beside it, its reason first."""
    folder = file.parent / "refused"
    folder.mkdir(exist_ok=True)
    more = (f"{file.stem}-{number}{file.suffix}" for number in itertools.count(2))
    place = next(folder / name for name in itertools.chain([file.name], more) if not (folder / name).exists())
    write_atomically(place.with_name(f"{place.name}.reason.txt"), f"{reason}\n".encode())
    shutil.move(file, place)
    return place


# --- one file ---------------------------------------------------------------------------------------------------------


def _take(space: Workspace, file: Path) -> tuple[str, int | None]:
    """The file's place below data/ and the rows of the log now; None for these where it lay there already."""
    params = load_params(space.params)
    folder = _home(space, params.dataset(space.dataset), file)
    if (twin := _twin(space.data / folder, file)) is not None:
        return _already(space, twin), None
    place = folder / file.name
    _refuse_name(params.dataset(space.dataset), space.data / place)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=space.data) as scratch:
        fresh = Path(scratch) / file.name
        shutil.copyfile(file, fresh)
        rows = _tried(params, space, fresh, place)
        with restored(space.data_pointer), restored(space.params), contextlib.ExitStack() as undo:
            _become_folder(space, folder)
            os.replace(fresh, space.data / place)
            undo.callback((space.data / place).unlink, missing_ok=True)
            version(space)
            undo.pop_all()
    return place.as_posix(), rows


def _home(space: Workspace, entry: Dataset, file: Path) -> Path:
    """The folder of the log below data/: the entry's own, or the one that its single file has to itself.

    Raises UserError where that file shares its folder with others.
    """
    path = Path(entry.path)
    if (space.data / path).is_dir():
        return path
    beside = [one.name for one in folder_files(space.data / path.parent) if one.name not in (path.name, file.name)]
    if path.parent == Path() or beside:
        fact = f"shares its folder with {', '.join(beside[:3])}" if beside else "lies in data/ itself"
        raise UserError(
            f"{space.data / path}: the log {fact}; move it into a folder of its own and correct"
            f" datasets.{space.dataset}.path, so that it can take more files"
        )
    return path.parent


def _become_folder(space: Workspace, folder: Path) -> None:
    """Let the entry read the whole folder."""
    with rewritten(space, "land") as tree:
        entry = tree["datasets"][space.dataset]
        if "names" in entry and "path" not in entry["names"] and entry["path"] != folder.as_posix():
            entry["names"]["path"] = entry["path"]  # the table inside the zip that the log was until now
        entry["path"] = folder.as_posix()


def _twin(folder: Path, file: Path) -> Path | None:
    """The file of the log that holds the same bytes."""
    size = file.stat().st_size
    alike = [one for one in folder_files(folder) if one.stat().st_size == size]
    return next((one for one in alike if sha256(one) == sha256(file)), None) if alike else None


def _already(space: Workspace, twin: Path) -> str:
    """Finish what a kill interrupted between laying the file there and versioning it; refuse what was finished."""
    before = space.data_pointer.read_bytes() if space.data_pointer.is_file() else None
    version(space)
    if space.data_pointer.read_bytes() == before:
        raise _Refused(f"the log holds these very bytes already, as {twin}; nothing is to be done")
    return twin.relative_to(space.data).as_posix()


def _refuse_name(entry: Dataset, place: Path) -> None:
    if place.name.startswith(("_", ".")):
        raise _Refused("names that begin with '_' or '.' are not read in a folder; give it another name")
    if place.exists():
        raise _Refused(f"{place} is there with other content; what was taken is not replaced, give it another name")
    last = max((one.name for one in folder_files(place.parent)), default="")
    if entry.time_unit == "order" and entry.columns.time is None and place.name < last:
        raise _Refused(
            f"the order of this log is the order of its files by name, and {place.name} would stand before {last};"
            " give it a name that comes last"
        )


# --- the trial --------------------------------------------------------------------------------------------------------


def _tried(params: Params, space: Workspace, file: Path, place: Path) -> int:
    """The accepted rows of the log with the file. Raises _Refused where either cannot be.

    It is ingested alone, for a large log would hide its bad rows; then the whole is held to its contract.
    """
    entry = params.dataset(space.dataset)
    with _trial(space) as trial:
        links = {one: trial.data / one.relative_to(space.data) for one in folder_files((space.data / place).parent)}
        for original, link in {**links, file: trial.data / place}.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(original.resolve())
        try:
            alone = ingest.run(_reading(params, space, place), trial)
            if alone.bad_share > entry.max_bad_share:
                bad = {reason: rows for reason, rows in alone.reasons.items() if reason != DUPLICATE}
                raise _Refused(
                    f"{percent(alone.bad_share)} of its {alone.read:,} rows are unreadable, most for"
                    f" {max(bad, key=lambda reason: bad[reason])!r}, above max_bad_share"
                    f" {percent(entry.max_bad_share)}; mend the file"
                )
            whole = _reading(params, space, place.parent)
            rows = ingest.run(whole, trial).accepted
            validate.run(whole, trial)
        except UserError as error:
            raise _Refused(_in_words(error, trial, space)) from error
    return rows


@contextlib.contextmanager
def _trial(space: Workspace) -> Iterator[Workspace]:
    """A workspace of links beside the real one, on the same disk; what a killed trial left is removed."""
    shutil.rmtree(space.trial, ignore_errors=True)
    try:
        yield Workspace(space.trial, space.dataset)
    finally:
        shutil.rmtree(space.trial, ignore_errors=True)


def _reading(params: Params, space: Workspace, path: Path) -> Params:
    """The same choices, the dataset's log at `path`."""
    entry = params.dataset(space.dataset).model_copy(update={"path": path.as_posix()})
    return params.model_copy(update={"datasets": {**params.datasets, space.dataset: entry}})


def _in_words(error: UserError, trial: Workspace, space: Workspace) -> str:
    """The reason without the trial's paths, which are gone when a person reads it."""
    if (trial.validation / MANIFEST).is_file():
        report = ValidationReport.model_validate(read_json(trial.validation / "report.json"))
        if report.breaches:
            return f"with it the log breaks its contract: {'; '.join(report.breaches)}; {report.remedy}"
    return str(error).replace(f"{trial.data}/", "")
