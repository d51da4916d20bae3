"""DiffRec's speed beside a plain implementation of the same mathematics, interleaved in one run, one thread.

    python benchmarks/speed.py                 # about five minutes; writes speed.json and speed.md beside itself
    python benchmarks/speed.py --whole         # also trains the plain form to the end: about eight minutes more

Without --whole the plain form's whole training is put together from its measured epoch and evaluation, and the page
says so. Times are CPU seconds of this process, so other work on the machine disturbs them little; memory bandwidth and
clock it does share. Exit code 1 where a goal is missed. Data: ML-1M clean of DiffRec's authors below NOISE2NEXT_SHARED
(default ../shared), else a generated log of the same size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import row_data
import torch
from machine import processor
from plain_diffrec import DenseSplit, PlainDiffRec, PlainNetwork, loader, train_epoch
from row_data import ITEMS, USERS
from side_by_side import default_products, fast_products, seconds

from noise2next.config import EvaluationConfig, TrainerConfig, UniformWeights
from noise2next.data.interactions import Split
from noise2next.data.queries import Queries
from noise2next.evaluation.evaluator import Evaluator
from noise2next.models.diffrec import DiffRec
from noise2next.training.device import matmul_dtype, peak_memory_mb, use_fast_float32
from noise2next.training.fit import FitReport, fit
from noise2next.training.seeding import seed_everything

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
CUTOFFS = (10, 20, 50, 100)
OPTIONS = DiffRec.Config(steps=40, hidden=(200, 600), noise_scale=0.005, noise_min=0.005, noise_max=0.01)
TRAINER = TrainerConfig(batch_size=400, learning_rate=1e-3, evaluate_every=5, patience=20, checkpoint_seconds=1e9)
FULL_RATE = 200  # GFLOP/s in float32 of the core that the goals speak of
EPOCH, EVALUATION, OVER_FLOOR, WHOLE, MEMORY_GB = {"float32": 0.85, "bfloat16": 0.6}, 3.0, 1.7, 6.0, 0.6  # the goals


# --- the two sides ----------------------------------------------------------------------------------------------------


class Ours:
    """The package as the training stage uses it; no checkpoint is due, no tracking."""

    def __init__(self, split: Split, precision: str) -> None:
        self.precision = precision
        self.train = Queries.of(split.train, ITEMS, split.users.keys)
        self.validation = Evaluator(split, UniformWeights(), ["valid"], EvaluationConfig(cutoffs=CUTOFFS), CPU)
        self.both = Evaluator(split, UniformWeights(), ["valid", "test"], EvaluationConfig(cutoffs=CUTOFFS), CPU)
        seed_everything(1)
        self.model = DiffRec(OPTIONS, ITEMS)

    def fit(self, epochs: int, evaluator: Evaluator | None = None, stop: bool = True) -> FitReport:
        """At most `epochs`, exactly those without `stop`; without an evaluator nothing is judged."""
        changes = {"epochs": epochs, "precision": self.precision}
        if evaluator is None:
            changes["evaluate_every"] = epochs
        if not stop:
            changes["patience"] = epochs
        with tempfile.TemporaryDirectory() as folder:
            return fit(
                self.model,
                self.train,
                TRAINER.model_copy(update=changes),
                (lambda _: {"recall@20": 0.0})
                if evaluator is None
                else (lambda m: evaluator.judge(m)["valid"].means()),
                Path(folder) / "checkpoint",
                1,
                CPU,
                lambda *_: None,
                progress=False,
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        self.model.eval()
        return {part: judgement.means() for part, judgement in self.both.judge(self.model).items()}


class Plain:
    """The peer."""

    def __init__(self, split: Split) -> None:
        self.data = DenseSplit(split)
        torch.manual_seed(1)
        self.model = PlainDiffRec(
            PlainNetwork(ITEMS, OPTIONS.hidden),
            OPTIONS.steps,
            OPTIONS.noise_scale,
            OPTIONS.noise_min,
            OPTIONS.noise_max,
        )
        self.optimiser = torch.optim.AdamW(self.model.network.parameters(), lr=1e-3, weight_decay=0.0)

    def epoch(self) -> None:
        train_epoch(self.model, loader(self.data.rows, 400, shuffle=True), self.optimiser)

    def evaluate(self, part: str) -> dict[str, float]:
        return self.data.evaluate(self.model, part, 400, CUTOFFS)

    def fit(self, epochs: int) -> None:
        """So many epochs, both parts judged every fifth, as in the authors' loop."""
        for epoch in range(1, epochs + 1):
            self.epoch()
            if epoch % TRAINER.evaluate_every == 0:
                self.evaluate("valid")
                self.evaluate("test")

    def take_weights(self, model: DiffRec) -> None:
        net, own = model.denoiser, self.model.network
        first = torch.cat([net.from_items.weight, net.from_step.weight], dim=1)
        sources = [(net.embedding.weight, net.embedding.bias), (first, net.from_step.bias)]
        sources += [(layer.weight, layer.bias) for layer in (*net.middle, net.decode)]
        with torch.no_grad():
            for layer, (weight, bias) in zip((own.embedding, *own.layers), sources, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)


