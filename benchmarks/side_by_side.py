"""Some work of ours beside a plain form of the same mathematics: both measured in turn in one run, on one thread.

What the programs `speed*.py` share. Times are CPU seconds of this process, so other work on the machine disturbs them
little; memory bandwidth and clock it does share.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from machine import processor
from torch import Tensor, nn

from noise2next.data.queries import Queries
from noise2next.models.base import Clock, Trainable
from noise2next.training.device import use_fast_float32

LEARNING_RATE = 1e-3
MOST_APART = 1e-5  # of the two sides' results, as a share


@dataclass(frozen=True)
class Case:
    """Some work in both forms: `ours` and `plain` do its first so many pieces, of which it has `pieces` in all."""

    name: str
    piece: str  # what one is: "batch of 128 users"
    pieces: int
    goal: float  # so many times faster than the plain form, or at most so many seconds
    ours: Callable[[int], object]
    plain: Callable[[int], object]
    apart: Callable[[], float]  # how far the results are apart on the same weights and draws, as a share
    unit: Literal["times", "s"] = "times"  # of the goal


def main(
    program: str,
    description: str,
    cases: Mapping[str, Callable[[Any], Case]],
    load: Callable[[], tuple[dict[str, Any], Any]],
    tell: Callable[[dict[str, Any]], str],
    pieces: int,
) -> int:
    """Measure the cases asked for, write `program`'s .json and .md, print. Exit code 1 where a goal is missed.

    `load` gives what the page says of the data, and the data that each case is made of.
    """
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--pieces", type=int, default=pieces, help="of each work, that every side does in a round")
    arguments.add_argument("--cases", default=",".join(cases), help="comma-separated")
    chosen = arguments.parse_args()
    names = chosen.cases.split(",")
    if unknown := set(names) - set(cases):
        arguments.error(f"no such case: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    facts, data = load()
    rows = []
    for name in names:
        rows.append({"key": name, **compare(cases[name](data), chosen.rounds, chosen.pieces)})
        print(json.dumps(rows[-1]), flush=True)
    machine = {"processor": processor(), "threads": 1, "torch": torch.__version__}
    result = {**facts, "machine": machine, "rounds": chosen.rounds, "rows": rows}
    Path(program).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    Path(program).with_suffix(".md").write_text(tell(result))
    print("\n" + tell(result))
    return int(not all(row["reached"] for row in rows))


# --- measuring --------------------------------------------------------------------------------------------------------


def compare(case: Case, rounds: int, count: int) -> dict[str, Any]:
    """Each round takes every side in turn; CPU seconds are scaled to all pieces."""
    measured = min(count, case.pieces)
    sides: dict[str, list[float]] = {"plain": [], "plain with oneDNN": [], "ours": []}
    case.ours(1)
    case.plain(1)
    for _ in range(rounds):
        default_products()
        sides["plain"].append(seconds(lambda: case.plain(measured)))
        fast_products()
        sides["plain with oneDNN"].append(seconds(lambda: case.plain(measured)))
        sides["ours"].append(seconds(lambda: case.ours(measured)))
    scale = case.pieces / measured
    told = {
        side: {"median": statistics.median(taken) * scale, "low": min(taken) * scale, "high": max(taken) * scale}
        for side, taken in sides.items()
    }
    ours = told["ours"]["median"]
    faster, apart = told["plain"]["median"] / ours, case.apart()
    met = faster >= case.goal if case.unit == "times" else ours <= case.goal
    return {
        "case": case.name,
        "piece": case.piece,
        "pieces": case.pieces,
        "measured": measured,
        "cpu_seconds": told,
        "faster": faster,
        "goal": case.goal,
        "unit": case.unit,
        "apart": apart,
        "reached": met and apart <= MOST_APART,
    }


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def default_products() -> None:
    """torch's own choice of kernel."""
    torch.set_float32_matmul_precision("highest")


def fast_products() -> None:
    """The kernel that the package chooses, after its check."""
    use_fast_float32.cache_clear()
    use_fast_float32()


def optimiser(network: nn.Module) -> torch.optim.AdamW:
    """Of both sides, so that the difference is the model's."""
    return torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def train_steps(model: Trainable, steps: torch.optim.Optimizer, batches: Iterable[Queries]) -> None:
    """What the trainer does with each batch."""
    model.train()
    for batch in batches:
        terms = model.loss(batch, "train", Clock())
        model.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        steps.step()


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, as a share of the largest of `other`."""
    return float(((one - other).abs().max() / other.abs().max()).detach())


# --- telling ----------------------------------------------------------------------------------------------------------


def measured_on(result: dict[str, Any]) -> str:
    """One sentence for the page's head."""
    machine, rounds = result["machine"], result["rounds"]
    spread = "one round" if rounds == 1 else f"median of {rounds} interleaved rounds (lowest to highest)"
    return f"One thread of {machine['processor']}, torch {machine['torch']}; CPU seconds, {spread}."


def verdict(result: dict[str, Any]) -> str:
    """Whether all goals are reached, else which are not."""
    missed = [row["case"] for row in result["rows"] if not row["reached"]]
    return f"**Missed: {'; '.join(missed)}.**" if missed else "All goals are reached."


def table(result: dict[str, Any]) -> list[str]:
    """Every case as a row, and how much of it was measured."""
    return [
        "| work | ours | plain | plain with oneDNN | times faster | wanted | results apart |",
        "|---|---|---|---|---|---|---|",
        *map(_row, result["rows"]),
        "",
        "Of each work the first pieces were measured and scaled to the whole: "
        + "; ".join(f"{row['case']}, {row['measured']} of {row['pieces']} ({row['piece']})" for row in result["rows"])
        + ".",
    ]


def _row(row: dict[str, Any]) -> str:
    ours, plain, fast = (_shown(row["cpu_seconds"][side]) for side in ("ours", "plain", "plain with oneDNN"))
    wanted = f"{row['goal']:g} times" if row["unit"] == "times" else f"at most {row['goal']:g} s"
    return f"| {row['case']} | {ours} | {plain} | {fast} | {row['faster']:.1f} | {wanted} | {row['apart']:.1e} |"


def _shown(one: dict[str, float]) -> str:
    """Median, and the range where there is one."""
    places = 1 if one["median"] >= 10 else 2
    median, low, high = (f"{one[name]:.{places}f}" for name in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"
