"""How often the gate errs: equal models, a planted gain, a planted collapse; its clock on a busy machine; rollbacks.

    python benchmarks/gate.py [--trials 2000] [--clocks]        writes benchmarks/gate.json and benchmarks/gate.md

Real models on ml-1m_clean (or on generated data of its size, where it is not there): DiffRec under four seeds, EASE,
and popularity. What is asked of users is asked of all trials at once, with the gate's own questions and bounds; of each
experiment some trials are put to `decide` itself, and the program stops where that says otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import latency
import numpy as np
import torch
from machine import processor
from numpy.typing import NDArray
from row_data import load
from scipy.stats import binomtest, norm

from noise2next.config import Variant
from noise2next.data.interactions import Split
from noise2next.evaluation import lists
from noise2next.evaluation.evaluator import Evaluator
from noise2next.evaluation.metrics import Truth, accuracy, hits
from noise2next.models.base import Recommender
from noise2next.registry.latency import side_by_side
from noise2next.registry.packaging import GOLDEN_K, Package
from noise2next.registry.promotion import (
    Contender,
    Judged,
    Occasion,
    Policy,
    Question,
    Version,
    both_bounds,
    decide,
    lower_bounds,
    questions,
)
from noise2next.stages.tables import Table, load_table
from noise2next.stages.train import begin
from noise2next.training.device import choose_device
from noise2next.training.fit import fit
from noise2next.workspace import Workspace, read_json, write_json

HERE = Path(__file__).parent
POLICY = Workspace(HERE.parent, "").promotion_policy
TABLE = "diffrec-ml1m-clean"
SEEDS, EPOCHS = (1, 2, 3, 4), 10  # after ten epochs validation has all but levelled off
METRICS = ("recall@20", "ndcg@20", "mrr@20", "ndcg@100")
CUTOFF, DEEP = 20, 100
USERS = 6000
PLANTED = 0.02
DECIDES = {"recall@20": "ndcg@20", "ndcg@20": "ndcg@20", "ndcg@100": "ndcg@100"}  # the gate's metric: what is planted
CHANGED = (0.0, 0.25, 0.5, 1.0)  # of the users: whose list is another seed's
AGAIN = 3  # trials of an experiment that `decide` itself is asked about
COLLAPSES = 200
OCCASION = Occasion(dataset="ml-1m_clean", data_version="", split="official, history train", by="benchmark", when="")
BURNERS = 4  # busy processes for each core
ROLLBACKS = 5

Values = dict[str, NDArray[np.float64]]  # a metric's [M] or, for many trials, [M, trials]


@dataclass(frozen=True)
class Model:
    """A trained model on the test part: top [M, 100], hit [M, 100], metrics [M], properties of all lists together."""

    name: str
    top: NDArray[np.int32]
    hit: NDArray[np.bool_]
    values: Values
    lists: dict[str, float]


@dataclass(frozen=True)
class World:
    """The judged users [M]: lengths of their histories, what they took; popularity [I]."""

    users: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    popularity: NDArray[np.int64]
    trained_users: int
    truth: Truth


# --- models -----------------------------------------------------------------------------------------------------------


def trained(table: Table, split: Split, variant: Variant, seed: int) -> Recommender:
    """The table's row `variant` under `seed`, after ten epochs where it learns in epochs."""
    params, device = table.params(seed), choose_device("cpu")
    config = params.trainer_for(variant).model_copy(update={"epochs": EPOCHS, "evaluate_every": EPOCHS})
    model, train, validate = begin(params, variant, split, device, {})
    with tempfile.TemporaryDirectory() as scratch:
        fit(model, train, config, validate, Path(scratch) / "run", seed, device, lambda *_: None, progress=False)
    return model


