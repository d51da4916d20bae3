"""Where everything lies. The only module that spells paths; every output is a folder that appears whole or not at all.

An output folder holds its files and `manifest.json` with the sha256 of each. It is written beside its place and moved
in by rename, so a reader sees the old one, the new one, or none, never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noise2next.errors import UserError

MANIFEST = "manifest.json"
PER_DATASET = ("ingest", "validate", "prepare", "embed", "cluster", "leaderboard", "register", "drift")


@dataclass(frozen=True)
class Workspace:
    """The folders of one dataset under `root`. Reads nothing, makes nothing, until asked."""

    root: Path
    dataset: str

    # the project's own files
    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def promotion_policy(self) -> Path:
        return self.root / "mlflow" / "promotion.yaml"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def data_pointer(self) -> Path:
        return self.root / "data.dvc"

    @property
    def versioning(self) -> Path:
        """DVC's own folder."""
        return self.root / ".dvc"

    def landing(self, folder: str) -> Path:
        """Where new files of the dataset's log are laid; `folder` as params.yaml names it."""
        return self.root / folder / self.dataset

    @property
    def downloads(self) -> Path:
        """Archives as their publishers ship them."""
        return self.root / ".cache" / "datasets"

    @property
    def tracking_store(self) -> Path:
        """The local MLflow database, used where no tracking server is named."""
        return self.root / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    # derived, one folder a step
    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts" / self.dataset

    @property
    def ingested(self) -> Path:
        """interactions.parquet, quarantine.parquet, report.json"""
        return self.artifacts / "ingest"

    @property
    def trial(self) -> Path:
        """For a moment the root of a workspace that tries a log with one more file."""
        return self.artifacts / ".land"

    @property
    def validation(self) -> Path:
        """report.json, docs/ (Great Expectations' data docs)"""
        return self.artifacts / "validate"

    @property
    def prepared(self) -> Path:
        """train.parquet, valid.parquet, test.parquet, users.parquet, items.parquet, report.json"""
        return self.artifacts / "prepare"

    @property
    def embedded(self) -> Path:
        """item_embeddings.parquet, report.json"""
        return self.artifacts / "embed"

    @property
    def clustered(self) -> Path:
        """item_clusters.parquet, report.json"""
        return self.artifacts / "cluster"

    def model(self, variant: str) -> Path:
        """config.json, weights.safetensors, vocabulary.parquet, report.json"""
        return self.artifacts / "train" / variant

    def checkpoint(self, variant: str) -> Path:
        """The state of an unfinished training run; gone when it is finished."""
        return self.root / "artifacts" / self.dataset / "checkpoints" / variant

    def evaluation(self, variant: str) -> Path:
        """per_user.parquet, report.json"""
        return self.artifacts / "evaluate" / variant

    def tuning(self, variant: str) -> Path:
        """The trials of a search over settings, one SQLite file a variant."""
        return self.artifacts / "tune" / f"{variant}.db"

    @property
    def leaderboard(self) -> Path:
        """leaderboard.json, leaderboard.html"""
        return self.artifacts / "leaderboard"

    def package(self, version: str) -> Path:
        """A registered model version, fetched from a registry on another machine."""
        return self._packages / version

    def packages(self) -> list[Path]:
        """Those that are here as a whole, in no order."""
        return [one.parent for one in self._packages.glob(f"[!.]*/{MANIFEST}")]

    @property
    def _packages(self) -> Path:
        return self.artifacts / "packages"

    @property
    def run_lock(self) -> Path:
        """Held while the whole way is gone for this dataset; holds the process's number."""
        return self.artifacts / ".run.lock"

    @property
    def registration(self) -> Path:
        """report.json: the decision and why"""
        return self.artifacts / "register"

    def recommended(self, model_version: str, data_version: str) -> Path:
        """Everyone's lists by one model of one data: recommendations.parquet, report.json"""
        return self._recommendations / f"{model_version}-{data_version[:12]}"

    def kept_recommendations(self) -> list[Path]:
        """The tables that are there as a whole, in no order."""
        return [one.parent for one in self._recommendations.glob(f"[!.]*/{MANIFEST}")]

    @property
    def _recommendations(self) -> Path:
        return self.artifacts / "recommendations"

    @property
    def drift(self) -> Path:
        """report.json: what has moved since the champion was made"""
        return self.artifacts / "drift"


