"""What makes an asset stale: the bytes it holds, the choices it was made with, the code that made it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import noise2next
from noise2next.config import Params
from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, Workspace, read_json

SOURCE = Path(noise2next.__file__).parent
TABLES = (
    "data/interactions.py",
    "data/negatives.py",
    "data/noise.py",
    "data/queries.py",
    "data/vocabulary.py",
    "data/weighting.py",
)
MODELS = ("models", "diffusion", "nn")
JUDGE = ("evaluation/evaluator.py", "evaluation/metrics.py", "evaluation/ranking.py")  # it chooses the best epoch
TRAIN = (*TABLES, *MODELS, "training", *JUDGE, "stages/train.py")
EVALUATE = (*TABLES, *MODELS, "evaluation", "stages/evaluate.py")
CODE: Mapping[str, tuple[str, ...]] = {  # the same lists stand in dvc.yaml, and a test compares them
    "ingest": ("data", "stages/ingest.py"),
    "validate": ("data", "stages/validate.py"),
    "prepare": ("data", "stages/prepare.py"),
    "train": TRAIN,
    "evaluate": EVALUATE,
    "embed": ("data/item_tables.py", "models", "stages/embed.py"),
    "cluster": ("data/clustering.py", "data/item_tables.py", "stages/cluster.py"),
    "train_latent": ("data/item_tables.py", *TRAIN),
    "evaluate_latent": EVALUATE,
    "leaderboard": ("evaluation", "stages/leaderboard.py"),
    "register": ("registry", "stages/gate.py", "stages/register.py"),
    "recommend": ("registry/packaging.py", "stages/recommend.py"),  # the last two are no stages of DVC
    "drift": ("data/recent.py", "evaluation/drift.py", "evaluation/outcome.py", "stages/drift.py"),
}


def raw_files(params: Params, space: Workspace) -> dict[str, str]:
    """The dataset's own files below data/ with their md5, as DVC records it.

    Raises UserError where the log is not there.
    """
    place = space.data / params.dataset(space.dataset).path
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    if not files:
        raise UserError(
            f"{place}: no such log; `dvc pull` fetches what data.dvc names, `noise2next datasets add` takes one in"
        )
    return {path.relative_to(space.data).as_posix(): _md5(path) for path in files}


def recorded_files(space: Workspace) -> dict[str, str]:
    """What `data.dvc` pins, by path below data/; empty where nothing is pinned or DVC's cache lacks the listing."""
    pinned = pointer(space)
    return {} if pinned is None else listed(space, pinned) or {}


def pointer(space: Workspace) -> str | None:
    """The version of the whole of data/ that `data.dvc` pins."""
    if not space.data_pointer.is_file():
        return None
    from ruamel.yaml import YAML

    return str(YAML(typ="safe").load(space.data_pointer)["outs"][0]["md5"])


def listed(space: Workspace, pinned: str) -> dict[str, str] | None:
    """The files of one version of data/ with their md5, by path below data/; None where DVC's cache lacks the list."""
    listing = space.versioning / "cache" / "files" / "md5" / pinned[:2] / pinned[2:]
    return {one["relpath"]: one["md5"] for one in read_json(listing)} if listing.is_file() else None


def of_log(files: Mapping[str, str], path: str) -> dict[str, str]:
    """Those of `files` that a dataset's `path`, a file or a folder, names."""
    return {name: hashed for name, hashed in files.items() if name == path or name.startswith(f"{path}/")}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What happened between two versions of a log, in words: `1 file added, 2 files changed`."""
    counts = {
        "added": len(now.keys() - before.keys()),
        "changed": sum(before[name] != now[name] for name in now.keys() & before.keys()),
        "removed": len(before.keys() - now.keys()),
    }
    return ", ".join(f"{count} file{'s' * (count > 1)} {what}" for what, count in counts.items() if count)


def of_files(files: Mapping[str, str]) -> str:
    """One version for named hashes."""
    return _short(sorted(files.items()))


def of_output(place: Path) -> str:
    """The version of an output folder: its files without the report, whose timings differ from run to run."""
    listed: dict[str, str] = read_json(place / MANIFEST)["files"]
    return of_files({name: hashed for name, hashed in listed.items() if name != "report.json"} or listed)


def of_code(stage: str, choices: Any = None) -> str:
    """The version of a stage: its source files, and the choices in params.yaml that all datasets share."""
    return _short([_source(CODE[stage]), choices])


@cache
def _source(names: Iterable[str]) -> list[tuple[str, str]]:
    places = [SOURCE / name for name in names]
    files = [path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return [(path.relative_to(SOURCE).as_posix(), _md5(path)) for path in files]


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
