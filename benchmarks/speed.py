"""DiffRec's speed beside a plain implementation of the same mathematics, interleaved in one run, one thread.

    python benchmarks/speed.py                 # about three minutes; writes speed.json and speed.md beside itself
    python benchmarks/speed.py --whole         # also trains both to their early stop: ten minutes more

Times are CPU seconds of this process, so other work on the machine disturbs them little. Data: ML-1M clean of
DiffRec's authors below NOISE2NEXT_SHARED (default ../shared), else a generated log of the same size.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from plain_diffrec import PlainDiffRec, PlainNetwork, evaluate, loader, train_epoch

from noise2next.config import EvaluationConfig, OfficialSplit, TrainerConfig, UniformWeights
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.evaluation.evaluator import Evaluator
from noise2next.models.diffrec import DiffRec
from noise2next.training.device import matmul_dtype, peak_memory_mb, use_fast_float32
from noise2next.training.fit import fit
from noise2next.training.seeding import seed_everything

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
CUTOFFS = (10, 20, 50, 100)
OPTIONS = DiffRec.Config(steps=40, hidden=(200, 600), noise_scale=0.005, noise_min=0.005, noise_max=0.01)
TRAINER = TrainerConfig(batch_size=400, learning_rate=1e-3, evaluate_every=5, patience=20, checkpoint_seconds=1e9)
EPOCHS = 28  # to the early stop of seed 1: best epoch 8, patience 20
USERS, ITEMS, ROWS = 5949, 2810, {"train": 403_277, "valid": 110_722, "test": 57_532}


# --- data -------------------------------------------------------------------------------------------------------------


def load() -> tuple[str, Split]:
    """The official split, or one of its size."""
    shared = Path(os.environ.get("NOISE2NEXT_SHARED", HERE.parent.parent / "shared"))
    archive = shared / "data" / "diffrec_official" / "ml-1m_clean.zip"
    if not archive.is_file():
        return "generated, of the size of ml-1m_clean", split_of(generated())
    with zipfile.ZipFile(archive) as files:
        parts = {
            part: np.load(io.BytesIO(files.read(f"ml-1m_clean/{part}_list.npy")), allow_pickle=False) for part in ROWS
        }
    return "ml-1m_clean", split_of(parts)


def generated() -> dict[str, np.ndarray]:
    """Distinct pairs (user, item), long-tailed on both sides, dealt to the three parts."""
    draw = np.random.default_rng(0)
    activity, popularity = draw.lognormal(0, 1, USERS), 1 / np.arange(10, ITEMS + 10)
    pairs = np.zeros(0, dtype=np.int64)
    while len(pairs) < sum(ROWS.values()):
        users = draw.choice(USERS, 400_000, p=activity / activity.sum())
        pairs = np.unique(
            np.concatenate([pairs, users * ITEMS + draw.choice(ITEMS, 400_000, p=popularity / popularity.sum())])
        )
    pairs = draw.permutation(pairs)[: sum(ROWS.values())]
    cuts = np.cumsum(list(ROWS.values()))[:-1]
    return {
        part: np.stack(np.divmod(np.sort(chosen), ITEMS), axis=1)
        for part, chosen in zip(ROWS, np.split(pairs, cuts), strict=True)
    }


def split_of(parts: dict[str, np.ndarray]) -> Split:
    """Rows (user, item) of each part, sorted by user."""
    made = {part: Interactions.of(rows[:, 0], rows[:, 1], None, USERS) for part, rows in parts.items()}
    users, items = (Vocabulary(tuple(map(str, range(size)))) for size in (USERS, ITEMS))
    return Split(OfficialSplit(history="train"), users, items, made["train"], made["valid"], made["test"], False)


def dense(interactions: Interactions) -> np.ndarray:
    """[U, I]"""
    rows = np.zeros((USERS, ITEMS), dtype=np.float32)
    rows[interactions.users, interactions.items] = 1
    return rows


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

    def fit(self, epochs: int, judged: bool) -> Any:
        """`judged`: with validation; else a constant stands for it, so that training is measured alone."""
        changes = {"epochs": epochs, "precision": self.precision}
        config = TRAINER.model_copy(update=changes if judged else {**changes, "evaluate_every": epochs})
        with tempfile.TemporaryDirectory() as folder:
            return fit(
                self.model,
                self.train,
                config,
                (lambda model: self.validation.judge(model)["valid"].means())
                if judged
                else (lambda _: {"recall@20": 0.0}),
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
        self.rows = dense(split.train)
        self.seen = {"valid": self.rows > 0, "test": (self.rows + dense(split.valid)) > 0}
        self.truth = {
            part: [right.tolist() for right in np.split(truth.items, truth.indptr[1:-1])]
            for part, truth in (("valid", split.valid), ("test", split.test))
        }
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
        train_epoch(self.model, loader(self.rows, 400, shuffle=True), self.optimiser)

    def evaluate(self, part: str) -> dict[str, float]:
        batches = loader(self.rows, 400, shuffle=False)
        return evaluate(self.model, batches, self.seen[part], self.truth[part], CUTOFFS)

    def fit(self) -> int:
        """To the early stop, both parts judged every five epochs as in the authors' loop; returns the epochs."""
        best, best_epoch, epoch = -1.0, 0, 0
        while epoch - best_epoch < TRAINER.patience or epoch % TRAINER.evaluate_every:
            self.epoch()
            epoch += 1
            if epoch % TRAINER.evaluate_every == 0:
                value, _ = self.evaluate("valid")["recall@20"], self.evaluate("test")
                if value > best:
                    best, best_epoch = value, epoch
        return epoch

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


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def gflops(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """The rate of one large product, the best of three."""
    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / 1e9 / min(seconds(lambda: a @ a) for _ in range(3))


def training_gflop() -> float:
    """Multiplications and additions of one epoch: forward, weight gradients, and input gradients but for x_t."""
    widths = [*reversed(OPTIONS.hidden), *OPTIONS.hidden[1:]]
    first, inner = ITEMS * widths[0], sum(a * b for a, b in pairwise(widths)) + widths[-1] * ITEMS
    return 2 * (2 * first + 3 * inner) * USERS / 1e9


def default_products() -> None:
    """torch's own choice of kernel."""
    torch.set_float32_matmul_precision("highest")


def fast_products() -> None:
    """The kernel that the package chooses, after its check."""
    use_fast_float32.cache_clear()
    use_fast_float32()


def peak_mb(side: str) -> float:
    """Peak resident memory of two epochs and a validation in a process of their own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", side], capture_output=True, text=True, check=True, timeout=900
    )
    return float(done.stdout.split()[-1])


def memory_of(side: str) -> None:
    """Do the work of `peak_mb` in this process and print its peak."""
    _, split = load()
    if side == "plain":
        plain = Plain(split)
        plain.epoch()
        plain.epoch()
        plain.evaluate("valid")
    else:
        use_fast_float32()
        ours = Ours(split, "float32")
        ours.fit(5, judged=side == "ours")
    print(peak_memory_mb(CPU))


def measure(rounds: int, whole: bool) -> dict[str, Any]:
    """Everything, each round taking every side in turn."""
    name, split = load()
    has_bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    sides = {"float32": Ours(split, "float32")} | ({"bfloat16": Ours(split, "bfloat16")} if has_bfloat16 else {})
    plain, times = Plain(split), dict[str, list[float]]()

    def take(label: str, value: float) -> None:
        times.setdefault(label, []).append(value)
        print(f"{label:42s} {value:8.2f}", flush=True)

    for one in sides.values():
        one.fit(1, judged=False)
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
            take(f"epoch, ours {precision}", seconds(partial(one.fit, 2, judged=False)) / 2)
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
        "peak_mb": {side: peak_mb(side) for side in ("ours", "ours without validation", "plain")},
    }
    if whole:
        result["whole"] = whole_training(split)
    return result


def whole_training(split: Split) -> dict[str, Any]:
    """Both to their early stop, judged every five epochs; ours ends with one evaluation of both parts."""
    fast_products()
    ours, plain, epochs = Ours(split, "float32"), Plain(split), dict[str, int]()

    def mine() -> None:
        epochs["ours"] = ours.fit(1000, judged=True).epochs
        ours.evaluate()

    def its() -> None:
        epochs["plain"] = plain.fit()

    taken = {"ours": seconds(mine)}
    default_products()
    taken["plain"] = seconds(its)
    return {"cpu_seconds": taken, "epochs": epochs}


def processor() -> str:
    """What the machine calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


# --- telling ----------------------------------------------------------------------------------------------------------


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    taken = result["cpu_seconds"]
    median = {label: one["median"] for label, one in taken.items()}
    kernels = {
        "plain": "torch's default",
        "plain with oneDNN": "oneDNN",
        "ours float32": "oneDNN",
        "ours bfloat16": "bfloat16",
    }
    lines = [
        "# Speed of DiffRec",
        "",
        f"`python benchmarks/speed.py` on {result['data']}: T = 40, hidden 200 and 600, batches of 400, one thread of "
        f"{result['machine']['processor']}, torch {result['machine']['torch']}. CPU seconds, median of "
        f"{result['rounds']} interleaved rounds (lowest to highest). The floor is what the matrix products of an epoch "
        "take at the rate measured for 2048 x 2048 matrices in the same run. oneDNN float32 is as exact as the default "
        "(checked at start). The last column scales by the measured rate.",
        "",
        "| training epoch | CPU s | times the plain form | GFLOP/s of the products | over the floor | at 200 GFLOP/s |",
        "|---|---|---|---|---|---|",
    ]
    for side, kernel in kernels.items():
        if (label := f"epoch, {side}") in taken:
            rate = median[f"GFLOP/s, {kernel}"]
            floor = result["training_gflop"] / rate
            scaled = f"{median[label] * rate / 200:.2f} s" if "float32" in side else ""
            lines.append(
                f"| {side} | {shown(taken[label])} | {median['epoch, plain'] / median[label]:.1f} | {rate:.0f} | "
                f"{median[label] / floor:.2f} | {scaled} |"
            )
    both = median["evaluation of valid, plain with oneDNN"] + median["evaluation of test, plain with oneDNN"]
    slow, fast = 2 * median["evaluation of valid, plain"], median["evaluation of valid and test, ours"]
    rate = median["GFLOP/s, oneDNN"]
    lines += [
        "",
        "| evaluation of valid and test | CPU s | times the plain form | at 200 GFLOP/s |",
        "|---|---|---|---|",
        f"| plain (valid measured, test takes the same) | {slow:.1f} | 1.0 | |",
        f"| plain with oneDNN | {both:.1f} | {slow / both:.1f} | |",
        f"| ours, one pass for both, float32 | {shown(taken['evaluation of valid and test, ours'])} | "
        f"{slow / fast:.1f} | {fast * rate / 200:.2f} s |",
        "",
        f"On the same weights the metrics of both sides are at most {result['metrics_apart']:.1e} apart "
        f"(Recall and NDCG at {', '.join(map(str, CUTOFFS))}, valid and test).",
        "",
        "| peak memory of the process | MB |",
        "|---|---|",
        *(f"| {side} | {value:.0f} |" for side, value in result["peak_mb"].items()),
        "",
    ]
    lines += [
        f"A whole training, put together from these medians: {EPOCHS} epochs to the early stop, CPU seconds. As in "
        "the authors' loop the plain form judges both parts each time; ours judges validation, and both at the end.",
        "",
        "| judged | plain | plain with oneDNN | ours float32 | times plain | ours bfloat16 | times plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for often, times in (("after every epoch (the package's default)", EPOCHS), ("every fifth epoch", EPOCHS // 5 + 1)):
        its = EPOCHS * median["epoch, plain"] + times * slow
        quick = EPOCHS * median["epoch, plain with oneDNN"] + times * both
        cells = [often, f"{its:.0f}", f"{quick:.0f}"]
        for side in ("ours float32", "ours bfloat16"):
            judging = times * median["evaluation of valid, ours"] + fast
            mine = EPOCHS * median.get(f"epoch, {side}", float("nan")) + judging
            cells += [f"{mine:.0f}", f"**{its / mine:.1f}**"]
        lines.append(f"| {' | '.join(cells)} |")
    if "whole" in result:
        taken, epochs = result["whole"]["cpu_seconds"], result["whole"]["epochs"]
        lines += [
            "",
            f"Trained to the early stop in this run, judged every fifth epoch: plain {taken['plain']:.0f} s "
            f"({epochs['plain']} epochs), ours {taken['ours']:.0f} s ({epochs['ours']} epochs), "
            f"**{taken['plain'] / taken['ours']:.1f} times**.",
        ]
    return "\n".join(lines) + "\n"


def shown(one: dict[str, float]) -> str:
    """Median and range."""
    return f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def main() -> None:
    """Measure, write, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--whole", action="store_true", help="also train both to their early stop")
    arguments.add_argument("--memory-of", choices=["ours", "ours without validation", "plain"], help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.memory_of:
        memory_of(chosen.memory_of)
        return
    result = measure(chosen.rounds, chosen.whole)
    (HERE / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "speed.md").write_text(tell(result))
    print("\n" + tell(result))


if __name__ == "__main__":
    main()
