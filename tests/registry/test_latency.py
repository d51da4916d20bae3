"""The gate's clock: packages in turns, and the least of many medians."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from noise2next.data.interactions import Interactions
from noise2next.registry import latency
from noise2next.registry.latency import REQUESTS, ROUNDS, side_by_side


class Clock:
    """Stands still unless a request spends some of it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []

    def package(self, name: str, cost: Any) -> Any:
        """A package whose n-th request takes cost(n) seconds."""
        users = np.repeat(np.arange(40), 2)
        known = Interactions.of(users, np.tile([0, 1], 40), None, 40)
        artifact = SimpleNamespace(items=SimpleNamespace(ids=("a", "b")))

        def answer(histories: list[list[str]], k: int) -> None:
            assert histories == [["a", "b"]]
            self.seconds += cost(self.asked.count(name))
            self.asked.append(name)

        return SimpleNamespace(histories=known, artifact=artifact, for_histories=answer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(thread_time=lambda: made.seconds))
    return made


def test_one_quiet_round_is_enough(clock: Clock):
    """All rounds but one are ten times slower, and so is every third request of that one."""
    quiet = range(1 + 2 * REQUESTS, 1 + 3 * REQUESTS)  # the first request warms up

    def cost(request: int) -> float:
        return 0.005 if request in quiet and request % 3 else 0.05

    assert side_by_side([clock.package("one", cost)]) == [pytest.approx(5.0)]


def test_packages_take_turns_round_by_round(clock: Clock):
    packages = [clock.package("one", lambda _: 0.001), clock.package("other", lambda _: 0.002)]
    assert side_by_side(packages) == [pytest.approx(1.0), pytest.approx(2.0)]
    assert clock.asked == ["one", "other", *(["one"] * REQUESTS + ["other"] * REQUESTS) * ROUNDS]


def test_the_number_of_threads_is_put_back_also_after_a_fault(clock: Clock):
    before = torch.get_num_threads()

    def fail(_: int) -> float:
        assert torch.get_num_threads() == 1
        raise RuntimeError("a fault")

    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="a fault"):
            side_by_side([clock.package("one", fail)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
