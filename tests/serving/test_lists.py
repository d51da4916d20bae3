"""Known users are looked up, and nobody can tell from the answer."""

from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient
from tests.serving.shop import ITEMS, USERS, Service, Shelf

from noise2next.registry.packaging import Asked, Package
from noise2next.serving import lists
from noise2next.serving.lists import KnownLists

EVERYONE = [Asked(user=f"u{user}") for user in range(USERS)]


@pytest.fixture
def filled(service: Service) -> KnownLists:
    made = KnownLists(service.package, True)
    made.fill(lambda: True)
    return made


@pytest.fixture(autouse=True)
def priority(monkeypatch):
    """This process keeps its own."""
    monkeypatch.setattr(lists.os, "setpriority", lambda *_: None)


@pytest.mark.parametrize("k", [1, 7, ITEMS])
def test_what_is_looked_up_is_what_would_be_scored(service: Service, filled: KnownLists, k: int):
    found, scored = filled.find(EVERYONE, k, True), service.package.reply(EVERYONE, k)
    assert [one.items for one in found[:39]] == [one.items for one in scored[:39]]
    for one, other in zip(found[:39], scored[:39], strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-5, abs=1e-6)
        assert one.model_dump(exclude={"scores"}) == other.model_dump(exclude={"scores"})
    assert min(len(one.items) for one in found[:39]) < ITEMS  # what was seen is not in it


def test_where_the_dataset_lets_seen_items_stay_in_so_do_the_lists(shelf: Shelf):
    service = Service(shelf, exclude_seen=False)
    made = service.follower.champion.lists
    made.fill(lambda: True)
    assert made.find(EVERYONE, 3, True) == [None] * USERS
    looked_up, scored = made.find(EVERYONE[:39], ITEMS, False), service.package.reply(EVERYONE[:39], ITEMS, False)
    assert [one.items for one in looked_up] == [one.items for one in scored]
    client = TestClient(service.app)

    def listed(**said) -> list[list[str]]:
        queries = [{"user_id": "u1"}, {"history": ["i2", "i3"]}]
        answers = client.post("/recommend", json={"queries": queries, "k": ITEMS, **said}).json()["answers"]
        return [one["items"] for one in answers]

    assert listed() == listed(exclude_seen=None) == listed(exclude_seen=False)
    assert {"i2", "i3"} <= set(listed()[1])
    assert not {"i2", "i3"} & set(listed(exclude_seen=True)[1])
    assert len(listed(exclude_seen=True)[0]) < len(listed()[0]) == ITEMS
    service.follower.stop()
    service.batcher.close()


def test_who_is_not_there_is_left_to_be_scored(filled: KnownLists):
    asked = [Asked(user="u39"), Asked(user="nobody"), Asked(history=["i1"]), Asked(), Asked(user="u1")]
    assert [one is None for one in filled.find(asked, 3, True)] == [True, True, True, True, False]
    assert filled.find(EVERYONE, 3, False) == [None] * USERS
    assert filled.find(EVERYONE, ITEMS + 1, True) == [None] * USERS


def test_lists_count_from_the_moment_that_they_are_done_and_end_when_nobody_wants_them(service, monkeypatch):
    monkeypatch.setattr(lists, "TOGETHER", 7)
    made = KnownLists(service.package, True)
    assert made.find(EVERYONE, 3, True) == [None] * USERS
    wanted = iter([True, False])
    made.fill(lambda: next(wanted))
    assert made.done == 14
    assert [one is None for one in made.find(EVERYONE, 3, True)] == [False] * 14 + [True] * 26


def test_more_users_than_memory_is_meant_for_get_shorter_lists_and_then_none(service, monkeypatch):
    monkeypatch.setattr(lists, "MOST_BYTES", 8 * USERS * 12)
    assert KnownLists(service.package, True).depth == 12
    monkeypatch.setattr(lists, "MOST_BYTES", 8 * USERS * 9)
    none = KnownLists(service.package, True)
    none.fill(lambda: True)
    assert (none.depth, none.done) == (0, 0)
    assert none.find(EVERYONE, 3, True) == [None] * USERS


def test_the_service_looks_users_up_and_scores_the_others_in_one_answer(service: Service, monkeypatch):
    end = time.monotonic() + 10
    while service.follower.champion.lists.done < USERS and time.monotonic() < end:
        time.sleep(0.01)
    scored, reply = [], Package.reply

    def noting(package: Package, asked: list[Asked], k: int, exclude_seen: bool = True) -> list:
        scored.extend(asked)
        return reply(package, asked, k, exclude_seen)

    monkeypatch.setattr(Package, "reply", noting)
    queries = [{"user_id": "u1"}, {"history": ["i2"]}, {"user_id": "u2"}, {"user_id": "nobody"}]
    answers = TestClient(service.app).post("/recommend", json={"queries": queries, "k": 4}).json()["answers"]
    assert scored == [Asked(history=["i2"]), Asked(user="nobody")]
    monkeypatch.undo()
    asked = [Asked(user="u1"), Asked(history=["i2"]), Asked(user="u2"), Asked(user="nobody")]
    assert [one["items"] for one in answers] == [one.items for one in service.package.reply(asked, 4)]
    assert f"noise2next_users_listed {USERS}.0" in TestClient(service.app).get("/metrics").text
