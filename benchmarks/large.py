"""DiffRec at the size of Amazon-book: an epoch and a judgement, without the matrix of users and items.

    python benchmarks/large.py                 # all 108,822 users: for a GPU; on a CPU most of an hour
    python benchmarks/large.py --users 1200    # the first so many of them, over all items
    python benchmarks/large.py --models        # also every other trainable model at a moderate size, on CUDA only

Writes large.json and large.md beside itself. Takes CUDA with bfloat16 products where there is one, else the CPU with
the threads that torch takes. Times are of the clock. The log is generated: 2.2 million interactions to learn from.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import numpy as np
import torch
from machine import processor
from row_data import generated, split_of

from noise2next.config import EvaluationConfig, Params, TrainerConfig, UniformWeights, Variant, load_params
from noise2next.data.interactions import Split
from noise2next.data.queries import Queries
from noise2next.evaluation.evaluator import Evaluator
from noise2next.evaluation.ranking import rows_within
from noise2next.models.base import Trainable, model_class, model_config
from noise2next.models.diffrec import DiffRec
from noise2next.stages.train import begin
from noise2next.training.device import choose_device, forget_peak_memory, matmul_dtype, peak_memory_mb
from noise2next.training.fit import FitReport, fit
from noise2next.training.seeding import seed_everything

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
USERS, ITEMS, ROWS = 108_822, 94_949, {"train": 2_200_000, "valid": 220_000, "test": 0}
# The authors' settings for Amazon-book.
OPTIONS = DiffRec.Config(steps=5, hidden=(1000,), noise_scale=1e-4, noise_min=5e-4, noise_max=5e-3)
TRAINER = TrainerConfig(batch_size=400, learning_rate=5e-5, epochs=1, checkpoint_seconds=1e9)
EVALUATION = EvaluationConfig()
SEEDS, EPOCHS = (1, 2, 3), 10  # of each model at a moderate size
STANDARD_ERRORS = 3  # that two means of so few seeds may be apart


# --- DiffRec ----------------------------------------------------------------------------------------------------------


def first_users(count: int) -> Split:
    """The generated split with its first `count` users alone, and all its items."""
    parts = generated(USERS, ITEMS, ROWS)
    return split_of({part: rows[rows[:, 0] < count] for part, rows in parts.items()}, count, ITEMS)


def diffrec(split: Split, device: torch.device) -> dict[str, Any]:
    """An epoch and a judgement of validation: seconds, users a second, share of the products' peak, peak memory."""
    dtype = matmul_dtype(TRAINER.precision, device)
    peak = {"training": product_rate(dtype, device), "evaluation": product_rate(torch.float32, device)}
    everyone = Queries.of(split.train, ITEMS, split.users.keys, device)
    train = everyone.select(everyone.lengths.nonzero().squeeze(1))  # as the training stage does
    evaluator = Evaluator(split, UniformWeights(), ["valid"], EVALUATION, device)
    seed_everything(1)
    model = DiffRec(OPTIONS, ITEMS).to(device)
    learned, memory = watched(lambda: learn(model, train, TRAINER, 1, device), device)
    training = {"seconds": learned.seconds, "users": len(train), "gflop": training_gflop(len(train)), "memory": memory}
    began = time.monotonic()
    judged, memory = watched(lambda: evaluator.judge(model)["valid"], device)
    users = len(judged.users)
    taken = time.monotonic() - began
    evaluation = {"seconds": taken, "users": users, "gflop": evaluation_gflop(users), "memory": memory}
    done = {"training": training, "evaluation": evaluation}
    for name, one in done.items():
        one["users_per_second"] = one["users"] / one["seconds"]
        one["peak_gflops"] = peak[name]
        one["share_of_peak"] = one["gflop"] / one["seconds"] / peak[name]
    return {
        "users": len(split.users),
        "interactions": len(split.train),
        "precision": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": learned.curve[0].loss["denoising"],
        **done,
    }


def learn(model: Trainable, train: Queries, config: TrainerConfig, seed: int, device: torch.device) -> FitReport:
    """Without judging; no checkpoint is due."""
    with tempfile.TemporaryDirectory() as folder:
        unjudged = {config.metric: 0.0}
        place = Path(folder) / "checkpoint"
        return fit(model, train, config, lambda _: unjudged, place, seed, device, lambda *_: None, progress=False)


def watched(work: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, float]]:
    """What `work` returns, and the most memory meanwhile in GB: of the process, and on a GPU what torch held there."""
    places = {"host": CPU, **({"device": device} if device.type == "cuda" else {})}
    for place in places.values():
        forget_peak_memory(place)
    done = work()
    return done, {name: peak_memory_mb(place) * 2**20 / 1e9 for name, place in places.items()}


