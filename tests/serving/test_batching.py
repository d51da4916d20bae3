"""The queue: what is scored together, in which order, and what happens when it is full."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait

import pytest
from fastapi.testclient import TestClient
from tests.serving.shop import Service

from noise2next.registry.packaging import Asked, Package
from noise2next.serving import batching
from noise2next.serving.batching import Batcher, Busy

EVERYONE = [Asked(user=f"u{user}") for user in range(39)]


class Held:
    """Keeps the scoring threads inside their calls until told otherwise, and notes what each call had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[Asked]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        reply = Package.reply

        def held(package: Package, asked: list[Asked], k: int, exclude_seen: bool = True) -> list:
            self.calls.append(list(asked))
            self.entered.release()
            assert self.go.wait(10)
            return reply(package, asked, k, exclude_seen)

        monkeypatch.setattr(Package, "reply", held)


@pytest.fixture
def held(service: Service, monkeypatch) -> Held:
    return Held(monkeypatch)  # after the champion was loaded


def batcher(threads: int = 1) -> Batcher:
    return Batcher(threads, lambda _: None)


def test_what_gathers_while_a_thread_is_busy_is_scored_in_one_call(service: Service, held: Held):
    one = batcher()
    first = one.ask(service.package, EVERYONE[:1], 3, True)
    held.entered.acquire()
    later = [one.ask(service.package, [asked], 3, True) for asked in EVERYONE[1:6]]
    held.go.set()
    wait([first, *later], 10)
    assert [len(call) for call in held.calls] == [1, 5]
    one.close()


def test_a_list_does_not_depend_on_who_else_is_in_the_call(service: Service):
    alone = [service.package.reply([asked], 5) for asked in EVERYONE]
    one = batcher(2)
    together = [one.ask(service.package, [asked], 5, True) for asked in EVERYONE]
    assert [found.result(10)[0].items for found in together] == [reply[0].items for reply in alone]
    one.close()


def test_other_lengths_and_other_rules_are_other_calls(service: Service, held: Held):
    one = batcher()
    first = one.ask(service.package, EVERYONE[:1], 3, True)
    held.entered.acquire()
    asked = [one.ask(service.package, EVERYONE[1:2], k, seen) for k, seen in ((3, True), (4, True), (3, False))]
    held.go.set()
    assert [len(found.result(10)[0].items) for found in [first, *asked]] == [3, 3, 4, 3]
    assert [len(call) for call in held.calls] == [1, 1, 1, 1]
    one.close()


def test_a_single_query_waits_for_a_piece_of_a_large_request_and_not_for_all_of_it(service, held, monkeypatch):
    monkeypatch.setattr(batching, "MOST_TOGETHER", 10)
    one = batcher()
    large = one.ask(service.package, EVERYONE, 3, True)
    held.entered.acquire()
    single = one.ask(service.package, [Asked(user="u7")], 3, True)
    held.go.set()
    wait([large, single], 10)
    single_at = next(at for at, call in enumerate(held.calls) if call.count(Asked(user="u7")) > (at == 0))
    assert single_at < len(held.calls) - 1
    assert [one.items for one in large.result()] == [one.items for one in service.package.for_users(
        [str(one.user) for one in EVERYONE], 3
    )]  # fmt: skip
    one.close()


def test_a_full_queue_is_said_at_once_and_forgets_nothing_that_waits(service, held, monkeypatch):
    monkeypatch.setattr(batching, "MOST_WAITING", 5)
    one = batcher()
    begun = one.ask(service.package, EVERYONE[:1], 3, True)
    held.entered.acquire()
    waiting = one.ask(service.package, EVERYONE[:4], 3, True)
    with pytest.raises(Busy):
        one.ask(service.package, EVERYONE[:2], 3, True)
    assert one.waiting == 4
    held.go.set()
    assert len(waiting.result(10)) == 4
    assert len(begun.result(10)) == 1
    assert one.waiting == 0
    one.close()


def test_over_http_a_full_queue_is_503_with_a_time_to_come_back(service: Service, held: Held, monkeypatch):
    monkeypatch.setattr(batching, "MOST_WAITING", 0)
    answer = TestClient(service.app).post("/recommend", json={"queries": [{"history": ["i1"]}]})
    held.go.set()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert set(answer.json()) == {"error", "where"}
    assert "noise2next_turned_away_total 1.0" in TestClient(service.app).get("/metrics").text


def test_an_error_in_a_call_reaches_its_callers_alone(service: Service, monkeypatch):
    reply = Package.reply

    def fail_for_u1(package: Package, asked: list[Asked], k: int, exclude_seen: bool = True) -> list:
        if Asked(user="u1") in asked:
            raise RuntimeError("u1")
        return reply(package, asked, k, exclude_seen)

    monkeypatch.setattr(Package, "reply", fail_for_u1)
    monkeypatch.setattr(batching, "MOST_TOGETHER", 10)
    one = batcher()
    failed = one.ask(service.package, EVERYONE, 3, True)
    with pytest.raises(RuntimeError, match="u1"):
        failed.result(10)
    assert len(one.ask(service.package, EVERYONE[2:], 3, True).result(10)) == len(EVERYONE) - 2
    assert one.waiting == 0
    one.close()


def test_whoever_goes_away_before_the_turn_came_is_not_scored(service: Service, held: Held):
    one = batcher()
    first = one.ask(service.package, EVERYONE[:1], 3, True)
    held.entered.acquire()
    gone, stays = (one.ask(service.package, [asked], 3, True) for asked in EVERYONE[1:3])
    assert gone.cancel()
    held.go.set()
    wait([first, stays], 10)
    one.close()
    assert Asked(user="u1") not in [asked for call in held.calls for asked in call]
    assert one.waiting == 0


def test_closing_answers_what_waits(service: Service, held: Held):
    one = batcher()
    asked = [one.ask(service.package, EVERYONE, 3, True) for _ in range(5)]
    held.entered.acquire()
    closing = threading.Thread(target=one.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    held.go.set()
    closing.join(10)
    assert [len(found.result(0)) for found in asked] == [len(EVERYONE)] * 5