def judged(table: Table, split: Split, name: str, seed: int) -> tuple[Model, World]:
    """One model on the test part."""
    variant = table.entries[name]
    model = trained(table, split, variant, seed)
    config = table.evaluation.model_copy(update={"cutoffs": (CUTOFF, DEEP)})
    found = Evaluator(split, variant.weighting, ["test"], config, "cpu").judge(model)["test"]
    truth = Truth.of(split.truth("test"), split.n_items)
    popularity = lists.popularity(split.train, split.n_items)
    hit = hits(found.top, found.users, truth)
    sizes = truth.sizes[found.users]
    active = int((split.train.lengths > 0).sum())
    world = World(found.users, split.known("test").lengths[found.users], sizes, popularity, active, truth)
    print(f"{name}, seed {seed}: {found.means()['recall@20']:.4f}", flush=True)
    return Model(f"{name}, seed {seed}", found.top, hit, of_hits(hit, sizes), found.lists), world


def of_hits(hit: NDArray[np.bool_], sizes: NDArray[np.int64]) -> Values:
    """The metrics [M] of lists with these hits [M, 100]."""
    found = accuracy(hit, sizes, [CUTOFF, DEEP])
    return {name: found[name].astype(np.float64) for name in METRICS}


# --- trials -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trials:
    """Champion and challenger of many trials: values [M, trials] each; the same lengths [M] in every trial."""

    lengths: NDArray[np.int64]
    challenger: Values
    champion: Values
    sides: list[tuple[Model, Model]]  # whose lists they are, in turns


def swapped(world: World, pairs: list[tuple[Model, Model]], trials: int) -> Trials:
    """Each user's two values are dealt to the two sides by a coin: whatever the models are, the expected gain is 0.

    The coin is the same for all metrics of a user. Its differences are symmetric, which flatters any bound.
    """
    heads = np.random.default_rng(1).random((len(world.users), trials)) < 0.5
    challenger, champion = {}, {}
    for metric in METRICS:
        one, other = (np.stack([pair[side].values[metric] for pair in turns(pairs, trials)], axis=1) for side in (0, 1))
        challenger[metric], champion[metric] = np.where(heads, one, other), np.where(heads, other, one)
    return Trials(world.lengths, challenger, champion, pairs)


