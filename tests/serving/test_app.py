"""The endpoints: what they answer, what they refuse, and that both doorways to a package give the same lists."""

from __future__ import annotations

import json
import re

import mlflow.pyfunc
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from tests.serving.shop import ITEMS, Service, Shelf

from noise2next.registry.packaging import answer_frame
from noise2next.serving import schemas

QUERIES = [
    {"user_id": "u3"},
    {"history": ["i1", "nowhere", "i2"]},
    {"history": []},
    {"user_id": "nobody"},
    {"user_id": "u39"},
    {"history": ["nowhere"]},
    {"user_id": "nobody", "history": ["i1"]},
]


def recommend(client: TestClient, *queries: dict, **chosen) -> list[dict]:
    answer = client.post("/recommend", json={"queries": queries, **chosen})
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def test_users_and_histories_get_what_the_package_answers(client, service: Service):
    user, history = recommend(client, {"user_id": "u3"}, {"history": ["i1", "i2"]}, k=7)
    assert user["items"] == service.package.for_users(["u3"], 7)[0].items
    assert history["items"] == service.package.for_histories([["i1", "i2"]], 7)[0].items
    assert user["fallback"] is history["fallback"] is None


def test_what_was_seen_is_left_out_unless_asked_for(client):
    (without,) = recommend(client, {"history": ["i1", "i2"]}, k=ITEMS)
    (with_seen,) = recommend(client, {"history": ["i1", "i2"]}, k=ITEMS, exclude_seen=False)
    assert set(with_seen["items"]) - set(without["items"]) == {"i1", "i2"}


def test_every_answer_names_model_version_and_data_version(client):
    answer = client.post("/recommend", json={"queries": [{"user_id": "u3"}]}).json()
    like = client.get("/similar", params={"item": "i1"}).json()
    assert answer["model"] == like["model"]
    assert answer["model"] == {
        "name": "noise2next-shop", "version": "1", "variant": "ease", "data_version": f"{1:064d}",
    }  # fmt: skip


def test_unknown_items_are_reported_of_each_query_and_the_rest_is_asked(client):
    mixed, plain = recommend(client, {"history": ["i1", "nowhere", "i2"]}, {"history": ["i1", "i2"]})
    assert (mixed["unknown"], mixed["known"], mixed["items"]) == (["nowhere"], 2, plain["items"])
    assert plain["unknown"] == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"history": []}, "empty history"),
        ({"user_id": "nobody"}, "unknown user"),
        ({"user_id": "u39"}, "no known item"),
        ({"history": ["nowhere"]}, "no known item"),
    ],
)
def test_where_nothing_is_known_there_is_recent_popularity_and_it_says_so(client, query: dict, reason: str):
    (answer,) = recommend(client, query, k=3)
    assert (answer["fallback"], answer["reason"], answer["known"]) == ("recent_popularity", reason, 0)
    assert answer["items"][0] == f"i{ITEMS - 1}"  # and not i0, which more took but long ago
    assert len(answer["items"]) == 3


def test_mlflows_way_answers_the_same(client, service: Service, shelf: Shelf):
    served = mlflow.pyfunc.load_model(str(shelf.place("1")))
    records = pd.DataFrame({"user_id": None, "history": None}, index=range(len(QUERIES)), dtype=object)
    for row, query in enumerate(QUERIES):
        for name, value in query.items():
            records.at[row, name] = value
    ours = recommend(client, *QUERIES, k=5)
    assert answer_frame(service.package, records, 5, True).to_dict("records") == ours
    assert served.predict(records, params={"k": 5}).to_dict("records") == ours


def test_similar_is_the_models_answer_to_a_history_of_that_item(client, service: Service):
    answer = client.get("/similar", params={"item": "i1", "k": 5}).json()
    assert answer["items"] == service.package.for_histories([["i1"]], 5)[0].items
    assert "i1" not in answer["items"]
    refused = client.get("/similar", params={"item": "nowhere"})
    assert (refused.status_code, refused.json()["where"]) == (404, "query.item")


@pytest.mark.parametrize(
    ("body", "status", "where", "said"),
    [
        (b"{", 400, "body", "character 1"),
        (b"\xff\xfe", 400, "body", "JSON"),
        (b"[" * 100_000, 400, "body", "JSON"),
        (b"", 422, "body", "required"),
        (b"[]", 422, "body", "dict"),
        (b"{}", 422, "body.queries", "required"),
        (b'{"queries": []}', 422, "body.queries", "at least 1"),
        (b'{"queries": [{}]}', 422, "body.queries.0", "neither"),
        (b'{"queries": [{"user_id": 7}]}', 422, "body.queries.0.user_id", "string"),
        (b'{"queries": [{"history": "i1"}]}', 422, "body.queries.0.history", "list"),
        (b'{"queries": [{"history": ["\\ud800"]}]}', 422, "body.queries.0.history.0", "string"),
        (b'{"queries": [{"user_id": "u1", "\\ud800": 1}]}', 422, "body.queries.0", "unicode"),
        (b'{"queries": [{"user_id": "u1"}], "k": 0}', 422, "body.k", "greater"),
        (b'{"queries": [{"user_id": "u1"}], "k": 1001}', 422, "body.k", "less"),
        (b'{"queries": [{"user_id": "u1"}], "k": NaN}', 422, "body.k", "integer"),
        (b'{"queries": [{"user_id": "u1"}], "k": true}', 422, "body.k", "integer"),
        (b'{"queries": [{"user_id": "u1"}], "k": 1' + b"0" * 5000 + b"}", 400, "body", "JSON"),
        (b'{"queries": [{"user_id": "u1"}], "seen": 1}', 422, "body.seen", "unknown key"),
    ],
)
def test_bad_input_is_a_sentence_with_its_place(client, body: bytes, status: int, where: str, said: str):
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    document = json.loads(answer.content)
    assert (answer.status_code, document["where"]) == (status, where)
    assert said in document["error"]
    assert set(document) == {"error", "where"}
    assert "Traceback" not in answer.text