# --- measuring --------------------------------------------------------------------------------------------------------


def gflops(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """The rate of one large product, the best of three."""
    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / 1e9 / min(seconds(lambda: a @ a) for _ in range(3))


def training_gflop() -> float:
    """Multiplications and additions of one epoch: forward, weight gradients, and input gradients but for x_t."""
    first, inner = ITEMS * OPTIONS.hidden[-1], inner_weights() + OPTIONS.hidden[-1] * ITEMS
    return 2 * (2 * first + 3 * inner) * USERS / 1e9


def evaluation_gflop() -> float:
    """Of one pass over all users with the reverse chain in hidden space: T steps there, the items at the end."""
    last = OPTIONS.hidden[-1]
    chain = OPTIONS.steps * (inner_weights() + last * last)
    return 2 * (USERS * (chain + last * ITEMS) + last * last * ITEMS) / 1e9


def inner_weights() -> int:
    """Of the layers between the first and the last."""
    widths = [*reversed(OPTIONS.hidden), *OPTIONS.hidden[1:]]
    return sum(a * b for a, b in pairwise(widths))


def peak_mb(side: str) -> float:
    """Peak resident memory of two epochs and a validation in a process of their own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", side], capture_output=True, text=True, check=True, timeout=900
    )
    return float(done.stdout.split()[-1])


def memory_of(side: str) -> None:
    """Do the work of `peak_mb` in this process and print its peak."""
    _, split = row_data.load()
    if side == "plain":
        plain = Plain(split)
        plain.epoch()
        plain.epoch()
        plain.evaluate("valid")
    else:
        use_fast_float32()
        ours = Ours(split, "float32")
        ours.fit(5, ours.validation if side == "ours" else None)
    print(peak_memory_mb(CPU))


def measure(rounds: int, whole: bool) -> dict[str, Any]:
    """Everything, each round taking every side in turn."""
    name, split = row_data.load()
    has_bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    sides = {"float32": Ours(split, "float32")} | ({"bfloat16": Ours(split, "bfloat16")} if has_bfloat16 else {})
    plain, times = Plain(split), dict[str, list[float]]()

    def take(label: str, value: float) -> None:
        times.setdefault(label, []).append(value)
        print(f"{label:42s} {value:8.2f}", flush=True)

    for one in sides.values():
        one.fit(1)
    for _ in range(rounds):
        default_products()
        take("GFLOP/s, torch's default", gflops())
        take("epoch, plain", seconds(plain.epoch))
        fast_products()
        take("GFLOP/s, oneDNN", gflops())
        take("epoch, plain with oneDNN", seconds(plain.epoch))
        for precision, one in sides.items():
            if matmul_dtype(one.precision, CPU) == torch.bfloat16:
                take("GFLOP/s, bfloat16", gflops(torch.bfloat16))
            take(f"epoch, ours {precision}", seconds(partial(one.fit, 2)) / 2)
        take("evaluation of valid and test, ours", seconds(sides["float32"].evaluate))
        take("evaluation of valid, ours", seconds(lambda: sides["float32"].validation.judge(sides["float32"].model)))
    plain.take_weights(sides["float32"].model)
    found: dict[str, dict[str, float]] = {}
    for part in ("valid", "test"):
        began = time.process_time()
        found[part] = plain.evaluate(part)
        take(f"evaluation of {part}, plain with oneDNN", time.process_time() - began)
    ours = sides["float32"].evaluate()
    apart = max(abs(found[part][metric] - ours[part][metric]) for part in found for metric in found[part])
    default_products()
    take("evaluation of valid, plain", seconds(lambda: plain.evaluate("valid")))
    result = {
        "data": name,
        "machine": {"processor": processor(), "threads": 1, "torch": torch.__version__},
        "rounds": rounds,
        "cpu_seconds": {
            label: {"median": statistics.median(all_), "low": min(all_), "high": max(all_)}
            for label, all_ in times.items()
        },
        "metrics_apart": apart,
        "training_gflop": training_gflop(),
        "evaluation_gflop": evaluation_gflop(),
        "peak_mb": {side: peak_mb(side) for side in ("ours", "ours without validation", "plain")},
    }
    median = {label: one["median"] for label, one in result["cpu_seconds"].items()}
    result["whole"] = whole_training(split, list(sides), median, whole)
    result["goals"] = goals(result, median)
    return result


def whole_training(split: Split, precisions: list[str], median: dict[str, float], plain_too: bool) -> dict[str, Any]:
    """CPU seconds to the early stop of ours in float32; the other sides train as many epochs.

    Every side judges both parts every fifth epoch, as the authors do.
    """
    fast_products()
    ours, done = Ours(split, "float32"), list[FitReport]()
    taken = {"ours float32": seconds(lambda: done.append(ours.fit(1000, ours.both)))}
    epochs = done[0].epochs
    for precision in precisions[1:]:
        other = Ours(split, precision)
        taken[f"ours {precision}"] = seconds(partial(other.fit, epochs, other.both, stop=False))
    judged = epochs // TRAINER.evaluate_every
    both = median["evaluation of valid, plain with oneDNN"] + median["evaluation of test, plain with oneDNN"]
    taken["plain with oneDNN"] = epochs * median["epoch, plain with oneDNN"] + judged * both
    if plain_too:
        default_products()
        taken["plain"] = seconds(partial(Plain(split).fit, epochs))
    else:
        taken["plain"] = epochs * median["epoch, plain"] + judged * 2 * median["evaluation of valid, plain"]
    return {
        "cpu_seconds": taken,
        "epochs": epochs,
        "best_epoch": done[0].best_epoch,
        "judged": judged,
        "plain_measured": plain_too,
    }


def goals(result: dict[str, Any], median: dict[str, float]) -> list[dict[str, Any]]:
    """What must hold: name, wanted, found, as it was measured (None: found is what was measured), reached."""
    told: list[dict[str, Any]] = []

    def goal(name: str, wanted: float, found: float, unit: str, measured: float | None = None) -> None:
        reached = found >= wanted if unit == "times" else found <= wanted
        told.append(
            {"goal": name, "wanted": wanted, "found": found, "unit": unit, "measured": measured, "reached": reached}
        )

    core = median["GFLOP/s, oneDNN"]
    epochs = {"float32": core, "bfloat16": median.get("GFLOP/s, bfloat16")}
    for precision, rate in epochs.items():
        if rate is not None:
            taken = median[f"epoch, ours {precision}"]
            floor = result["training_gflop"] / rate
            goal(f"epoch, {precision}", EPOCH[precision], at_full_rate(taken, floor, core), "s", taken)
            goal(f"epoch, {precision}, over the floor of its products", OVER_FLOOR, taken / floor, "times the floor")
    taken = median["evaluation of valid and test, ours"]
    floor = result["evaluation_gflop"] / core
    goal("evaluation of valid and test", EVALUATION, at_full_rate(taken, floor, core), "s", taken)
    whole = result["whole"]["cpu_seconds"]
    side = "the plain form" if result["whole"]["plain_measured"] else "the plain form (composed, see below)"
    goal(
        f"whole training to the early stop beside {side}, float32",
        WHOLE,
        whole["plain"] / whole["ours float32"],
        "times",
    )
    goal("peak memory of training itself", MEMORY_GB, gb(result["peak_mb"]["ours without validation"]), "GB")
    return told


def at_full_rate(taken: float, floor: float, core: float) -> float:
    """`taken` on a core of FULL_RATE instead of `core` GFLOP/s: `floor`, its products' share, alone shrinks."""
    return taken - floor + floor * core / FULL_RATE


def gb(mebibytes: float) -> float:
    """10^9 bytes."""
    return mebibytes * 2**20 / 1e9


# --- telling ----------------------------------------------------------------------------------------------------------


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, missed = result["machine"], [one["goal"] for one in result["goals"] if not one["reached"]]
    taken, flag = result["cpu_seconds"], " --whole" if result["whole"]["plain_measured"] else ""
    lines = [
        "# Speed of DiffRec",
        "",
        f"`python benchmarks/speed.py{flag}` on {result['data']}: T = 40, hidden 200 and 600, batches of 400, one "
        f"thread of {machine['processor']}, torch {machine['torch']}. CPU seconds, median of {result['rounds']} "
        "interleaved rounds (lowest to highest).",
        "",
        f"**Missed: {'; '.join(missed)}.**" if missed else "All goals are reached.",
        "",
        "| goal | wanted | reached | found | as measured |",
        "|---|---|---|---|---|",
        *(goal_row(one) for one in result["goals"]),
        "",
        f"The goals in seconds are for a core that multiplies float32 matrices at {FULL_RATE} GFLOP/s; this one did "
        f"{taken['GFLOP/s, oneDNN']['median']:.0f}. Only the products are scaled to it: their share is their floating "
        f"point operations ({result['training_gflop']:.0f} GFLOP an epoch, {result['evaluation_gflop']:.0f} an "
        "evaluation) over the rate measured for 2048 x 2048 matrices in the same run, and that share shrinks as the "
        "float32 rates do (for bfloat16 too: its rate is taken to grow alike). Noise, dropout, optimiser, sorting and "
        "all else stay as measured, and so does what the products of these narrower shapes take beyond the share. The "
        "floor is that share. "
        f"oneDNN's float32 is as exact as torch's default (checked at start). The memory goal is for training itself, "
        f"without validation ({gb(result['peak_mb']['ours without validation']):.2f} GB); with validation "
        f"{gb(result['peak_mb']['ours']):.2f} GB.",
    ]
    return "\n".join([*lines, *epochs_told(result), *evaluations_told(result), *whole_told(result)]) + "\n"


def goal_row(one: dict[str, Any]) -> str:
    """Of the table of goals."""
    sign = "at least" if one["unit"] == "times" else "at most"
    measured = "the same" if one["measured"] is None else f"{one['measured']:.2f} s"
    return (
        f"| {one['goal']} | {sign} {one['wanted']:g} {one['unit']} | {'yes' if one['reached'] else '**missed**'} | "
        f"{one['found']:.2f} {one['unit']} | {measured} |"
    )


def epochs_told(result: dict[str, Any]) -> list[str]:
    """The training epoch of every side."""
    taken = result["cpu_seconds"]
    median = {label: one["median"] for label, one in taken.items()}
    kernels = {
        "plain": "torch's default",
        "plain with oneDNN": "oneDNN",
        "ours float32": "oneDNN",
        "ours bfloat16": "bfloat16",
    }
    rows = []
    for side, kernel in kernels.items():
        if (label := f"epoch, {side}") in taken:
            rate = median[f"GFLOP/s, {kernel}"]
            floor = result["training_gflop"] / rate
            rows.append(
                f"| {side} | {shown(taken[label])} | {median['epoch, plain'] / median[label]:.1f} | {rate:.0f} | "
                f"{median[label] / floor:.2f} |"
            )
    return [
        "",
        "| training epoch | CPU s | times the plain form | GFLOP/s of the products | over the floor |",
        "|---|---|---|---|---|",
        *rows,
    ]


def evaluations_told(result: dict[str, Any]) -> list[str]:
    """The evaluation and the memory of every side."""
    taken = result["cpu_seconds"]
    median = {label: one["median"] for label, one in taken.items()}
    both = median["evaluation of valid, plain with oneDNN"] + median["evaluation of test, plain with oneDNN"]
    slow, fast = 2 * median["evaluation of valid, plain"], median["evaluation of valid and test, ours"]
    return [
        "",
        "| evaluation of valid and test | CPU s | times the plain form |",
        "|---|---|---|",
        f"| plain (valid measured once, test takes the same) | {slow:.1f} | 1.0 |",
        f"| plain with oneDNN (measured once) | {both:.1f} | {slow / both:.1f} |",
        f"| ours, one pass for both, float32 | {shown(taken['evaluation of valid and test, ours'])} | "
        f"{slow / fast:.1f} |",
        "",
        f"On the same weights the metrics of both sides are at most {result['metrics_apart']:.1e} apart "
        f"(Recall and NDCG at {', '.join(map(str, CUTOFFS))}, valid and test).",
        "",
        "| peak memory of the process | GB |",
        "|---|---|",
        *(f"| {side} | {gb(value):.2f} |" for side, value in result["peak_mb"].items()),
    ]


def whole_told(result: dict[str, Any]) -> list[str]:
    """A training from the first epoch to the early stop."""
    whole = result["whole"]
    taken = whole["cpu_seconds"]
    composed = {"plain with oneDNN"} if whole["plain_measured"] else {"plain", "plain with oneDNN"}
    return [
        "",
        f"A whole training by the authors' protocol: both parts are judged every fifth epoch, and training stops when "
        f"the best judged epoch is {TRAINER.patience} epochs old. Ours in float32 stopped after {whole['epochs']} "
        f"epochs (best: {whole['best_epoch']}), judged {whole['judged']} times; so as not to compare the luck of two "
        "seeds, every other side trains as many epochs and judges as often. (The authors' loop looks before it trains, "
        "so it would leave out the last epoch and its judgement.)",
        "",
        "| whole training | CPU s | times the plain form |",
        "|---|---|---|",
        *(
            f"| {side} ({'composed: epochs and evaluations times their seconds above' if side in composed else 'run'}) "
            f"| {value:.0f} | {taken['plain'] / value:.1f} |"
            for side, value in sorted(taken.items(), key=lambda pair: -pair[1])
        ),
    ]


def shown(one: dict[str, float]) -> str:
    """Median and range."""
    return f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def main() -> int:
    """Measure, write, print. Exit code 1 where a goal is missed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--whole", action="store_true", help="also train the plain form to the end")
    arguments.add_argument("--memory-of", choices=["ours", "ours without validation", "plain"], help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.memory_of:
        memory_of(chosen.memory_of)
        return 0
    result = measure(chosen.rounds, chosen.whole)
    (HERE / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "speed.md").write_text(tell(result))
    print("\n" + tell(result))
    return int(not all(one["reached"] for one in result["goals"]))


if __name__ == "__main__":
    sys.exit(main())
