"""kill -9 of a retraining at moments by chance: the champion always serves, and the next run finishes the work."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter

import pytest
from tests import shop

# What a run imports is imported once, in the server that each run is forked from; `orchestration` first, for it keeps
# pyspark, where it is installed, from ending a process like that server.
PRELOADED = [
    "orchestration",
    "noise2next.stages.pipeline",
    "noise2next.registry.versions",
    "great_expectations",
    "ibis",
    "duckdb",
]
SEED = 1


def _run(root: str) -> None:
    """`noise2next run --dataset shop`, in the process that the server forked."""
    from noise2next import cli

    os.environ["NOISE2NEXT_ROOT"] = root
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.argv = ["noise2next", "run", "--dataset", "shop"]
    cli.main()


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Runs:
    """Runs of the project, each in a process of its own that begins with everything imported."""

    def __init__(self, server, root):
        self.server, self.root = server, root

    def start(self):
        process = self.server.Process(target=_run, args=(str(self.root),))
        process.start()
        return process

    def whole(self):
        """Seconds that a run takes from its start to its end."""
        begun = time.monotonic()
        process = self.start()
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - begun

    def killed_after(self, seconds):
        """Whether the run was still going when it was killed."""
        process = self.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL


def restore(before, root):
    """The project as it was, in the same place."""
    shutil.rmtree(root)
    shutil.copytree(before, root, symlinks=True)


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_leaves_a_champion_and_the_next_run_finishes_the_work(
    server, first_month, tmp_path, times
):
    (first_month / "later" / "2.csv").rename(first_month / "data" / "shop" / "2.csv")
    former = shop.champion(first_month).tags["data_version"]
    before = shutil.copytree(first_month, tmp_path / "before", symlinks=True)
    runs = Runs(server, first_month)
    runs.whole()  # the server imports
    restore(before, first_month)
    seconds = runs.whole()
    finished, answers = shop.champion(first_month).tags["data_version"], shop.answers(first_month)
    assert finished != former

    dice, left = random.Random(SEED), Counter()
    for number in range(times):
        restore(before, first_month)
        moment = seconds * (number + dice.random()) / times  # one in each of as many equal parts of the run
        killed = runs.killed_after(moment)
        champion = shop.champion(first_month)  # it loads, and gives its golden answers again
        left["killed" if killed else "already done", champion.tags["data_version"] == finished] += 1
        runs.whole()
        assert shop.champion(first_month).tags["data_version"] == finished
        assert shop.answers(first_month) == answers
    assert sum(count for (what, _), count in left.items() if what == "killed") > 0.8 * times, left