def product_rate(dtype: torch.dtype, device: torch.device, size: int = 4096) -> float:
    """GFLOP/s of one large product, the best of five."""
    a = torch.randn(size, size, device=device).to(dtype)

    def once() -> float:
        began = time.monotonic()
        product = a @ a
        product[0, 0].item()  # waits for a GPU
        return time.monotonic() - began

    return 2 * size**3 / 1e9 / min(once() for _ in range(5))


def training_gflop(users: int) -> float:
    """Of one epoch: forward, weight gradients, and the input gradients of the last layer."""
    return 5 * 2 * ITEMS * OPTIONS.hidden[-1] * users / 1e9


def evaluation_gflop(users: int) -> float:
    """Of the reverse chain in hidden space: the two layers' product once, T steps a user, the items at the end."""
    inner = OPTIONS.hidden[-1]
    return 2 * (inner * inner * ITEMS + users * (OPTIONS.steps * inner * inner + inner * ITEMS)) / 1e9


# --- the other models -------------------------------------------------------------------------------------------------


def wandering(n_users: int = 6000, n_items: int = 3000, length: int = 40) -> Split:
    """Users who walk on from item to item within one of 30 tastes, with stray steps; the last two are validation."""
    draw = np.random.default_rng(0)
    size = n_items // 30
    steps = draw.integers(1, 4, (n_users, length)).cumsum(axis=1) + draw.integers(size, size=(n_users, 1))
    items = draw.integers(30, size=(n_users, 1)) * size + steps % size
    items = np.where(draw.random(items.shape) < 0.1, draw.integers(n_items, size=items.shape), items)
    cuts = {"train": slice(0, -2), "valid": slice(-2, None), "test": slice(0, 0)}
    parts = {}
    for part, cut in cuts.items():
        chosen = items[:, cut]
        parts[part] = np.stack([np.repeat(np.arange(n_users), chosen.shape[1]), chosen.ravel()], axis=1)
    return split_of(parts, n_users, n_items)


def models(
    params: Params,
    split: Split,
    device: torch.device,
    epochs: int = EPOCHS,
    seeds: tuple[int, ...] = SEEDS,
) -> dict[str, Any]:
    """The first variant of each trainable class, in both precisions: samples a second, and the validation metric."""
    first: dict[str, Variant] = {}
    for name, variant in params.variants.items():
        if issubclass(model_class(variant.model), Trainable):
            first.setdefault(variant.model, variant.model_copy(update={"name": name}))
    return {
        variant.name: {
            precision: over_seeds([trained(params, variant, split, device, precision, epochs, s) for s in seeds])
            for precision in ("float32", "bfloat16")
        }
        for variant in first.values()
    }


def trained(
    params: Params, variant: Variant, split: Split, device: torch.device, precision: str, epochs: int, seed: int
) -> tuple[float, float]:
    """Samples a second, without the first epoch, and the metric after the last."""
    config = params.trainer_for(variant)
    changes = {"precision": precision, "epochs": epochs, "patience": epochs, "evaluate_every": epochs}
    config = config.model_copy(update={**changes, "checkpoint_seconds": 1e9})
    clusters = getattr(model_config(variant.model, variant.options), "clusters", 1)
    labels = {"item_clusters": torch.arange(split.n_items) % clusters}
    model, train, validate = begin(params.model_copy(update={"seed": seed}), variant, split, device, labels)
    assert isinstance(model, Trainable)
    curve = learn(model, train, config, seed, device).curve[1:]
    return len(curve) * model.samples(train) / sum(one.seconds for one in curve), validate(model)[config.metric]


def over_seeds(runs: list[tuple[float, float]]) -> dict[str, Any]:
    """Rates and metrics of several seeds as one."""
    rates, metrics = zip(*runs, strict=True)
    return {
        "samples_per_second": statistics.median(rates),
        "metric": statistics.fmean(metrics),
        "deviation": statistics.stdev(metrics) if len(metrics) > 1 else math.nan,
        "seeds": len(metrics),
    }


