"""The service under load: latency of single requests, users a second in batch, swaps of the champion, and a fuzzer.

    python benchmarks/serving.py            # minutes on a quiet machine; writes serving.json and serving.md
    python benchmarks/serving.py --quick    # the same with few requests, printed and written nowhere

The champion is DiffRec as published for ML-1M (T = 40, hidden 200 and 600) on the official files of ml-1m_clean, which
$NOISE2NEXT_SHARED/data holds. It is trained for two epochs alone, since time does not depend on the weights; a second
version has another seed. Everything goes the way of a user: `noise2next serve` in a process of its own, aliases moved
in the registry, and the load from another process (load.py). One machine carries both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import json

import numpy as np
import schemathesis
from hypothesis import HealthCheck, given, settings
from machine import processor
from schemathesis.generation import GenerationMode

from noise2next.config import Settings, load_params
from noise2next.data.interactions import Split
from noise2next.registry.packaging import CONTENT, Package
from noise2next.registry.tracking import experiment_of
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import ingest, prepare, train
from noise2next.stages.tables import load_table
from noise2next.workspace import Workspace, write_json

HERE = Path(__file__).resolve().parent
DATASET, VARIANT, K = "ml-1m", "diffrec", 10
SEEDS = (1, 2)  # of the versions
EPOCHS = 2
RATE = 100  # single requests a second
GOALS = {"p99_ms": 20.0, "users_per_second": 5_000.0}
WHOLE = {"single": 6_000, "batches": 400, "new_batches": 40, "swap_requests": 100_000, "swaps": 20, "fuzz": 1_000}
QUICK = {"single": 300, "batches": 16, "new_batches": 4, "swap_requests": 1_000, "swaps": 4, "fuzz": 100}
PARAMS = """
datasets:
  ml-1m: {path: ml-1m_clean.zip, format: diffrec, time_unit: order, split: {kind: official, history: train}}
trainer: {evaluate_every: 10}
variants:
  diffrec:
    model: noise2next.models.diffrec.DiffRec
    options: {steps: 40, hidden: [200, 600], noise_scale: 0.005, noise_min: 0.005, noise_max: 0.01}
"""


class Shop:
    """A project with two registered versions of DiffRec, their lists, and the service over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings(root=root, device="cpu")
        self.space = Workspace(root, DATASET)
        (root / "params.yaml").write_text(PARAMS)
        self.space.data.mkdir()
        official = load_table("diffrec-ml1m-clean").file
        shared = Path(os.environ.get("NOISE2NEXT_SHARED", HERE.parents[1] / "shared")) / "data"
        if not (shared / official).is_file():
            raise SystemExit(f"{shared / official}: not there; NOISE2NEXT_SHARED names the folder that holds data/")
        (self.space.data / "ml-1m_clean.zip").symlink_to((shared / official).resolve())
        self.registry = ModelRegistry(self.settings, self.space)
        self.versions = [self._register(seed) for seed in SEEDS]
        self.users = list(self.package(0).users.ids)
        self.lists = root / "lists.json"
        write_json(self.lists, {str(one.version): self._scores(at) for at, one in enumerate(self.versions)})

    def _register(self, seed: int) -> Any:
        params = load_params(self.space.params, [f"seed={seed}", f"trainer.epochs={EPOCHS}"])
        if not self.space.prepared.exists():
            ingest.run(params, self.space)
            prepare.run(params, self.space)
        train.run(params, self.space, self.settings, VARIANT)
        dataset = params.dataset(DATASET)
        split = Split.load(self.space.prepared, dataset.split, dataset.has_clock)
        run = self.registry.client.create_run(experiment_of(self.registry.client, self.space))
        return self.registry.publish(self.space.model(VARIANT), split, dataset, run.info.run_id)

    def package(self, at: int) -> Package:
        """A version's package in this process."""
        return Package.load(self.registry.fetch(self.versions[at]) / CONTENT)

    def _scores(self, at: int) -> dict[str, list[float]]:
        package = self.package(at)
        lists = {}
        for users, _, scores in package.everyone(K):
            lists |= {package.users.ids[user]: row for user, row in zip(users.tolist(), scores.tolist(), strict=True)}
        return lists

    def point(self, at: int) -> None:
        """Make a version the champion."""
        self.registry.point("champion", str(self.versions[at].version))

    def histories(self, count: int) -> list[list[str]]:
        """Histories that nobody has: half of one user's and half of another's."""
        package, draw = self.package(0), np.random.default_rng(1)
        ids, known = package.artifact.items.ids, package.histories
        rows = [known.items[known.indptr[user] : known.indptr[user + 1]].tolist() for user in range(known.n_users)]
        pairs = draw.integers(0, len(rows), (count, 2)).tolist()
        return [[ids[item] for item in dict.fromkeys([*rows[a][::2], *rows[b][::2]])] for a, b in pairs]

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """`noise2next serve`, once it is ready: its address."""
        command = [sys.executable, "-m", "noise2next.cli", "serve", "-d", DATASET, "--port", "0", "--poll", "0.5"]
        environment = {**os.environ, "NOISE2NEXT_ROOT": str(self.root), "NOISE2NEXT_DEVICE": "cpu"}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            told = iter(process.stderr.readline, "")
            address = next(found.group() for line in told if (found := re.search(r"http://[\d.:]+", line)))
            next(line for line in told if "is served" in line)
            threading.Thread(target=lambda: list(told), daemon=True).start()
            yield address
        finally:
            process.terminate()
            process.wait(60)


