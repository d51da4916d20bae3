"""What it saves that training keeps the memory it frees: the same batches with and without, in processes of their own.

    python benchmarks/kept_memory.py [--rounds 3] [--cases diffrec,diffurec]

Writes kept_memory.json and .md beside itself; some minutes. Each round takes every case both ways, in turn, on one
thread. Times are CPU seconds of the process, system's share included, without its first batch. Exit code 1 where the
losses are not the same to the last bit. Data as in speed.py and speed_sequences.py; long histories are generated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import row_data
import speed
import speed_sequences
import torch
from machine import processor
from side_by_side import optimiser, seconds, train_steps

from noise2next.data.queries import Queries
from noise2next.models.base import Clock, Trainable
from noise2next.models.diffrec import DiffRec
from noise2next.models.diffurec import DiffuRec
from noise2next.models.sas_rec import SASRec
from noise2next.training.device import keep_freed_memory, peak_memory_mb, use_fast_float32
from noise2next.training.seeding import epoch_order, seed_everything

LONG = 200  # items of a history, as ML-1M's models read


@dataclass(frozen=True)
class Case:
    """A model and its data, and how many batches of what size are measured."""

    name: str
    batches: int
    size: int
    data: Callable[[], Queries]
    model: Callable[[int], Trainable]


def rows() -> Queries:
    """The training rows of ml-1m_clean."""
    _, split = row_data.load()
    return Queries.of(split.train, split.n_items, split.users.keys)


def beauty() -> Queries:
    """The training histories of Beauty."""
    return speed_sequences.histories()[1]


def long_histories() -> Queries:
    """600 users of 201 items each, so that half of the prefixes are longer than 100."""
    users, items = 600, 3706
    drawn = torch.randint(items, (users * (LONG + 1),), generator=torch.Generator().manual_seed(0))
    return speed_sequences.queries_of(torch.arange(users).repeat_interleave(LONG + 1).numpy(), drawn.numpy(), items)


CASES = {
    "diffrec": Case("DiffRec, ml-1m_clean", 30, 400, rows, lambda items: DiffRec(speed.OPTIONS, items)),
    "sasrec_ce": Case("SASRec, cross-entropy, Beauty", 25, 128, beauty, lambda n: SASRec(SASRec.Config(loss="ce"), n)),
    "diffurec": Case(
        "DiffuRec, padding left out, Beauty", 6, 512, beauty, lambda n: DiffuRec(DiffuRec.Config(mask_keys=True), n)
    ),
    "diffurec_long": Case(
        f"DiffuRec, padding left out, generated histories of up to {LONG}",
        2,
        512,
        long_histories,
        lambda n: DiffuRec(DiffuRec.Config(mask_keys=True, max_length=LONG), n),
    ),
}


def train(case: Case, kept: bool) -> dict[str, float]:
    """Train as the trainer does, in this process: seconds, peak memory, and the loss at the end."""
    torch.set_num_threads(1)
    use_fast_float32()
    cpu = torch.device("cpu")
    if kept and not keep_freed_memory(cpu):
        raise SystemExit("this system's malloc is not the GNU C library's: there is nothing to compare")
    data = case.data()
    seed_everything(1)
    model = case.model(data.n_items)
    model.begin_training(data)
    steps = optimiser(model)
    batches = chain.from_iterable(model.batches(data, case.size, epoch_order(1, epoch)) for epoch in count())
    train_steps(model, steps, islice(batches, 1))
    taken = seconds(lambda: train_steps(model, steps, islice(batches, case.batches)))
    with torch.no_grad():
        loss = sum(model.loss(next(batches), "train", Clock()).values())
    return {"seconds": taken, "peak_mb": peak_memory_mb(cpu), "loss": float(loss)}


def measure(keys: list[str], rounds: int) -> dict[str, Any]:
    """Every case both ways in each round."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {key: {"kept": [], "returned": []} for key in keys}
    for _ in range(rounds):
        for key, sides in found.items():
            for side, taken in sides.items():
                done = subprocess.run(
                    [sys.executable, __file__, "--of", key, "--side", side], capture_output=True, text=True, check=True
                )
                taken.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{key:16s} {side:10s} {taken[-1]['seconds']:8.2f} s {taken[-1]['peak_mb']:8.0f} MB", flush=True)
    return {
        "machine": {"processor": processor(), "threads": 1, "torch": torch.__version__},
        "rounds": rounds,
        "longest": LONG,
        "rows": [{"key": key, **row(CASES[key], sides)} for key, sides in found.items()],
    }


def row(case: Case, sides: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and the least and the most seconds."""
    told: dict[str, Any] = {
        side: {
            "median": statistics.median(one["seconds"] for one in taken),
            "low": min(one["seconds"] for one in taken),
            "high": max(one["seconds"] for one in taken),
            "peak_mb": statistics.median(one["peak_mb"] for one in taken),
        }
        for side, taken in sides.items()
    }
    return {
        "case": case.name,
        "batches": case.batches,
        "size": case.size,
        **told,
        "faster": told["returned"]["median"] / told["kept"]["median"],
        "same": len({one["loss"] for taken in sides.values() for one in taken}) == 1,
    }


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    lines = [
        "# Memory that training keeps",
        "",
        f"`python benchmarks/kept_memory.py`: training batches in a process of their own that keeps the memory it "
        "frees, as every command here that trains or evaluates does, and in one whose malloc hands large blocks back "
        f"to the system at once, as it does by itself. One thread of {machine['processor']}, torch {machine['torch']}; "
        f"CPU seconds with the system's share, median of {result['rounds']} interleaved rounds (lowest to highest), "
        "without the first batch.",
        "",
        "| training | batches | kept | handed back | times faster | peak memory, kept | handed back | same losses |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in result["rows"]:
        kept, returned = one["kept"], one["returned"]
        lines.append(
            f"| {one['case']} | {one['batches']} of {one['size']} | {shown(kept)} | {shown(returned)} "
            f"| {one['faster']:.2f} | {kept['peak_mb']:,.0f} MiB | {returned['peak_mb']:,.0f} MiB "
            f"| {'to the last bit' if one['same'] else '**no**'} |"
        )
    lines += [
        "",
        "A block that comes from the system comes without pages: the kernel hands out and zeroes each at its first "
        "touch. What is kept has them. Its price is memory: freed blocks of unlike sizes do not always fit the next.",
    ]
    return "\n".join(lines) + "\n"


def shown(one: dict[str, float]) -> str:
    """Median and range."""
    return f"{one['median']:.2f} s ({one['low']:.2f} to {one['high']:.2f})"


def main() -> int:
    """Measure, write, print; or do one side of a case for the process that asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--of", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("kept", "returned"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.of is not None:
        print(json.dumps(train(CASES[chosen.of], chosen.side == "kept")))
        return 0
    names = chosen.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    result = measure(names, chosen.rounds)
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    Path(__file__).with_suffix(".md").write_text(tell(result))
    print("\n" + tell(result))
    return int(not all(one["same"] for one in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