# --- telling ----------------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
    }


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    of, on = result["diffrec"], result["machine"]
    everyone, gpu = of["users"] == USERS, on["kind"] == "cuda"
    whole = f"All {USERS:,} users" if everyone else f"The first {of['users']:,} of {USERS:,} users"
    where = on["device"] if gpu else f"{on['device']}, threads: {on['threads']}"
    dense = 4 * of["users"] * ITEMS / 1e9
    flags = ("" if everyone else f" --users {of['users']}") + ("" if "skipped" in result["models"] else " --models")
    return "\n".join(
        [
            "# DiffRec at the size of Amazon-book",
            "",
            f"`python benchmarks/large.py{flags}`: {whole}, {ITEMS:,} "
            f"items, {of['interactions']:,} generated interactions to learn from; T = {OPTIONS.steps}, hidden "
            f"{OPTIONS.hidden[0]:,}, {of['parameters'] / 1e6:.0f} million parameters, batches of {TRAINER.batch_size}, "
            f"products of training in {of['precision']}. On {where}, torch {on['torch']}, load {on['load_before']:.1f} "
            "before. Times are of the clock.",
            "",
            *([] if gpu else ["**There was no GPU: this page says nothing about one.**", ""]),
            *([] if everyone else ["**The other users were left out, and nothing here is extrapolated to them.**", ""]),
            "| | seconds | users a second | GFLOP/s of the products | share of a 4096³ product's rate | peak memory |",
            "|---|---|---|---|---|---|",
            *(row_told(name, of[part]) for part, name in (("training", "epoch"), ("evaluation", "validation judged"))),
            "",
            f"The matrix of these users and all items would take {dense:,.1f} GB. It is never made: training holds "
            f"{TRAINER.batch_size} rows of it at a time, judging "
            f"{rows_within(EVALUATION.memory_mb, ITEMS)}, whatever the number of users, and a test of DiffRec watches "
            f"that no tensor is larger. Of the training's peak, the weights, their gradients and the two moments of "
            f"the optimiser are {of['parameters'] * 16 / 1e9:.1f} GB. The peak of the process counts the libraries "
            "too.",
            "",
            *models_told(result["models"]),
        ]
    )


def row_told(name: str, one: dict[str, Any]) -> str:
    """Of the table."""
    memory = ", ".join(f"{value:.2f} GB ({place})" for place, value in one["memory"].items())
    rate = one["gflop"] / one["seconds"]
    return (
        f"| {name}, {one['users']:,} users | {one['seconds']:.1f} | {one['users_per_second']:,.0f} | {rate:,.0f} | "
        f"{one['share_of_peak']:.2f} of {one['peak_gflops']:,.0f} | {memory} |"
    )


def models_told(found: dict[str, Any]) -> list[str]:
    """The other models, or why they are not here."""
    if "skipped" in found:
        return [f"The other models at a moderate size (`--models`) were not run: {found['skipped']}.", ""]
    rows = []
    for name, sides in found.items():
        exact, fast = sides["float32"], sides["bfloat16"]
        apart = fast["metric"] - exact["metric"]
        error = math.sqrt((exact["deviation"] ** 2 + fast["deviation"] ** 2) / exact["seeds"])
        same = "yes" if abs(apart) <= STANDARD_ERRORS * error else "**no**"
        rows.append(
            f"| {name} | {exact['samples_per_second']:,.0f} | {fast['samples_per_second']:,.0f} | "
            f"{exact['metric']:.4f} ± {exact['deviation']:.4f} | {fast['metric']:.4f} ± {fast['deviation']:.4f} | "
            f"{apart:+.4f} | {same} |"
        )
    return [
        "## The other models",
        "",
        "The first variant of each trainable model in `params.yaml` on a generated log of 6,000 users and 3,000 items, "
        f"{EPOCHS} epochs, {len(SEEDS)} seeds; the metric that chooses the best epoch, on validation. The means of "
        f"both precisions count as the same within {STANDARD_ERRORS} standard errors.",
        "",
        "| variant | samples/s float32 | bfloat16 | metric float32 | bfloat16 | difference | the same |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> int:
    """Measure, write, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--users", type=int, default=USERS, help="take the first so many users only")
    arguments.add_argument("--models", action="store_true", help="also the other trainable models, on CUDA")
    chosen = arguments.parse_args()
    if not 0 < chosen.users <= USERS:
        arguments.error(f"--users: from 1 to {USERS}")
    device = choose_device("auto")
    result: dict[str, Any] = {"machine": machine(device), "diffrec": diffrec(first_users(chosen.users), device)}
    if not chosen.models:
        result["models"] = {"skipped": "they were not asked for"}
    elif device.type != "cuda":
        result["models"] = {"skipped": "there is no CUDA device here"}
    else:
        result["models"] = models(load_params(HERE.parent / "params.yaml"), wandering(), device)
    (HERE / "large.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "large.md").write_text(tell(result))
    print(tell(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