# --- the measurements -------------------------------------------------------------------------------------------------


def load(**plan: Any) -> dict[str, Any]:
    """Run load.py to its end."""
    with started(**plan) as process:
        return finished(process)


@contextlib.contextmanager
def started(**plan: Any) -> Iterator[subprocess.Popen[str]]:
    """load.py at work."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, str(HERE / "load.py")],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe if plan.get("told") else None,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(plan))
    process.stdin.close()
    yield process
    process.wait()


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it found."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.read())
    return found


def singles(address: str, queries: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Latency of one query a request at the rate of the goal."""
    bodies = [{"queries": [query], "k": K} for query in queries]
    load(address=address, bodies=bodies, connections=2, requests=20)  # what is made at first use
    before = cpu_seconds(address)
    found = load(address=address, bodies=bodies[::-1], connections=64, requests=count, rate=RATE)
    spent = cpu_seconds(address) - before
    latencies = np.asarray(found["latencies_ms"])
    p50, p90, p99 = np.quantile(latencies, (0.5, 0.9, 0.99)).tolist()
    return {
        "requests": count, "p50": p50, "p90": p90, "p99": p99, "most": float(latencies.max()),
        "statuses": found["statuses"], "cpu_ms": 1000 * spent / count,
    }  # fmt: skip


