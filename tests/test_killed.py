"""kill -9 of a retraining at moments by chance: the champion always serves, and the next run finishes the work."""

import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter

import pytest
from tests import shop

log = logging.getLogger(__name__)

SEED = 1


def _run(root: str) -> None:
    """`noise2next run --dataset shop`, in the process that the server forked."""
    from noise2next import cli

    os.environ["NOISE2NEXT_ROOT"] = root
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.argv = ["noise2next", "run", "--dataset", "shop"]
    cli.main()


class Runs:
    """Runs of the project, each in a process of its own that begins with everything imported."""

    def __init__(self, root):
        self.root = root

    def start(self):
        process = shop.server().Process(target=_run, args=(str(self.root),))
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
        """None for a run that was still going when it was killed; else the seconds that it took."""
        begun = time.monotonic()
        process = self.start()
        process.join(seconds)
        took = time.monotonic() - begun
        process.kill()
        process.join()
        return None if process.exitcode == -signal.SIGKILL else took


def restore(before, root):
    """The project as it was, in the same place."""
    shutil.rmtree(root)
    shutil.copytree(before, root, symlinks=True)


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_leaves_a_champion_and_the_next_run_finishes_the_work(first_month, tmp_path, times):
    (first_month / "later" / "2.csv").rename(first_month / "data" / "shop" / "2.csv")
    former = shop.champion(first_month)
    before = shutil.copytree(first_month, tmp_path / "before", symlinks=True)
    runs = Runs(first_month)
    seconds = runs.whole()
    finished = shop.champion(first_month)
    assert finished.tags["data_version"] != former.tags["data_version"]

    dice, left = random.Random(SEED), Counter()
    for number in range(times):
        share = (number + dice.random()) / times  # one moment in each of as many equal parts of the run
        restore(before, first_month)
        while (took := runs.killed_after(share * seconds)) is not None:
            seconds = took  # the machine has less to do than when the first run was timed
            restore(before, first_month)
        champion = shop.champion(first_month)  # it loads, and gives its golden answers again
        assert champion.lists in (former.lists, finished.lists)
        left["new" if champion.lists == finished.lists else "old"] += 1
        runs.whole()
        assert shop.champion(first_month).lists == finished.lists
    log.info("%d kills over %.1f s, champion after them: %s", times, seconds, dict(left))
    assert left["old"]
