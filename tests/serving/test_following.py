"""Following the alias: what takes over, what stays out, and what is answered meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.serving.shop import Service, Shelf, package

from noise2next.registry.packaging import CONTENT
from noise2next.serving import following


def damaged(shelf: Shelf, root: Path) -> Path:
    """Version 2 with one byte of its weights changed."""
    copy = shutil.copytree(package(shelf.root, 2), root / "damaged")
    weights = copy / CONTENT / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return copy


def test_the_new_champion_takes_over(shelf: Shelf, service: Service, client: TestClient):
    shelf.champion = "2"
    service.follower.look()
    answer = client.post("/recommend", json={"queries": [{"user_id": "u3"}]}).json()
    assert (answer["model"]["version"], answer["model"]["data_version"]) == ("2", f"{2:064d}")
    page = client.get("/metrics").text
    assert "noise2next_model_swaps_total 2.0" in page
    assert 'version="1"' not in page


def test_a_version_with_a_changed_byte_stays_out_and_the_old_one_goes_on(shelf, service, client, tmp_path):
    shelf.places["2"], shelf.champion = damaged(shelf, tmp_path), "2"
    service.follower.look()
    assert client.post("/recommend", json={"queries": [{"user_id": "u3"}]}).json()["model"]["version"] == "1"
    assert client.get("/ready").status_code == 200
    assert "version 2 stays out" in client.get("/ready").json()["trouble"]
    state = client.get("/model").json()["kept_out"]
    assert (state["version"], state["failures"]) == ("2", 1)
    assert state["error"].startswith("it is not what was registered")
    assert str(tmp_path) not in client.get("/model").text + client.get("/ready").text
    assert "noise2next_versions_kept_out_total 1.0" in client.get("/metrics").text


def test_a_version_that_answers_otherwise_than_when_packaged_stays_out(shelf, service, tmp_path):
    copy = shutil.copytree(package(shelf.root, 2), tmp_path / "other")
    golden = json.loads((copy / CONTENT / "golden.json").read_text())
    golden["items"][0].reverse()
    (copy / CONTENT / "golden.json").write_text(json.dumps(golden))
    shelf.places["2"], shelf.champion = copy, "2"
    shelf.fetch = lambda version: shelf.place(version.version)  # its hashes are as they are
    service.follower.look()
    assert service.follower.champion.version == "1"
    assert service.follower.kept_out.error.startswith("it is not what was registered")


def test_a_version_that_fails_in_a_way_nobody_thought_of_stays_out_and_its_inside_is_not_told(shelf, service):
    shelf.champion = "2"

    def fetch(_: object) -> None:
        raise ZeroDivisionError("a secret of the house")

    shelf.fetch = fetch
    service.follower.look()
    assert service.follower.champion.version == "1"
    assert "secret" not in service.follower.trouble


def test_a_version_that_failed_is_tried_again_after_a_growing_wait(shelf, service, tmp_path, monkeypatch):
    monkeypatch.setattr(following, "LONGEST_WAIT", timedelta(seconds=0.08))
    shelf.places["2"], shelf.champion = damaged(shelf, tmp_path), "2"
    waits = []
    for failures in (1, 2, 3, 4):
        before = following._now()
        service.follower.look()
        kept_out = service.follower.kept_out
        assert kept_out.failures == failures
        waits.append((kept_out.again - before).total_seconds())
        service.follower.look()
        assert service.follower.kept_out is kept_out  # not before its time
        time.sleep(waits[-1])
    assert waits[0] < waits[1] < waits[2]
    assert waits[3] < 0.2
    del shelf.places["2"]  # mended
    service.follower.look()
    assert service.follower.champion.version == "2"
    assert service.follower.trouble is None


def test_a_version_that_fails_for_days_is_still_tried(shelf, service, tmp_path):
    shelf.places["2"], shelf.champion = damaged(shelf, tmp_path), "2"
    service.follower.kept_out = following.KeptOut("2", "damaged", 5000, following._now())
    service.follower.look()
    assert service.follower.kept_out.failures == 5001


def test_back_to_the_version_that_serves_nothing_is_kept_out_any_more(shelf, service, tmp_path):
    shelf.places["2"], shelf.champion = damaged(shelf, tmp_path), "2"
    service.follower.look()
    shelf.champion = "1"
    service.follower.look()
    assert service.follower.trouble is None


def test_while_the_registry_is_away_the_champion_goes_on_and_that_is_said(shelf, service, client):
    shelf.away = True
    service.follower.look()
    assert client.post("/recommend", json={"queries": [{"user_id": "u3"}]}).status_code == 200
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert "the registry does not answer" in ready.json()["trouble"]
    assert "noise2next_registry_reached 0.0" in client.get("/metrics").text
    shelf.away = False
    service.follower.look()
    assert client.get("/ready").json()["trouble"] is None


def test_an_alias_that_is_taken_away_leaves_the_loaded_champion(shelf, service, client):
    shelf.champion = None
    service.follower.look()
    assert client.post("/recommend", json={"queries": [{"user_id": "u3"}]}).json()["model"]["version"] == "1"
    assert "there is no champion" in client.get("/ready").json()["trouble"]


def test_swaps_under_load_fail_nothing_and_mix_nothing(shelf: Shelf):
    """Each answer has many rows, all of which must be those of the version that it names."""
    service = Service(shelf)
    users, histories = [f"u{user}" for user in range(39)], [[f"i{item}", "i1"] for item in range(2, 29)] * 4
    queries = [*({"user_id": user} for user in users), *({"history": history} for history in histories)]
    expected = {}
    for version in ("1", "2", "3"):
        shelf.champion = version
        service.follower.look()
        answers = [*service.package.for_users(users, 5), *service.package.for_histories(histories, 5)]
        expected[version] = [one.items for one in answers]
    assert expected["1"] != expected["2"] != expected["3"]
    statuses, mixed, versions = Counter(), [], Counter()

    def ask(client: TestClient) -> None:
        for _ in range(60):
            answer = client.post("/recommend", json={"queries": queries, "k": 5})
            statuses[answer.status_code] += 1
            document = answer.json()
            versions[document["model"]["version"]] += 1
            if [one["items"] for one in document["answers"]] != expected[document["model"]["version"]]:
                mixed.append(document["model"]["version"])

    with TestClient(service.app) as client:  # the thread that follows runs
        callers = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            for version in ("1", "2", "3"):
                shelf.champion = version
                time.sleep(0.1)
        for caller in callers:
            caller.join()
    assert statuses == {200: 240}
    assert mixed == []
    assert len(versions) > 1


@pytest.mark.parametrize("champion", ["1", None])
def test_the_thread_that_follows_ends_with_the_service(shelf: Shelf, champion: str | None):
    shelf.champion = champion
    service = Service(shelf)
    with TestClient(service.app):
        assert service.follower._thread.is_alive()
    service.follower._thread.join(5)
    assert not service.follower._thread.is_alive()