def test_a_body_that_is_not_sent_as_json_is_refused(client):
    answer = client.post("/recommend", content=b'{"queries": [{"user_id": "u1"}]}', headers={"content-type": "text/x"})
    assert (answer.status_code, answer.json()["where"]) == (422, "body")


def test_limits_hold_for_queries_histories_lists_and_bytes(client):
    many = [{"user_id": "u1"}] * (schemas.MOST_QUERIES + 1)
    assert client.post("/recommend", json={"queries": many}).status_code == 422
    long = [{"history": ["i1"] * (schemas.MOST_HISTORY + 1)}]
    assert client.post("/recommend", json={"queries": long}).status_code == 422
    wide = client.post("/recommend", json={"queries": many[1:], "k": schemas.MOST_K})
    assert (wide.status_code, wide.json()["where"]) == (422, "body")
    heavy = b'{"queries": [{"user_id": "' + b"u" * schemas.MOST_BODY + b'"}]}'
    for content in (heavy, iter([heavy[:1000], heavy[1000:]])):  # with its length said, and without
        answer = client.post("/recommend", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert set(answer.json()) == {"error", "where"}


def test_a_path_or_a_method_that_is_not_there_is_answered_alike(client):
    assert client.get("/nowhere").json() == {
        "error": "there is nothing here; /docs says what there is",
        "where": "path",
    }
    assert set(client.get("/recommend").json()) == {"error", "where"}


def test_a_fault_of_ours_shows_nothing_of_its_inside(client, service: Service, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(type(service.package), "reply", fail)
    answer = client.post("/recommend", json={"queries": [{"history": ["i1"]}]})
    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "where"}
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert recommend(client, {"history": ["i1"]})  # and the thread goes on


def test_health_ready_and_model_say_how_it_stands(client, service: Service):
    assert client.get("/health").json() == {"alive": True}
    assert client.get("/ready").json() == {"ready": True, "version": "1", "trouble": None}
    state = client.get("/model").json()
    assert (state["version"], state["variant"], state["users"], state["items"]) == ("1", "ease", 40, ITEMS)
    assert state["digest"] == service.follower.champion.digest
    assert state["since"].endswith("Z")
    assert state["trained_until"].startswith("1971-02-05")
    assert state["kept_out"] is None


def test_without_a_champion_it_lives_and_is_not_ready(shelf: Shelf):
    shelf.champion = None
    service = Service(shelf)
    client = TestClient(service.app)
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    assert "there is no champion" in client.get("/ready").json()["trouble"]
    refused = client.post("/recommend", json={"queries": [{"user_id": "u1"}]})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert client.get("/model").status_code == 503
    service.batcher.close()


def test_figures_count_requests_queries_and_fallbacks(client):
    recommend(client, {"user_id": "u1"}, {"user_id": "nobody"}, {"history": ["nowhere"]})
    client.get("/nowhere/at/all")
    page = client.get("/metrics").text
    assert 'noise2next_requests_total{endpoint="/recommend",status="200"} 1.0' in page
    assert 'noise2next_requests_total{endpoint="other",status="404"} 1.0' in page
    assert "noise2next_queries_total 1.0" in page
    assert 'noise2next_fallbacks_total{reason="unknown user"} 1.0' in page
    assert "noise2next_unknown_items_total 1.0" in page
    assert f'noise2next_model{{data_version="{1:064d}",variant="ease",version="1"}} 1.0' in page
    assert 'noise2next_request_seconds_count{endpoint="/recommend"} 1.0' in page
    assert "process_resident_memory_bytes" in page


def test_the_page_of_documentation_names_everything_and_loads_nothing(client, service: Service):
    page = client.get("/docs").text
    for path in service.app.openapi()["paths"]:
        assert path in page
    for name in service.app.openapi()["components"]["schemas"]:
        assert f'id="{name}"' in page
    assert re.findall(r"(?:src|href)=[\"'](?!/|#)", page) == []
    assert "url(" not in page
    assert "<script" not in page


def test_the_examples_of_the_documentation_can_be_sent_as_they_are(client, service: Service):
    body = service.app.openapi()["paths"]["/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert body["examples"]
    for example in body["examples"].values():
        assert len(recommend(client, *example["value"]["queries"])) == len(example["value"]["queries"])
