"""How often `noise2next drift` cries without cause, and what it notices.

    python benchmarks/drift.py [--streams 200] [--planted 25]     writes benchmarks/drift.json and benchmarks/drift.md

Every stream is a log in Parquet that goes the way of the stage: read by the engine, cut into stretches, compared with
the settings of params.yaml. A stream that has not changed is made of real or generated rows so that its stretches
differ by chance alone; in a moving one only its users are drawn anew, and the shop moves from month to month as it did.
The planted changes are made in the newest stretch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend
from scipy.stats import binomtest

from noise2next.config import Dataset, DriftConfig, load_params
from noise2next.data import sample
from noise2next.data.recent import DAY, IngestedLog
from noise2next.data.tables import connect
from noise2next.evaluation import drift
from noise2next.workspace import Workspace, write_json

HERE = Path(__file__).parent
LENGTH = 28 * DAY
SHOP = Dataset.model_validate({"path": "x", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"})


class Log(NamedTuple):
    """Rows users, items, times [N] in microseconds; up to `until` it is known."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    until: int


Draw = np.random.Generator
Change = Callable[[Log, Draw], Log]


# --- streams that have not changed ------------------------------------------------------------------------------------


def generated() -> Log:
    """The sample log, until a month before its end."""
    users, items, times = sample.events(1)
    times = times * 1_000_000
    return Log(users, items, times, int(times.max()) - LENGTH)


def ml_1m() -> Log | None:
    """The liked films of ML-1M, where they are there."""
    shared = Path(os.environ.get("NOISE2NEXT_SHARED", HERE.parent.parent / "shared"))
    archive = shared / "data" / "raw" / "ml-1m_partial.zip"
    if not archive.is_file():
        return None
    with zipfile.ZipFile(archive) as files:
        fields = files.read("ml-1m/ratings.dat").replace(b"::", b" ").split()
    users, items, rating, seconds = np.array(fields, dtype=np.int64).reshape(-1, 4).T
    liked = rating >= 4
    times = seconds[liked] * 1_000_000
    return Log(users[liked], items[liked], times, int(times.max()) - LENGTH)


def shuffled(log: Log, draw: Draw) -> Log:
    """The same rows, their times dealt out anew: the same users come back in every stretch."""
    return log._replace(times=draw.permutation(log.times))


def of_one_month(log: Log, begin: int, n_users: int) -> Callable[[Draw], Log]:
    """Six months, the users of each drawn with replacement from those of one real month: nobody comes back."""
    inside = (log.times > begin) & (log.times <= begin + LENGTH)
    users, items, times = log.users[inside], log.items[inside], log.times[inside] - begin
    order = np.argsort(users, kind="stable")
    users, items, times = users[order], items[order], times[order]
    _, starts, lengths = np.unique(users, return_index=True, return_counts=True)

    def stream(draw: Draw) -> Log:
        chosen = draw.integers(len(starts), size=6 * n_users)
        rows = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in chosen])
        who = np.repeat(np.arange(len(chosen)), lengths[chosen])
        return Log(who, items[rows], times[rows] + who // n_users * LENGTH, 5 * LENGTH)

    return stream


def users_anew(log: Log, begin: int, end: int) -> Callable[[Draw], Log]:
    """The log as it moved, users drawn with replacement, known until an instant between two, cut a month later."""
    order = np.argsort(log.users, kind="stable")
    users, items, times = log.users[order], log.items[order], log.times[order]
    _, starts, lengths = np.unique(users, return_index=True, return_counts=True)

    def stream(draw: Draw) -> Log:
        chosen, until = draw.integers(len(starts), size=len(starts)), int(draw.integers(begin, end))
        rows = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in chosen])
        who = np.repeat(np.arange(len(chosen)), lengths[chosen])
        kept = times[rows] <= until + LENGTH
        return Log(who[kept], items[rows][kept], times[rows][kept], until)

    return stream


# --- planted changes --------------------------------------------------------------------------------------------------


def replaced(log: Log, draw: Draw) -> Log:
    """30 % of the items go, new ones take their rows."""
    items = np.unique(log.items)
    gone = draw.permutation(items)[: round(0.3 * len(items))]
    hit = (log.times > log.until) & np.isin(log.items, gone)
    return log._replace(items=np.where(hit, log.items + log.items.max() + 1, log.items))


def mixed_up(log: Log, draw: Draw) -> Log:
    """Each item takes another's place in popularity."""
    items = np.unique(log.items)
    other = np.zeros(items.max() + 1, dtype=np.int64)
    other[items] = draw.permutation(items)
    return log._replace(items=np.where(log.times > log.until, other[log.items], log.items))


def halved(log: Log, draw: Draw) -> Log:
    """Every other row is never made."""
    kept = (log.times <= log.until) | (draw.random(len(log.times)) < 0.5)
    return log._replace(users=log.users[kept], items=log.items[kept], times=log.times[kept])


def poisoned(log: Log, draw: Draw) -> Log:
    """A third of the rows are of any user and any item."""
    hit = (log.times > log.until) & (draw.random(len(log.times)) < 1 / 3)
    users, items = np.unique(log.users[log.times > log.until]), np.unique(log.items)
    return log._replace(
        users=np.where(hit, draw.choice(users, len(hit)), log.users),
        items=np.where(hit, draw.choice(items, len(hit)), log.items),
    )