def resampled(
    policy: Policy,
    world: World,
    pairs: list[tuple[Model, Model]],
    trials: int,
    users: int,
    changed: float = 1.0,
    planted: str | None = None,
) -> Trials:
    """`users` drawn anew for each trial, half of them light and half heavy, so that all trials share their groups.

    The challenger is the other model for a share `changed` of the users, less its mean advantage in each group: no gain
    in either, and in none together, with the skew that real differences have. Two percent of the metric `planted` are
    then added, as hits in place of misses.
    """
    assert policy.groups is not None
    draw = np.random.default_rng(2)
    cut = np.quantile(world.lengths, policy.groups.quantile, method="inverted_cdf")
    light = world.lengths <= cut
    places = np.concatenate(
        [draw.choice(np.flatnonzero(group), (users // 2, trials)) for group in (light, ~light)]
    )  # [users, trials]
    extra = [plant(world, other, planted, draw) for _, other in pairs] if planted else []
    challenger, champion = ({metric: np.empty(places.shape) for metric in METRICS} for _ in range(2))
    for trial, (one, other) in enumerate(turns(pairs, trials)):
        moved, who = draw.random(len(light)) < changed, places[:, trial]
        for metric in METRICS:
            gain = np.where(moved, one.values[metric] - other.values[metric], 0.0)
            gain -= np.where(light, gain[light].mean(), gain[~light].mean())
            if planted:
                gain += extra[trial % len(pairs)][metric]
            champion[metric][:, trial] = other.values[metric][who]
            challenger[metric][:, trial] = (other.values[metric] + gain)[who]
    return Trials(np.repeat([cut, cut + 1], users // 2), challenger, champion, pairs)


def plant(world: World, model: Model, metric: str, draw: np.random.Generator) -> Values:
    """What one hit more does to the metrics of some users [M], as many as raise the mean of `metric` by two percent.

    The hit takes the place of a miss within the metric's cutoff, of a user who took something that the list lacks.
    """
    depth = int(metric.partition("@")[2])
    hit = model.hit[:, :depth]
    able = np.flatnonzero(hit.sum(axis=1) < np.minimum(world.sizes, depth))
    place = np.where(hit, 2.0, draw.random(hit.shape)).argmin(axis=1)  # a miss at random
    better = model.hit.copy()
    better[able, place[able]] = True
    after = of_hits(better, world.sizes)
    order = draw.permutation(able)
    gained = np.cumsum((after[metric] - model.values[metric])[order])
    chosen = order[: int(np.searchsorted(gained, PLANTED * model.values[metric].sum())) + 1]
    mask = np.isin(np.arange(len(world.users)), chosen)
    return {name: np.where(mask, after[name] - model.values[name], 0.0) for name in METRICS}


def turns(pairs: list[tuple[Model, Model]], trials: int) -> Iterator[tuple[Model, Model]]:
    """The pair of each trial."""
    return (pairs[trial % len(pairs)] for trial in range(trials))


# --- the gate over many trials ----------------------------------------------------------------------------------------


def contrast(question: Question, trials: Trials) -> NDArray[np.float64]:
    """[m, trials], of the question's members."""
    return question.contrast(trials.challenger[question.metric], trials.champion[question.metric])


def asked(policy: Policy, trials: Trials, trial: int, popular: Model) -> bool:
    """`decide` itself on one trial, lists and all."""
    users = tuple(map(str, range(len(trials.lengths))))
    sides = trials.sides[trial % len(trials.sides)]

    def side(name: str, values: Values, model: Model) -> Contender:
        columns = {metric: column[:, trial] for metric, column in values.items()}
        version = Version(version=name, variant=name, data_version="", fingerprint=name)
        return Contender(version, Judged(users, trials.lengths, columns, model.lists), 1.0, 1.0)

    challenger = side("challenger", trials.challenger, sides[0])
    nothing = {metric: np.zeros(len(users)) for metric in METRICS}
    baseline = Judged(users, trials.lengths, nothing, popular.lists)
    return decide(policy, OCCASION, challenger, side("champion", trials.champion, sides[1]), baseline, []).promoted


def experiment(policy: Policy, trials: Trials, popular: Model) -> dict[str, Any]:
    """Rates of promotion with their exact intervals, checked against `decide`."""
    main, *guards = questions(policy, trials.lengths)
    bounds, _, _ = both_bounds(contrast(main, trials), policy.bootstrap)
    won = bounds.min(axis=0) > 0
    whole = won.copy()
    for guard in guards:  # of those that are still in
        left = np.flatnonzero(whole)
        if len(left):
            whole[left] = lower_bounds(contrast(guard, trials)[:, left], policy.bootstrap) >= 0
    some = np.unique([*np.flatnonzero(whole)[:AGAIN], *np.flatnonzero(~whole)[:AGAIN]])
    for trial in some.astype(int):
        if asked(policy, trials, trial, popular) != whole[trial]:
            raise SystemExit(f"trial {trial}: decide says otherwise than the questions, one by one")
    percentile, studentised = bounds > 0
    rates = {"percentile": percentile, "studentised": studentised, "main": won, "gate": whole}
    found = {"users": len(trials.lengths), **{name: rate(one) for name, one in rates.items()}, "decided": len(some)}
    print(found, flush=True)
    return found


def seen(policy: Policy, trials: Trials, popular: Model) -> dict[str, Any]:
    """How often a planted gain is promoted, and how often a test that knew the true deviation could."""
    found = experiment(policy, trials, popular)
    gain = trials.challenger[policy.metric] - trials.champion[policy.metric]
    errors = gain.mean() / (gain.std() / np.sqrt(len(gain)))
    return {**found, "errors": float(errors), "ideal": float(norm.cdf(errors - norm.ppf(policy.bootstrap.level)))}


def skewed(policy: Policy, trials: int, sign: int) -> dict[str, Any]:
    """The bounds alone: of 200 users one in twenty gains much (or, with the other sign, loses), the mean being 0."""
    draw = np.random.default_rng(6)
    gain = sign * (np.where(draw.random((200, trials)) < 0.05, draw.random((200, trials)), 0) - 0.025)
    percentile, studentised = (bounds := both_bounds(gain, policy.bootstrap)[0]) > 0
    won = bounds.min(axis=0) > 0
    rates = {"percentile": percentile, "studentised": studentised, "main": won}
    return {"users": 200, **{name: rate(one) for name, one in rates.items()}}


def rate(passed: NDArray[np.bool_]) -> dict[str, float]:
    """The share that passed, with its interval."""
    return rate_of(int(passed.sum()), len(passed))


def rate_of(count: int, total: int) -> dict[str, float]:
    """Clopper and Pearson's interval."""
    interval = binomtest(count, total).proportion_ci(0.95, "exact")
    return {"passed": count, "trials": total, "share": count / total, "low": interval.low, "high": interval.high}


def collapses(policy: Policy, world: World, champion: Model, popular: Model) -> dict[str, Any]:
    """A challenger that is a tenth better for everyone, and shows a part of what the champion's lists show.

    The part is drawn evenly from all that is less than the policy asks for, down to a twentieth.
    """
    least = policy.of_champion[f"coverage@{CUTOFF}"].at_least
    assert least is not None
    draw = np.random.default_rng(4)
    quick = policy.model_copy(update={"bootstrap": policy.bootstrap.model_copy(update={"samples": 200})})
    shown = lists.exposure(champion.top[:, :CUTOFF], len(world.popularity))
    by_exposure, covered = np.argsort(-shown, kind="stable"), int((shown > 0).sum())
    users = tuple(map(str, range(len(world.users))))

    def side(name: str, factor: float, properties: dict[str, float]) -> Contender:
        values = {metric: factor * column for metric, column in champion.values.items()}
        version = Version(version=name, variant=name, data_version="", fingerprint=name)
        return Contender(version, Judged(users, world.lengths, values, properties), 1.0, 1.0)

    baseline = side("popular", 0.5, popular.lists).judged

    def verdict(properties: dict[str, float]) -> tuple[bool, list[str]]:
        said = decide(quick, OCCASION, side("new", 1.1, properties), side("old", 1.0, champion.lists), baseline, [])
        return said.promoted, [check.name for check in said.checks if not check.passed]

    blocked, kept_floor, parts = [], 0, []
    for _ in range(COLLAPSES):
        part = draw.uniform(0.05, least)
        left = by_exposure[: max(CUTOFF, int(part * covered) - 1)]
        top = only(champion.top[:, :CUTOFF], left)
        properties = lists.describe(top, world.popularity, world.trained_users, [CUTOFF])
        promoted_too, failed = verdict(properties)
        blocked.append(not promoted_too)
        kept_floor += f"coverage@{CUTOFF}" not in failed
        parts.append(properties[f"coverage@{CUTOFF}"] / champion.lists[f"coverage@{CUTOFF}"])
    return {
        "blocked": rate(np.asarray(blocked)),
        "above the absolute floor": kept_floor,
        "part of the champion's coverage": [min(parts), max(parts)],
        "without the collapse it is promoted": verdict(champion.lists)[0],
    }


def only(top: NDArray[np.int32], left: NDArray[np.int64]) -> NDArray[np.int32]:
    """Lists [M, K] in which every item but those `left` gave its place to the first of them that the list lacks."""
    stays, first = np.isin(top, left), left[: 2 * top.shape[1]]
    there = ((top[:, :, None] == first) & stays[:, :, None]).any(axis=1)  # [M, first]
    free = first[np.argsort(there, axis=1, kind="stable")]  # those that a list lacks, in order, then the others
    return np.where(stays, top, np.take_along_axis(free, np.cumsum(~stays, axis=1) - 1, axis=1)).astype(np.int32)


# --- time -------------------------------------------------------------------------------------------------------------


def burn(until: float) -> None:
    """Keep a core and its cache busy."""
    values = np.random.default_rng(0).random((600, 600))
    while time.monotonic() < until:
        values = values @ values
        values /= np.abs(values).max()


def readings() -> dict[str, dict[str, float]]:
    """Milliseconds of a DiffRec of the size of ML-1M: as the machine is, and with busy processes beside it."""
    torch.set_num_threads(1)
    package = latency.package(*latency.CASES["ml-1m, T = 40, hidden 200-600"])
    many = replace_histories(package)
    found = {"as the machine is": read(many)}
    count = BURNERS * (os.cpu_count() or 1)
    burners = [multiprocessing.Process(target=burn, args=(time.monotonic() + 60,)) for _ in range(count)]
    for one in burners:
        one.start()
    time.sleep(1)
    try:
        found[f"beside {count} busy processes"] = read(many)
    finally:
        for one in burners:
            one.terminate()
            one.join()
    return found


def replace_histories(package: Package) -> Package:
    """The package with 30 known users of 60 items each."""
    from noise2next.data.interactions import Interactions
    from noise2next.data.vocabulary import Vocabulary

    draw = np.random.default_rng(1)
    rows = np.repeat(np.arange(30), 60)
    items = np.concatenate([draw.choice(len(package.artifact.items), 60, replace=False) for _ in range(30)])
    users = Vocabulary(tuple(map(str, range(30))))
    return replace(package, users=users, histories=Interactions.of(rows, items, None, 30))


def read(package: Package) -> dict[str, float]:
    """The old way, one median on the wall; the median of the thread's clock; and the gate's."""
    ids = package.artifact.items.ids
    histories = [[ids[item] for item in package.histories.items[60 * user : 60 * user + 60]] for user in range(30)]
    spent = []
    for history in histories:
        start = time.perf_counter(), time.thread_time()
        package.for_histories([history], GOLDEN_K)
        spent.append((1000 * (time.perf_counter() - start[0]), 1000 * (time.thread_time() - start[1])))
    wall, thread = (statistics.median(column) for column in zip(*spent, strict=True))
    return {"wall, median": wall, "thread, median": thread, "gate": side_by_side([package])[0]}


CALLS = """
import json, sys, time
from noise2next.config import Settings
from noise2next.stages.promote import rollback
from noise2next.workspace import Workspace
settings, spent = Settings(), []
for _ in range(2):
    start = time.monotonic(), time.process_time()
    rollback(Workspace(settings.root, "sample"), settings, "measured")
    spent.append((time.monotonic() - start[0], time.process_time() - start[1]))
json.dump(spent, sys.stdout)
"""


def rollbacks() -> dict[str, Any]:
    """Seconds of a rollback on the sample log: a process's first call, its second, and the command. Wall, processor."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shutil.copy(HERE.parent / "params.yaml", root)
        (root / "mlflow").mkdir()
        shutil.copy(POLICY, root / "mlflow")
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment["NOISE2NEXT_ROOT"] = scratch

        def python(*arguments: str) -> Any:
            done = subprocess.run(
                [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
            )
            return json.loads(done.stdout)

        def call(*arguments: str) -> Any:
            return python("-m", "noise2next.cli", *arguments, "--json")

        call("datasets", "sample")
        call("run", "--variants", "most_pop")
        report = call("run", "--variants", "most_pop,ease")["registration"]
        assert report["promoted"], report["summary"]
        spent: dict[str, list[tuple[float, float]]] = {"first call": [], "second call": [], "command": []}
        for _ in range(ROLLBACKS):
            first, second = python("-c", CALLS)
            spent["first call"].append(first)
            spent["second call"].append(second)
            before, began = os.times(), time.monotonic()
            call("rollback", "--reason", "measured")
            after = os.times()
            used = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
            spent["command"].append((time.monotonic() - began, used))
        medians = [[name, *np.median(seconds, axis=0).tolist()] for name, seconds in spent.items()]
        return {"times": ROLLBACKS, "size_mb": report["size_mb"], "seconds": medians}


# --- the page ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Train, try, time, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--clocks", action="store_true", help="measure only the times again, and keep the rest")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = read_json(HERE / "gate.json") if arguments.clocks else errors(arguments.trials)
    report = {**report, "latency_ms": readings(), "rollback": rollbacks()}
    write_json(HERE / "gate.json", report)
    text = page(read_json(HERE / "gate.json"))
    (HERE / "gate.md").write_text(text, encoding="utf-8")
    print(text)


def errors(trials: int) -> dict[str, Any]:
    """Train, and try the gate on what is known in truth."""
    began = time.process_time()
    policy, table = Policy.load(POLICY), load_table(TABLE)
    name, split = load()
    made = [judged(table, split, "diffrec", seed) for seed in SEEDS]
    seeds, world = [model for model, _ in made], made[0][1]
    (ease, _), (popular, _) = judged(table, split, "ease", 1), judged(table, split, "most_pop", 1)
    alike = list(permutations(seeds, 2))
    unlike = [pair for one in seeds for pair in ((ease, one), (one, ease))]
    equal = {
        "swapped by a coin, two seeds": experiment(policy, swapped(world, alike, trials), popular),
        "resampled users, two seeds": experiment(policy, resampled(policy, world, alike, trials, USERS), popular),
    }
    for users in (USERS, 878, 200):
        case = resampled(policy, world, unlike, trials, users - users % 2)
        equal[f"resampled users, EASE and DiffRec, {users:,}"] = experiment(policy, case, popular)
    equal |= {f"skewed, {words}": skewed(policy, trials, sign) for words, sign in {"wins": 1, "losses": -1}.items()}
    power: dict[str, Any] = {}
    for metric, raised in DECIDES.items():
        asks = policy.model_copy(update={"metric": metric})
        for changed in CHANGED:
            case = resampled(asks, world, alike, trials // 2, USERS, changed, raised)
            power[f"{metric}, {changed:.0%} of the lists another seed's"] = seen(asks, case, popular)
        case = resampled(asks, world, unlike, trials // 2, USERS, 1.0, raised)
        power[f"{metric}, EASE's against DiffRec's lists"] = seen(asks, case, popular)
    planted = plant(world, seeds[0], "ndcg@20", np.random.default_rng(5))
    return {
        "processor": processor(),
        "data": name,
        "judged": len(world.users),
        "policy": policy.model_dump(mode="json"),
        "models": {
            model.name: {metric: float(model.values[metric].mean()) for metric in METRICS}
            for model in (*seeds, ease, popular)
        },
        "planted": {metric: float(planted[metric].mean() / seeds[0].values[metric].mean()) for metric in METRICS},
        "equal": [{"label": label, **one} for label, one in equal.items()],
        "power": [{"label": label, **one} for label, one in power.items()],
        "collapse": collapses(policy, world, seeds[0], popular),
        "cpu_seconds": time.process_time() - began,
    }


def shown(found: dict[str, float]) -> str:
    """A share with its interval."""
    return f"{found['share']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def page(report: dict[str, Any]) -> str:
    """benchmarks/gate.md"""
    level = report["policy"]["bootstrap"]["level"]
    equal = [
        f"| {one['label']} | {one['users']:,} | {one['main']['trials']:,} | "
        + " | ".join(shown(one[name]) if name in one else "" for name in ("percentile", "studentised", "main", "gate"))
        + " |"
        for one in report["equal"]
    ]
    power = [
        f"| {one['label']} | {one['users']:,} | {one['main']['trials']:,} | {one['errors']:.1f} | {one['ideal']:.1%} "
        f"| {shown(one['main'])} | {shown(one['gate'])} |"
        for one in report["power"]
    ]
    planted, collapse, rollback = (report[key] for key in ("planted", "collapse", "rollback"))
    blocked, parts = collapse["blocked"], collapse["part of the champion's coverage"]
    clocks = [
        f"| {label} | {' | '.join(f'{one[name]:.1f}' for name in ('wall, median', 'thread, median', 'gate'))} |"
        for label, one in report["latency_ms"].items()
    ]
    judged = [one["gate"] for one in report["equal"] if "gate" in one]
    quick = ", ".join(name for name, wall, _ in rollback["seconds"] if wall < 5)
    every, wrong = (sum(one[key] for one in judged) for key in ("trials", "passed"))
    met = "; ".join(one["label"] for one in report["power"] if one["gate"]["share"] >= 0.9)
    rarely = next(one for one in report["power"] if one["label"] == "ndcg@20, 100% of the lists another seed's")
    gains = ", ".join(f"{metric} {share:+.1%}" for metric, share in planted.items())
    return "\n".join(
        [
            "# How often the gate errs",
            "",
            f"`mlflow/promotion.yaml` as it stands, on {report['data']}, {report['judged']:,} judged users: DiffRec "
            f"under {len(SEEDS)} seeds after {EPOCHS} epochs, EASE, and popularity as the baseline. Rates with Clopper "
            f"and Pearson's 95 % intervals. {report['cpu_seconds'] / 60:.0f} minutes of one core of "
            f"{report['processor']}, training included. `python benchmarks/gate.py`",
            "",
            f"## Equal models: at most {1 - level:.0%} may be promoted",
            "",
            "Two ways to make two real models exactly equal in truth. *Swapped by a coin*: each user's two values are "
            "dealt to challenger and champion at random. *Resampled users*: users are drawn anew for each trial, and "
            "the challenger is the other model less its mean advantage among light and among heavy users, so that the "
            "skew of real differences stays.",
            "",
            "| equal in truth | users | trials | plain bound | studentised bound | main question: the lower of both "
            "| whole gate |",
            "|---|---|---|---|---|---|---|",
            *equal,
            "",
            f"All together: {shown(rate_of(wrong, every))} of {every:,} equal challengers are promoted.",
            "",
            "Last comes a skew that real data could have but these have not: of 200 users nineteen in twenty tie, the "
            "others win by much or lose by much; there the bounds alone are asked.",
            "",
            f"## A planted gain of {PLANTED:.0%} in ndcg: at least 90 % must be promoted",
            "",
            "Models made equal as above; then some users' lists get one hit in place of a miss, as many as it takes "
            f"({gains}, where ndcg@20 is planted, as it is where recall@20 decides). The repository's own policy lets "
            f"{report['policy']['metric']} decide. What the gate can see hangs on how much else has changed: the "
            "champion's own lists with the planted hits, lists of which a part is another seed's, or another model's. "
            "The last columns but two say how many standard errors the gain in what decides is, and what a test of the "
            "same level that knew the true deviation would find.",
            "",
            "| decides | users | trials | standard errors | best possible | main question | whole gate |",
            "|---|---|---|---|---|---|---|",
            *power,
            "",
            f"At least 90 % are seen in: {met}. Whole lists of two seeds differ so much that {PLANTED:.0%} in "
            f"ndcg@20 is only {rarely['errors']:.1f} standard errors of {rarely['users']:,} users, and no test of this "
            f"level finds more than {rarely['ideal']:.0%} of such gains; a deeper cutoff tells more.",
            "",
            "## A planted collapse of coverage: all must be blocked",
            "",
            f"A challenger that is better by a tenth for every user, and whose lists show {parts[0]:.1%} to "
            f"{parts[1]:.1%} of the items that the champion's show: {blocked['passed']} of {blocked['trials']} "
            f"blocked, {collapse['above the absolute floor']} of them above the absolute floor. Without the collapse "
            f"it is {'promoted' if collapse['without the collapse it is promoted'] else 'refused'}.",
            "",
            "## The clock on a busy machine",
            "",
            "Milliseconds for one bare history of 60 items from a DiffRec of the size of ML-1M, each read once.",
            "",
            "| | wall, median | thread's clock, median | the gate: least median of rounds, thread's clock |",
            "|---|---|---|---|",
            *clocks,
            "",
            "## Rollback: below 5 seconds",
            "",
            f"Sample log, package of {rollback['size_mb']:.1f} MB, medians of {rollback['times']}, in seconds, from "
            "the call to the moved alias, integrity check included. A process's first call loads MLflow's database "
            "layer; the command also starts Python and imports torch and MLflow. Where the wall has more than the "
            f"processor, the machine had other work. On the wall below 5 seconds here: {quick or 'none'}.",
            "",
            "| | wall | processor |",
            "|---|---|---|",
            *(f"| {name} | {wall:.1f} | {own:.1f} |" for name, wall, own in rollback["seconds"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
