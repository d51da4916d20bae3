"""Take logs in: copy one into data/, version data/ with DVC, and write its entry into params.yaml; or nothing of it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from noise2next.config import NAME, Format, Frozen, TimeUnit, load_params, yaml_round_trip
from noise2next.data import fetch as publisher
from noise2next.data import sample as generated
from noise2next.data.names import published
from noise2next.data.pieces import folder_files, pieces
from noise2next.data.sources import Hints, Source, known_encoding, recognise
from noise2next.errors import UserError
from noise2next.workspace import Workspace, write_atomically

log = logging.getLogger(__name__)

SAMPLE = "sample"
_SAMPLE_PATH = "sample/interactions.csv"
SCRATCH = ".add-"  # begins the name of the folder in data/ where a log is copied before it takes its place
_NAMED = 5  # files that a refusal spells out
_FOUND = ("path", "member", "format", "separator", "header", "encoding", "columns", "time_unit", "names")


class AddReport(Frozen):
    """What was recognised and decided; `entry` is the dataset's place in params.yaml as it now stands."""

    dataset: str
    path: str  # below data/
    format: str
    member: str | None
    left_out: list[str]  # other members of the archive, or files of the folder
    separator: str | None
    header: bool | None
    encoding: str | None
    columns: dict[str, str]
    names: str | None  # the file beside the log that names the items
    other_columns: list[str]
    time_unit: str | None
    first_time: str | None
    rows_peeked: int
    positive: str
    k_core: int
    split: dict[str, Any]
    notes: list[str]
    next: str


class FetchReport(Frozen):
    """Where a publisher's archive lies, and how it was taken in."""

    archive: str
    licence: str
    added: AddReport


class SampleReport(Frozen):
    """The generated log; not versioned where data/ lacks files of other datasets."""

    path: str
    seed: int
    versioned: bool