@dataclass(frozen=True)
class Reproduction:
    """The places of one table of published results that is trained again under `root`."""

    root: Path
    table: str

    @property
    def work(self) -> Path:
        return self.root / "artifacts" / "reproduce" / self.table

    @property
    def searches(self) -> Reproduction:
        """Where trials are trained on training rows alone, so that their splits leave those of the rows alone."""
        return Reproduction(self.root, f"{self.table}-search")

    def space(self, seed: int, dataset: str) -> Workspace:
        """A workspace for each seed, so that the models and checkpoints of one leave those of another alone."""
        return Workspace(self.work / f"seed-{seed}", dataset)

    def prepared_by(self, seed: int) -> Path:
        """What the seed's prepared split was made from and by."""
        return self.work / f"seed-{seed}" / "prepared.json"

    def lock(self, variant: str, seed: int) -> Path:
        """Held while a row is trained and judged under a seed."""
        return self.work / "locks" / f"{variant}-{seed}"

    @property
    def runs(self) -> Path:
        """One JSON file for each finished run."""
        return self.work / "runs"

    def users(self, key: str) -> Path:
        """A run's metrics, user by user."""
        return self.work / "users" / f"{key}.parquet"

    def result(self, suffix: str) -> Path:
        """The finished table: `.json`, `.md`, `.svg`, `-curves.svg`, `-tuning.json`."""
        return self.root / "docs" / "results" / f"{self.table}{suffix}"


@contextlib.contextmanager
def writing(place: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it gets a manifest and takes `place`, else nothing has changed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place):
        _sweep(place)
        fresh = _fresh(place)
        held = os.open(fresh, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)  # tells a sweep that its writer lives
    try:
        yield fresh
        _write_manifest(fresh)
        with locked(place):
            _swap(fresh, place)
    finally:
        os.close(held)
        shutil.rmtree(fresh, ignore_errors=True)


def remove(place: Path) -> None:
    """Take an output folder away: a reader finds it whole or not at all."""
    with locked(place):
        retired = _fresh(place)
        os.replace(place, retired)
        _sync_folder(place.parent)
    shutil.rmtree(retired, ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace one file: a reader sees the old bytes or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
        _sync_folder(path.parent)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place to write a large file at; on a clean exit it takes `path` whole, else nothing has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        os.replace(fresh, path)
        _sync_folder(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Replace one file by `document`, keys sorted, so that equal documents are equal bytes."""
    write_atomically(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The document in one file. Raises UserError, with the command that makes it again, where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; {_again(path)}") from error
    except ValueError as error:  # no JSON, or not even text
        raise UserError(f"{path}: damaged, it is no JSON; {_again(path)}") from error


def require(place: Path, made_by: str) -> Path:
    """`place`, or a UserError that names the command which makes it."""
    if not (place / MANIFEST).is_file():
        raise UserError(f"{place}: not there yet; `noise2next {made_by}` makes it")
    return place


def verify(place: Path) -> dict[str, str]:
    """The manifest of an output folder after hashing each file again. Raises UserError where one differs."""
    listed = _listed(place)
    for name, recorded in listed.items():
        path = place / name
        if not path.is_file():
            raise UserError(f"{path}: missing, though {MANIFEST} lists it; {_again(path)}")
        if sha256(path) != recorded:
            raise UserError(f"{path}: its sha256 is not the one in {MANIFEST}; {_again(path)}")
    return listed


def digest(place: Path) -> str:
    """One hash for an output folder's content, from its manifest."""
    return hashlib.sha256(json.dumps(_listed(place), sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(place: Path) -> dict[str, str]:
    document = read_json(place / MANIFEST)
    listed = document.get("files") if isinstance(document, dict) else None
    if not isinstance(listed, dict):
        raise UserError(f"{place / MANIFEST}: damaged, it lists no files; {_again(place / MANIFEST)}")
    return listed


def _again(path: Path) -> str:
    """How a derived file comes back: its place below artifacts/<dataset>/ names the command."""
    match path.parts[path.parts.index("artifacts") + 1 :] if "artifacts" in path.parts else ():
        case (dataset, ("train" | "evaluate") as stage, variant, _, *_):
            return f"`noise2next {stage} --dataset {dataset} --variant {variant}` makes the folder again"
        case (dataset, "recommendations", _, _, *_):
            return f"`noise2next recommend --dataset {dataset} --all` makes the champion's table again"
        case (dataset, stage, _, *_) if stage in PER_DATASET:
            return f"`noise2next {stage} --dataset {dataset}` makes the folder again"
    return "make the folder again"


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    write_json(folder / MANIFEST, {"files": {path.relative_to(folder).as_posix(): sha256(path) for path in files}})


def _swap(fresh: Path, place: Path) -> None:
    if place.exists():
        if not _exchange(fresh, place):
            retired = _fresh(place)
            os.replace(place, retired)
            os.replace(fresh, place)
            os.replace(retired, fresh)
        shutil.rmtree(fresh)  # what was there before
    else:
        os.replace(fresh, place)
    _sync_folder(place.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (Linux's renameat2); False, and nothing done, where that cannot be."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _fresh(place: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}@", dir=place.parent))  # no name of ours holds an @
    folder.chmod(0o755)
    return folder


def _sweep(place: Path) -> None:
    """Remove what killed writers of `place` left behind: folders that no living process holds."""
    for left in place.parent.glob(f".{place.name}@*"):
        if not left.is_dir():
            continue
        descriptor = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(left)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """One writer at a time for `place`, also across processes; the others wait."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold the file `lock`; raises UserError where another process has it, with that one's number."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{lock}: another {what} is going on (process {file.read().strip() or 'unknown'}); wait for its end"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
