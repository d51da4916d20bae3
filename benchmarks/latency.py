"""How long a history that no training user has waits for its recommendations, from a loaded DiffRec.

    python benchmarks/latency.py        writes benchmarks/latency.json and benchmarks/latency.md

Each call is `Package.for_histories([items], k=10)`: raw ids in, raw ids and scores out, on one thread of a CPU. Weights
are untrained, since time does not depend on them; each history is new.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from machine import processor

from noise2next.config import Dataset, OfficialSplit, Variant
from noise2next.data.interactions import Interactions, Split
from noise2next.data.vocabulary import Vocabulary
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import build
from noise2next.registry.packaging import Package
from noise2next.training.device import choose_device
from noise2next.workspace import write_json

HERE = Path(__file__).parent
CALLS = 500
LENGTH = 60  # items of a history
LIMIT_MS = 20.0
SMALL = {"noise_scale": 0.005, "noise_min": 0.005, "noise_max": 0.01}
CASES = {
    "ml-1m, T = 40, hidden 200-600": (2_810, {"steps": 40, "hidden": [200, 600], **SMALL}),
    "ml-1m, T = 40, with sampling noise": (2_810, {"steps": 40, "hidden": [200, 600], "sampling_noise": True, **SMALL}),
    "34,395 items, T = 5, hidden 1000": (34_395, {"steps": 5, "hidden": [1000], **SMALL}),
    "94,949 items, T = 5, hidden 1000": (94_949, {"steps": 5, "hidden": [1000], **SMALL}),
}


def package(n_items: int, options: dict[str, object]) -> Package:
    """A DiffRec over `n_items`, with one user, as it stands after loading."""
    variant = Variant(name="diffrec", model="noise2next.models.diffrec.DiffRec", options=options)
    items = Vocabulary(tuple(str(item) for item in range(n_items)))
    one = Interactions.of(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), None, 1)
    split = Split(OfficialSplit(), Vocabulary(("0",)), items, one, one, one, False)
    card = ModelCard(dataset="x", variant=variant, n_items=n_items, seed=1, data_version="", fingerprint="")
    torch.manual_seed(1)
    dataset = Dataset.model_validate(
        {"path": "x", "format": "diffrec", "split": {"kind": "official", "history": "train"}}
    )
    return Package.of(Artifact(build(variant, n_items).eval(), items, card), split, dataset)


def measure(n_items: int, options: dict[str, object]) -> dict[str, float]:
    """Milliseconds."""
    loaded = package(n_items, options)
    draw = np.random.default_rng(1)
    histories = [[str(item) for item in draw.choice(n_items, LENGTH, replace=False)] for _ in range(CALLS + 1)]
    spent = np.zeros((len(histories), 2))
    for call, history in zip(spent, histories, strict=True):
        start = time.perf_counter(), time.process_time()
        loaded.for_histories([history], 10)
        call[:] = time.perf_counter() - start[0], time.process_time() - start[1]
    spent *= 1000
    middle, late = np.quantile(spent[1:], (0.5, 0.99), axis=0)
    return {
        "p50": float(middle[0]),
        "p99": float(late[0]),
        "processor_p50": float(middle[1]),
        "processor_p99": float(late[1]),
        "first": float(spent[0, 0]),
    }


def main() -> None:
    """Measure every case and write both files."""
    torch.set_num_threads(1)
    choose_device("cpu")
    found = {name: measure(*case) for name, case in CASES.items()}
    write_json(HERE / "latency.json", {"processor": processor(), "calls": CALLS, "milliseconds": found})
    first = next(iter(found.values()))
    late = "meets at p50, not at p99" if first["p50"] < LIMIT_MS else "misses"
    verdict = "meets at p99" if first["p99"] < LIMIT_MS else late
    rows = [f"| {name} | {' | '.join(f'{value:.2f}' for value in one.values())} |" for name, one in found.items()]
    text = "\n".join(
        [
            "# Recommendations for a new history",
            "",
            f"Milliseconds a call over {CALLS} calls with new histories of {LENGTH} items, one thread of "
            f"{processor()}: time on the clock, and of it the processor's own.",
            f"Goal: below {LIMIT_MS:.0f} ms from a loaded DiffRec at the size of ML-1M, which the first row "
            f"{verdict}. "
            "`python benchmarks/latency.py`",
            "",
            "| DiffRec | p50 | p99 | processor p50 | processor p99 | first call |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (HERE / "latency.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
