"""How long a large log takes to be ingested and prepared, and how much memory.

    python benchmarks/scale.py [--rows 1000000 20000000]        writes benchmarks/scale.json and benchmarks/scale.md

A log of N rows by N/100 users over N/400 items, both long-tailed, is generated as CSV; then each stage runs in a
process of its own, as the pipeline runs it, and its clock and peak memory are read.
Sizes that are not measured keep their last figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from machine import processor
from numpy.typing import NDArray

from noise2next.config import Params
from noise2next.workspace import Workspace, read_json, write_json

HERE = Path(__file__).parent
SIZES = (1_000_000, 20_000_000)
STAGES = ("ingest", "prepare")
GOALS = {1_000_000: "15 s", 20_000_000: "300 s, 4 GB"}
CHUNK = 1_000_000
YEAR = 365 * 86_400
STAGE = """
import sys
from importlib import import_module
from pathlib import Path
from noise2next.config import load_params
from noise2next.workspace import Workspace
root = Path(sys.argv[2])
import_module(f"noise2next.stages.{sys.argv[1]}").run(load_params(root / "params.yaml"), Workspace(root, "generated"))
"""
DATASET = {
    "path": "log.csv",
    "format": "delimited",
    "separator": ",",
    "columns": {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": "rating"},
    "time_unit": "s",
    "positive": "rating >= 2",
    "k_core": 5,
    "split": {"kind": "global_time"},
}


def generate(rows: int, path: Path) -> None:
    """A log in no order, written in chunks; a few of its rows repeat a pair of user and item."""
    draw = np.random.default_rng(1)
    users, items = max(rows // 100, 100), max(rows // 400, 50)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "rating", "timestamp")])
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            chunk = [
                _long_tailed(draw, users, n, 1.5),
                _long_tailed(draw, items, n, 2.5),
                draw.integers(1, 6, n),
                1_600_000_000 + draw.integers(0, 2 * YEAR, n),
            ]
            writer.write_table(pa.table(chunk, schema=schema))


def _long_tailed(draw: np.random.Generator, kinds: int, n: int, power: float) -> NDArray[np.int64]:
    """n numbers below `kinds`, the low ones far more often; scattered, so that being frequent is not being small."""
    rank = (draw.random(n) ** power * kinds).astype(np.int64)
    return rank * 7_919 % kinds


def run_stage(stage: str, root: Path) -> dict[str, float]:
    """Seconds and peak memory (GB) of the stage in a fresh process, its children included."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", STAGE, stage, str(root)])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the stage {stage} ended with exit code {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * unit / 1e9,
    }


def measure(rows: int) -> dict[str, Any]:
    """Both stages over a log of `rows` rows, and what they report to have done."""
    with tempfile.TemporaryDirectory(prefix="scale-") as place:
        root, space = Path(place), Workspace(Path(place), "generated")
        write_json(space.params, {"datasets": {"generated": DATASET}, "variants": {}})  # JSON is YAML
        Params.model_validate(read_json(space.params))
        generate(rows, space.data / "log.csv")
        busy = os.getloadavg()[0]
        found = {stage: run_stage(stage, root) for stage in STAGES}
        ingested, prepared = read_json(space.ingested / "report.json"), read_json(space.prepared / "report.json")
        return {
            "stages": found,
            "seconds": sum(one["seconds"] for one in found.values()),
            "peak_gb": max(one["peak_gb"] for one in found.values()),
            "log_gb": (space.data / "log.csv").stat().st_size / 1e9,
            "accepted": ingested["accepted"],
            "kept": prepared["rows"]["after_k_core"],
            "load_before": busy,
            "machine": machine(),
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Every size as rows of a Markdown page."""
    rows = []
    for size, one in sorted(found.items(), key=lambda pair: int(pair[0])):
        n = int(size)
        for stage in STAGES:
            part = one["stages"][stage]
            cells = (f"{part['seconds']:.1f}", f"{part['processor_seconds']:.1f}", f"{part['peak_gb']:.2f}")
            rows.append(f"| {n:,} | {stage} | {' | '.join(cells)} | {n / part['seconds']:,.0f} | |")
        spent = sum(one["stages"][stage]["processor_seconds"] for stage in STAGES)
        cells = (f"**{one['seconds']:.1f}**", f"{spent:.1f}", f"**{one['peak_gb']:.2f}**", f"{n / one['seconds']:,.0f}")
        rows.append(f"| {n:,} | both | {' | '.join(cells)} | {GOALS.get(n, '')} |")
    facts = "; ".join(
        f"{int(size):,} rows on {one['machine']['cores']} cores of {one['machine']['processor']}, "
        f"{one['machine']['memory_gb']} GB, load {one['load_before']:.1f} before"
        for size, one in sorted(found.items(), key=lambda pair: int(pair[0]))
    )
    return "\n".join(
        [
            "# A large log, ingested and prepared",
            "",
            "A generated CSV (user, item, rating, timestamp; long-tailed; no order), a process for each stage: "
            "parse, quarantine, threshold, repeats, 5-core, global time split, vocabularies, leakage check.",
            "`python benchmarks/scale.py` writes this page.",
            "",
            f"Measured: {facts}.",
            "",
            "| rows | stage | seconds | processor seconds | peak GB | rows a second | goal |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sizes asked for and write both files."""
    parser = argparse.ArgumentParser(description="Ingest and prepare large generated logs.")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    path = HERE / "scale.json"
    found: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    for rows in parser.parse_args(arguments).rows:
        found[str(rows)] = measure(rows)
        write_json(path, found)
        (HERE / "scale.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