CHANGES: dict[str, Change] = {
    "30 % of the items replaced": replaced,
    "popularity mixed up": mixed_up,
    "activity halved": halved,
    "a third of the rows at random": poisoned,
}


# --- measuring --------------------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """What was alarmed, and of how many rows and users the newest stretch is."""

    alarmed: tuple[str, ...]
    rows: int
    users: int


def judge(log: Log, config: DriftConfig, backend: BaseBackend, scratch: Path, seed: int) -> Judged:
    """As the stage does."""
    path = scratch / f"{seed}.parquet"
    ids = {"user": pa.array(log.users).cast(pa.string()), "item": pa.array(log.items).cast(pa.string())}
    pq.write_table(pa.table({**ids, "time": log.times}), path)
    ingested = IngestedLog(backend, path, SHOP)
    whole = ingested.span(log.until)
    assert whole is not None
    found = ingested.recent(log.until, whole, config.days, config.stretches)
    assert drift.too_small(found, config) is None
    findings = drift.compare(found, config, seed)
    path.unlink()
    return Judged(
        tuple(one.name for one in findings if one.alarmed),
        int(found.rows[-1]),
        found.n_users(len(found.starts) - 1),
    )


def counted(found: list[Judged]) -> dict[str, object]:
    """Alarms among the streams, with Clopper and Pearson's interval, and by question."""
    alarms = sum(bool(one.alarmed) for one in found)
    interval = binomtest(alarms, len(found)).proportion_ci(0.95)
    return {
        "streams": len(found),
        "alarmed": alarms,
        "low": float(interval.low),
        "high": float(interval.high),
        "by": {name: sum(name in one.alarmed for one in found) for name in drift.QUESTIONS},
        "rows": round(float(np.median([one.rows for one in found]))),
        "users": round(float(np.median([one.users for one in found]))),
    }


def streams() -> tuple[dict[str, Callable[[Draw], Log]], dict[str, Callable[[Draw], Log]]]:
    """Those without a change, by name, and those that move as they do."""
    log, films = generated(), ml_1m()
    year = log.until - 364 * DAY
    still = {"sample log, times dealt out anew": lambda draw: shuffled(log, draw)}
    moving = {"sample log, users drawn anew": users_anew(log, year, log.until)}
    if films is not None:
        august = int(np.datetime64("2000-08-01", "us").astype(np.int64))
        still["ML-1M, August 2000 again and again"] = of_one_month(films, august, 200)
        begin = int(np.datetime64("2001-01-01", "us").astype(np.int64))
        moving["ML-1M, users drawn anew, 2001"] = users_anew(films, begin, begin + 365 * DAY)
    return still, moving


def main() -> None:
    """Judge every stream and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--planted", type=int, default=25)
    options = parser.parse_args()
    config = load_params(Workspace(HERE.parent, "").params).drift
    still, moving = streams()
    false: dict[str, dict[str, object]] = {}
    planted: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as place, connect("duckdb", Path(place)) as backend:

        def judged(stream: Callable[[Draw], Log], count: int, change: Change | None = None) -> dict[str, object]:
            found = []
            for seed in range(count):
                draw = np.random.default_rng(seed)
                log = stream(draw)
                found.append(judge(log if change is None else change(log, draw), config, backend, Path(place), seed))
            return counted(found)

        for name, stream in {**still, **moving}.items():
            false[name] = judged(stream, options.streams)
            print(name, false[name], flush=True)
        for name, stream in still.items():
            planted[name] = {}
            for change, make in CHANGES.items():
                planted[name][change] = judged(stream, options.planted, make)
                print(name, change, planted[name][change], flush=True)
    document = {
        "config": config.model_dump(mode="json"),
        "unchanged": {name: false[name] for name in still},
        "moving": {name: false[name] for name in moving},
        "planted": planted,
    }
    write_json(HERE / "drift.json", document)
    text = page(document)
    (HERE / "drift.md").write_text(text, encoding="utf-8")
    print(text)


def page(document: dict) -> str:
    """The figures as tables."""
    level = document["config"]["level"]

    def line(name: str, one: dict) -> str:
        by = ", ".join(f"{question} {times}" for question, times in one["by"].items() if times) or "none"
        share = f"{100 * one['alarmed'] / one['streams']:.1f} %"
        return (
            f"| {name} | {one['rows']:,} | {one['users']:,} | {one['alarmed']} of {one['streams']} | "
            f"{share} ({100 * one['low']:.1f} to {100 * one['high']:.1f}) | {by} |"
        )

    head = ["| stream | rows | users | alarmed | share, 95 % interval | by question |", "|---|---|---|---|---|---|"]
    parts = [
        "# Drift: false alarms, and what is noticed",
        "",
        f"Settings of params.yaml, stretches of {document['config']['days']:.0f} days; rows and users are those of the "
        f"newest stretch (median). "
        "`python benchmarks/drift.py`",
        "",
        f"Nothing has changed (at most {100 * (1 - level):.0f} % of the streams may be alarmed):",
        "",
        *head,
        *[line(name, one) for name, one in document["unchanged"].items()],
        "",
        "The log moves as it did, only its users are drawn anew; an alarm here may be true:",
        "",
        *head,
        *[line(name, one) for name, one in document["moving"].items()],
        "",
        "A change is made in the newest stretch:",
    ]
    for change in CHANGES:
        parts += ["", f"**{change}**", "", *head]
        parts += [line(name, one[change]) for name, one in document["planted"].items()]
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    main()