def batches(address: str, queries: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Users a second where four callers ask for 500 each, again and again."""
    bodies = [{"queries": queries[at : at + 500], "k": K} for at in range(0, len(queries) - 499, 500)]
    before = cpu_seconds(address)
    found = load(address=address, bodies=bodies, connections=4, requests=count)
    spent = cpu_seconds(address) - before
    return {
        "requests": count,
        "queries": found["queries"],
        "per_second": found["queries"] / found["seconds"],
        "per_cpu_second": found["queries"] / spent,
        "statuses": found["statuses"],
    }


def swaps(shop: Shop, address: str, requests: int, count: int) -> dict[str, Any]:
    """The champion changes `count` times while 32 callers ask; each answer is held against its version's lists."""
    draw = np.random.default_rng(1)
    chosen = [draw.integers(0, len(shop.users), draw.integers(1, 5)).tolist() for _ in range(5_000)]
    bodies = [{"queries": [{"user_id": shop.users[user]} for user in users], "k": K} for users in chosen]
    every = requests // (count + 1)
    begun = int(figure(address, "noise2next_model_swaps_total"))
    plan = {"address": address, "bodies": bodies, "connections": 32, "requests": requests, "told": every}
    with started(**plan, lists=str(shop.lists)) as process:
        assert process.stderr is not None
        for swap, _ in zip(range(count), process.stderr, strict=False):
            shop.point((swap + 1) % 2)
        found = finished(process)  # its few last lines of progress wait unread: what it found is longer than a pipe
    return {
        "requests": requests,
        "swaps": int(figure(address, "noise2next_model_swaps_total")) - begun,
        "asked_for": count,
        "failed": requests - found["statuses"].get("200", 0),
        "mixed": found["mixed"],
        "versions": found["versions"],
        "per_second": requests / found["seconds"],
        "p99": float(np.quantile(found["latencies_ms"], 0.99)),
    }


def fuzz(address: str, count: int) -> dict[str, Any]:
    """Malformed requests by schemathesis, from the OpenAPI document: the statuses that came back."""
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses: Counter[str] = Counter()
    operations = [one.ok() for one in document.get_all_operations()]
    taking = [one for one in operations if one.body or one.query]
    for at, operation in enumerate(taking):

        @settings(
            max_examples=count // len(taking), database=None, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def ask(case: schemathesis.Case) -> None:
            statuses[str(case.call().status_code)] += 1

        ask()
        missing = count * (at + 1) // len(taking) - sum(statuses.values())
        if missing > 0:
            raise SystemExit(f"{operation.label}: schemathesis made {missing} requests too few")
    return {"requests": sum(statuses.values()), "statuses": statuses}


def listing(address: str, users: int) -> float:
    """Seconds until everyone's list is worked out, from a service that has just become ready."""
    start = time.monotonic()
    while figure(address, "noise2next_users_listed") < users:
        time.sleep(0.2)
    return time.monotonic() - start


def figure(address: str, name: str) -> float:
    """One of the service's own figures."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(f"{name} ")))


def cpu_seconds(address: str) -> float:
    """That the service's process has used."""
    return figure(address, "process_cpu_seconds_total")


def measure(size: dict[str, int]) -> dict[str, Any]:
    """Everything, one after the other."""
    load_before = os.getloadavg()[0]  # of other work: the two trainings are still to come
    with tempfile.TemporaryDirectory(prefix="noise2next-") as scratch:
        shop = Shop(Path(scratch))
        shop.point(0)
        draw = np.random.default_rng(1)
        known = [{"user_id": shop.users[user]} for user in draw.permutation(len(shop.users))]
        new = [{"history": history} for history in shop.histories(len(known))]
        with shop.serving() as address:
            found = {
                "listing_seconds": listing(address, len(known)),
                "known": singles(address, known, size["single"]),
                "new": singles(address, new, size["single"]),
                "batch_known": batches(address, known, size["batches"]),
                "batch_new": batches(address, new, size["new_batches"]),
                "swaps": swaps(shop, address, size["swap_requests"], size["swaps"]),
                "fuzz": fuzz(address, size["fuzz"]),
                "memory_mb": figure(address, "process_resident_memory_bytes") / 2**20,
            }
    machine = {
        "processor": processor(), "cores": len(os.sched_getaffinity(0)), "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }  # fmt: skip
    return {"machine": machine, "rate": RATE, "k": K, "users": len(known), **found}


# --- what is said of it -----------------------------------------------------------------------------------------------


def tell(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    on, swap, fuzzed = found["machine"], found["swaps"], found["fuzz"]
    busy = on["load_before"] > 0.5
    quiet = (
        f"**The machine was busy with other work (load {on['load_before']:.1f} at the start), so these "
        "times are not those of the service alone.**"
    )

    def met(good: bool) -> str:
        return "yes" if good else "**missed**"

    server_errors = sum(count for status, count in fuzzed["statuses"].items() if status >= "500")
    late, many = found["known"], found["batch_known"]
    goals = [
        ("p99 of single requests of known users", f"under {GOALS['p99_ms']:.0f} ms at {RATE} a second",
         f"{late['p99']:.1f} ms", met(late["p99"] < GOALS["p99_ms"])),
        ("the same of histories that nobody has", f"under {GOALS['p99_ms']:.0f} ms at {RATE} a second",
         f"{found['new']['p99']:.1f} ms", met(found["new"]["p99"] < GOALS["p99_ms"])),
        ("known users in batch", f"at least {GOALS['users_per_second']:,.0f} a second",
         f"{many['per_second']:,.0f}", met(many["per_second"] >= GOALS["users_per_second"])),
        (f"failed in {swap['requests']:,} requests with {swap['swaps']} swaps", "0", str(swap["failed"]),
         met(not swap["failed"] and swap["swaps"] == swap["asked_for"])),
        ("answers that are not of one version", "0", str(swap["mixed"]), met(not swap["mixed"])),
        (f"server errors in {fuzzed['requests']:,} malformed requests", "0", str(server_errors),
         met(not server_errors)),
    ]  # fmt: skip
    return "\n".join(
        [
            "# The service under load",
            "",
            f"`python benchmarks/serving.py`: `noise2next serve` with DiffRec (T = 40, hidden 200 and 600; {EPOCHS} "
            f"epochs, since time does not depend on the weights) on ml-1m_clean, {found['users']:,} users, lists of "
            f"{K}. {on['cores']} cores of {on['processor']} carry the service and the load together. Load "
            f"{on['load_before']:.1f} before and {on['load_after']:.1f} after.",
            "",
            *([quiet, ""] if busy else []),
            "| goal | wanted | found | reached |",
            "|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in goals),
            "",
            "A known user's list is worked out once for a version (all in "
            f"{found['listing_seconds']:.0f} s here, while it serves) and then looked up; a history that nobody has is "
            "scored when it is asked for. Single requests come as a Poisson process, "
            f"{RATE} a second, and wait from the moment that was planned.",
            "",
            "| one query a request | requests | p50 ms | p90 ms | p99 ms | most | processor ms a request |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {name} | {one['requests']:,} | {one['p50']:.1f} | {one['p90']:.1f} | {one['p99']:.1f} | "
                f"{one['most']:.1f} | {one['cpu_ms']:.1f} |"
                for name, one in (("known users", found["known"]), ("new histories", found["new"]))
            ),
            "",
            "| four callers, 500 queries a request | queries | a second | a second of the processor |",
            "|---|---|---|---|",
            *(
                f"| {name} | {one['queries']:,} | {one['per_second']:,.0f} | {one['per_cpu_second']:,.0f} |"
                for name, one in (("known users", found["batch_known"]), ("new histories", found["batch_new"]))
            ),
            "",
            f"Swaps: 32 callers ask for one to four users at once, {swap['per_second']:,.0f} requests a second, p99 "
            f"{swap['p99']:.0f} ms with the loading of {swap['swaps']} versions beside it; answers by version: "
            + ", ".join(f"{version}: {count:,}" for version, count in sorted(swap["versions"].items()))
            + ". Every list was held against that of the version which the answer names.",
            "",
            "Malformed requests (schemathesis, from the OpenAPI document): "
            + ", ".join(f"{count:,} answered {status}" for status, count in sorted(fuzzed["statuses"].items()))
            + f". The process held {found['memory_mb']:,.0f} MB at the end.",
            "",
        ]
    )


def main() -> None:
    """Measure; write unless it was quick; print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="few requests, and nothing is written")
    quick = arguments.parse_args().quick
    found = measure(QUICK if quick else WHOLE)
    if not quick:
        write_json(HERE / "serving.json", found)
        (HERE / "serving.md").write_text(tell(found), encoding="utf-8")
    print(tell(found))


if __name__ == "__main__":
    main()