def add(
    root: Path,
    name: str,
    path: Path,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    time_unit: str | None = None,
    positive: str | None = None,
    split: str | None = None,
    k_core: int | None = None,
    member: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> AddReport:
    """Copy the log into data/`name`/, version data/, and write the entry `name`; a dataset of this name gets new data.

    Of an entry that is there, what was not found by looking and not said now stays (presets, k_core, ...). Raises
    UserError for a log that is not recognised and for an entry that is not consistent; then nothing has changed.
    """
    space = Workspace(root, name)
    if not NAME.fullmatch(name):
        raise UserError(f"datasets add: {name!r} is no usable name; take lower-case letters, digits, '-' and '_'")
    if name == SAMPLE:
        raise UserError("datasets add: sample is the generated log's name; take another name")
    if format is not None and format not in get_args(Format):
        raise UserError(f"--format {format!r} is none of {', '.join(get_args(Format))}")
    if time_unit is not None and time_unit not in get_args(TimeUnit):
        raise UserError(f"--time-unit {time_unit!r} is none of {', '.join(get_args(TimeUnit))}")
    if separator == "":
        raise UserError("--separator is empty; say one letter or more, as ';' or '\\t'")
    hints = Hints(
        cast(Format | None, format),
        user,
        item,
        time,
        rating,
        cast(TimeUnit | None, time_unit),
        member,
        separator="\t" if separator == "\\t" else separator,  # what a shell hands on
        encoding=None if encoding is None else known_encoding(encoding),
    )
    source = recognise(path, hints)
    if positive is not None and source.columns.rating is None:
        raise UserError(f"{path}: --positive {positive!r} needs a rating, and {_no_rating(source)}")
    if source.format != "diffrec":  # which was read to its end already
        for piece in pieces(source.path, str(source.path), source.member):
            piece.check_whole()
    with one_change(space):
        tree = _tree(space)
        known = name in tree["datasets"]
        _write_entry(tree["datasets"], name, source, {"positive": positive, "split": split, "k_core": k_core})
        text = _text(tree)
        _check(space, text, f"datasets add {space.dataset}")
        _refuse_unread(space, source.path)
        refuse_loss(space)
        with restored(space.data_pointer), _placed(space, source):
            version(space)
            write_atomically(space.params, text)
    log.info("datasets: %s is in %s", name, space.data / name)
    return _report(space, source, known)


def fetch(root: Path, name: str, base_url: str | None = None) -> FetchReport:
    """Get a public log from its publisher, or from the cache, and take it in under its own name."""
    archive = publisher.fetch(name, Workspace(root, name).downloads, base_url)
    return FetchReport(archive=str(archive), licence=publisher.LICENCE, added=add(root, name, archive))


def sample(root: Path, seed: int = 1) -> SampleReport:
    """Write the generated log that the entry `sample` reads. Raises UserError where the entry reads another file."""
    space = Workspace(root, SAMPLE)
    place = _sample_place(space)
    with one_change(space):
        generated.write(place, seed)
        versioned = not _lacking(space)
        if versioned:
            version(space)
    return SampleReport(path=str(place), seed=seed, versioned=versioned)


def _sample_place(space: Workspace) -> Path:
    """Where the generated log lies, and nothing that a person put there."""
    path = load_params(space.params).dataset(SAMPLE).path
    if path != _SAMPLE_PATH:
        raise UserError(
            f"{space.params}: datasets.sample.path is {path}, which the generated log would overwrite; give that log"
            f" another name and let sample read {_SAMPLE_PATH}"
        )
    return space.data / path


# --- the version of data/ ---------------------------------------------------------------------------------------------


def version(space: Workspace) -> None:
    """Let DVC record what data/ holds in data.dvc. Where DVC was never set up it is, without git where there is none.

    Raises UserError with DVC's own words.
    """
    _ignore_scratch(space.versioning.with_name(".dvcignore"))
    if not space.versioning.is_dir():
        top = _git_top(space.root)
        scope = ["--no-scm"] if top is None else [] if top == space.root.resolve() else ["--subdir"]
        _dvc(space, "init", "--quiet", *scope)
    _dvc(space, "add", "--quiet", space.data.name)


def restore(space: Workspace) -> None:
    """Let data/ be what data.dvc pins: from DVC's cache, else from its remote. Raises UserError with DVC's own words.

    DVC removes nothing that it has not recorded: it says so, and data/ stays as it was.
    """
    with one_change(space):
        try:
            _dvc(space, "checkout", "--quiet", space.data_pointer.name)
        except UserError:
            _dvc(space, "pull", "--quiet", space.data_pointer.name)


def _ignore_scratch(file: Path) -> None:
    """Let DVC pass over what `add` keeps in data/ for a moment."""
    line = f"/data/{SCRATCH}*"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if line not in text.splitlines():
        write_atomically(file, (text + ("" if text.endswith("\n") or not text else "\n") + line + "\n").encode())


def _git_top(folder: Path) -> Path | None:
    return next((one for one in (folder.resolve(), *folder.resolve().parents) if (one / ".git").exists()), None)


def _dvc(space: Workspace, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=space.root,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"{space.data}: `dvc {' '.join(arguments)}` failed, nothing was changed: {words}")


def _lacking(space: Workspace) -> list[str]:
    """Datasets whose log is versioned but not here, as after a clone without `dvc pull`."""
    if not space.data_pointer.is_file():
        return []
    datasets = load_params(space.params).datasets
    return [name for name, one in datasets.items() if not (space.data / one.path).exists()]


def refuse_loss(space: Workspace) -> None:
    """A new version of data/ must not lose the logs that are not here just now."""
    for name in _lacking(space):
        if name == SAMPLE:
            generated.write(_sample_place(space), seed=1)
        elif name != space.dataset:
            raise UserError(
                f"{space.data}: the log of dataset {name} is not here and would be lost from the next version; fetch it"
                " with `dvc pull`, or remove its entry from params.yaml"
            )


def _refuse_unread(space: Workspace, source: Path) -> None:
    """A log that takes data/<name>/ must not remove files that are neither of the dataset nor of the log itself."""
    place = space.data / space.dataset
    entry = load_params(space.params).datasets.get(space.dataset)
    kept = {one.resolve() for log in (source, *([space.data / entry.path] if entry else [])) for one in _files(log)}
    there = [place] if place.is_file() else sorted(place.rglob("*"))
    lost = [str(one) for one in there if (one.is_symlink() or not one.is_dir()) and one.resolve() not in kept]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise UserError(
            f"{place}: holds {', '.join(lost[:_NAMED])}{more}, which the dataset {space.dataset} does not read and"
            " which would be removed; move them out of it, or take another name"
        )


# --- the files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_change(space: Workspace) -> Iterator[None]:
    """One change of data/ and params.yaml at a time."""
    shared = space.artifacts.parent
    shared.mkdir(parents=True, exist_ok=True)
    with (shared / ".datasets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _placed(space: Workspace, source: Source) -> Iterator[None]:
    """The log in data/<name>/, copied beside and moved in; the former content comes back when what follows fails.

    Beside means inside data/, which may be a volume of its own that nothing can be renamed into.
    """
    place = space.data / space.dataset
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=space.data) as scratch:
        fresh, former = Path(scratch) / "fresh", Path(scratch) / "former"
        _copy(source.path, fresh)
        with contextlib.ExitStack() as undo:
            if place.exists():
                os.replace(place, former)
                undo.callback(os.replace, former, place)
            os.replace(fresh, place)
            undo.callback(shutil.rmtree, place)
            yield
            undo.pop_all()


def _copy(path: Path, folder: Path) -> None:
    for file in _files(path):
        target = folder / (file.relative_to(path) if path.is_dir() else file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _files(path: Path) -> list[Path]:
    return folder_files(path) if path.is_dir() else [path]


@contextlib.contextmanager
def restored(file: Path) -> Iterator[None]:
    """Put one file back as it was when what follows fails."""
    with contextlib.ExitStack() as undo:
        if file.is_file():
            undo.callback(write_atomically, file, file.read_bytes())
        else:
            undo.callback(file.unlink, missing_ok=True)
        yield
        undo.pop_all()


# --- the entry --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def edited(space: Workspace, who: str) -> Iterator[CommentedMap]:
    """params.yaml to change, comments kept; on a clean exit it is checked and written. One editor at a time."""
    with one_change(space), rewritten(space, who) as tree:
        yield tree


@contextlib.contextmanager
def rewritten(space: Workspace, who: str) -> Iterator[CommentedMap]:
    """As `edited`, for one who holds `one_change` already."""
    tree = _tree(space)
    yield tree
    text = _text(tree)
    _check(space, text, who)
    write_atomically(space.params, text)


def _tree(space: Workspace) -> CommentedMap:
    """params.yaml with its comments, after a check that it is sound."""
    load_params(space.params)
    tree: CommentedMap = yaml_round_trip().load(space.params.read_text(encoding="utf-8"))
    return tree


def _text(tree: CommentedMap) -> bytes:
    out = io.BytesIO()
    yaml_round_trip().dump(tree, out)
    return out.getvalue()


def _check(space: Workspace, text: bytes, who: str) -> None:
    """Read the new params.yaml before it replaces the old one."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / space.params.name
        trial.write_bytes(text)
        try:
            load_params(trial)
        except UserError as error:
            raise UserError(str(error).replace(str(trial), who)) from error


def _write_entry(datasets: CommentedMap, name: str, source: Source, said: dict[str, Any]) -> None:
    """Lay what was found and said over the entry, or make a new one with defaults."""
    new = name not in datasets
    if new:
        _append(datasets, name, CommentedMap())
    entry = datasets[name]
    found = _found(name, source)
    if "path" in entry.get("names", {}):
        found["names"] = entry["names"]  # a table of the person's own, which no new log replaces
    for key in _FOUND:
        if found.get(key) is not None:
            entry[key] = found[key]
        else:
            entry.pop(key, None)
    if said["positive"] is not None:
        entry["positive"] = said["positive"]
    if said["k_core"] is not None or new:
        entry["k_core"] = said["k_core"] or 1  # a filter over the whole log is a choice, and one that knows the future
    if said["split"] is not None or new:
        entry["split"] = flow(_split(source, said["split"]))


def _found(name: str, source: Source) -> dict[str, Any]:
    delimited = source.format == "delimited"
    columns = {role: column for role, column in source.columns.model_dump().items() if column is not None}
    names = published(source.path, source.member)
    return {
        "path": name if source.path.is_dir() else f"{name}/{source.path.name}",
        "member": source.member,
        "format": source.format,
        "separator": source.separator,
        "header": False if delimited and not source.header else None,
        "encoding": source.encoding if source.encoding != "utf-8" else None,
        "columns": flow(columns) if source.format not in ("diffrec", "sequences") else None,
        "time_unit": source.time_unit,
        "names": None if names is None else flow(names.model_dump(exclude_defaults=True)),
    }


def _split(source: Source, kind: str | None) -> dict[str, Any]:
    """The asked split, or the most honest one that the log allows."""
    if kind is None:
        if source.format in ("diffrec", "diffurec"):
            kind = "official"
        elif source.time_unit is None:
            kind = "random"
        else:
            kind = "leave_one_out" if source.time_unit == "order" else "global_time"
    if kind == "official" and not source.one_each:
        # The `test` rows of DiffRec's files are older than their `valid` rows, which would tell of the future.
        return {"kind": kind, "history": "train"}
    return {"kind": kind}


def flow(values: Mapping[str, Any]) -> CommentedMap:
    """A mapping on one line."""
    node = CommentedMap(values)
    node.fa.set_flow_style()
    return node


def _append(datasets: CommentedMap, name: str, entry: CommentedMap) -> None:
    """Add the last dataset; the blank lines and comments before the section that follows stay before it."""
    following = _following(datasets)
    datasets[name] = entry
    if following:
        entry["path"] = ""
        entry.ca.items["path"] = [None, None, CommentToken(following, CommentMark(0), None), None]


def _following(node: CommentedMap) -> str:
    """Cut off what stands after the last line of a block, where ruamel keeps it: at its innermost last key."""
    if not node:
        return ""
    last = next(reversed(node))
    if isinstance(node[last], CommentedMap) and not node[last].fa.flow_style():
        return _following(node[last])
    token = (node.ca.items.get(last) or [None] * 4)[2]
    if token is None:
        return ""
    kept, _, following = token.value.partition("\n")
    token.value = kept + "\n"
    return f"\n{following}" if following else ""


# --- what the person is told ------------------------------------------------------------------------------------------


def _report(space: Workspace, source: Source, known: bool) -> AddReport:
    dataset = load_params(space.params).dataset(space.dataset)
    text = source.format in ("delimited", "json", "sequences")
    columns = {role: name for role, name in source.columns.model_dump().items() if name is not None}
    return AddReport(
        dataset=space.dataset,
        path=dataset.path,
        format=source.format,
        member=source.member,
        left_out=list(source.left_out),
        separator=source.separator,
        header=source.header if source.format == "delimited" else None,
        encoding=source.encoding if text else None,
        columns=columns if source.names else {},
        names=None if dataset.names is None else dataset.names.path or dataset.names.member,
        other_columns=[name for name in source.names if name not in columns.values()],
        time_unit=source.time_unit,
        first_time=source.first_time,
        rows_peeked=source.rows_peeked,
        positive=dataset.positive or "every row",
        k_core=dataset.k_core,
        split=dataset.split.model_dump(),
        notes=_notes(source, dataset.positive, dataset.k_core, known),
        next=f"noise2next run --dataset {space.dataset}",
    )


def _no_rating(source: Source) -> str:
    """Why there is none, and what to do."""
    if not source.names:
        return f"the format {source.format} has none; leave --positive out"
    if source.unread_rating is None:
        return f"no column is told as one among {', '.join(source.names)}; name it with --rating"
    column, value = source.unread_rating
    return f"column {column!r} holds {value!r}, which is no number; write ratings with a decimal point"


def _notes(source: Source, positive: str | None, k_core: int, known: bool) -> list[str]:
    notes = []
    if known:
        notes.append(
            "the dataset was there: its data and what was found by looking are new, the rest of its entry stays"
        )
    if source.columns.rating is not None and positive is None:
        notes.append("ratings are there and every row counts as liking; --positive 'rating >= 4' counts only high ones")
    if source.unread_rating is not None:
        column, value = source.unread_rating
        notes.append(
            f"column {column} is named like a rating and is not read, for {value!r} is no number: every row counts as"
            " liking; write ratings with a decimal point"
        )
    if source.unread_time is not None:
        notes.append(
            f"column {source.unread_time} looks like a time and is not read, for its unit is not told: write all its"
            " times as ISO 8601 or all as seconds, or say --time and --time-unit"
        )
    if source.time_unit is None:
        notes.append("the log has no time: splits and models that need one are refused, the split is drawn at random")
    if source.time_unit == "order":
        notes.append("the log has an order but no clock: global_time and recency by date are refused")
    if k_core == 1 and not known and source.format not in ("diffrec", "diffurec"):
        notes.append("every user and item is kept, also those seen once; --k-core 5 leaves out who has fewer than five")
    if source.left_out:
        notes.append("other files of the archive are left out; --member names another one")
    return notes
