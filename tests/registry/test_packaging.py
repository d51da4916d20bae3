"""The package: what it holds, what it answers, and what it refuses to be."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from noise2next.config import Dataset, GlobalTime, Variant
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.data.weighting import DAY, weigh
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import ClosedForm, build
from noise2next.registry import packaging
from noise2next.registry.packaging import CONTENT, Asked, Package, check_golden
from noise2next.workspace import read_json, write_json

USERS, ITEMS = 40, 12
DATASET = Dataset.model_validate(
    {"path": "shop.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"}
)
LINEAR = {"kind": "linear", "low": 0.1, "high": 1.0}


def part(seed: int, rows: int, start: int) -> Interactions:
    draw = np.random.default_rng(seed)
    users = np.sort(draw.integers(0, USERS, rows))
    # two tastes: even users take the first half of the items, odd users the second
    items = draw.integers(0, ITEMS // 2, rows) + np.where(users % 2, ITEMS // 2, 0)
    times = start + np.arange(rows)
    return Interactions.of(users, items, times, USERS)


SPLIT = Split(
    GlobalTime(),
    Vocabulary(tuple(f"u{user}" for user in range(USERS))),
    Vocabulary(tuple(f"i{item}" for item in range(ITEMS))),
    part(1, 120, 0),
    part(2, 20, 1000),
    part(3, 20, 2000),
    True,
)


def trained(place: Path, weighting: dict | None = None, model: str = "ease.EASE", **options) -> Path:
    chosen = Variant.model_validate(
        {
            "name": "it",
            "model": f"noise2next.models.{model}",
            "options": options,
            "weighting": weighting or {"kind": "uniform"},
        }
    )
    made = build(chosen, ITEMS)
    assert isinstance(made, ClosedForm)
    made.solve(Queries.of(weigh(SPLIT.train, chosen.weighting, True), ITEMS, SPLIT.users.keys))
    card = ModelCard(dataset="shop", variant=chosen, n_items=ITEMS, seed=1, data_version="d" * 64, fingerprint="f" * 64)
    Artifact(made, SPLIT.items, card).save(place, {"run_id": "r"})
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("package")
    packaging.build(trained(root / "model", LINEAR, l2=5), SPLIT, DATASET, root / "package")
    return root / "package"


@pytest.fixture(scope="module")
def package(place: Path) -> Package:
    return check_golden(place)


@pytest.fixture(scope="module")
def served(place: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(place))


def test_no_file_of_a_package_is_a_pickle(place: Path):
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".parquet", ".safetensors", ".py", ".txt", ".yaml", ""}
    for path in files:
        start = path.read_bytes()[:2]
        assert not (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")), path
        assert start != b"PK", path  # torch.save writes a zip of pickles


def test_requirements_are_pinned_and_name_the_package_itself(place: Path):
    lines = (place / "requirements.txt").read_text().split()
    assert all("==" in line for line in lines)
    assert any(line.startswith("noise2next==") for line in lines)


def test_a_known_user_and_the_same_bare_history_get_the_same_list(package: Package):
    rows = slice(package.histories.indptr[3], package.histories.indptr[4])
    history = [SPLIT.items.ids[item] for item in package.histories.items[rows]]
    (by_user,), (by_history,) = package.for_users(["u3"], 4), package.for_histories([history], 4)
    assert by_user.items == by_history.items
    assert by_user.scores == pytest.approx(by_history.scores, rel=1e-5)
    assert by_user.known == len(history)


def test_nothing_seen_is_recommended_unless_asked_for(package: Package):
    rows = slice(package.histories.indptr[3], package.histories.indptr[4])
    seen = {SPLIT.items.ids[item] for item in package.histories.items[rows]}
    (without,), (with_seen,) = package.for_users(["u3"], ITEMS), package.for_users(["u3"], ITEMS, exclude_seen=False)
    assert set(without.items) == set(SPLIT.items.ids) - seen
    assert set(with_seen.items) == set(SPLIT.items.ids)


def test_an_answer_does_not_depend_on_who_else_is_asked(package: Package):
    users = list(SPLIT.users.ids)
    together = package.for_users(users, 5)
    alone = [package.for_users([user], 5)[0] for user in users]
    assert [one.items for one in together] == [one.items for one in alone]


def test_everyone_in_blocks_is_everyone_one_by_one(package: Package, monkeypatch):
    monkeypatch.setattr(packaging, "SCORES_BYTES", 4 * ITEMS * 7)  # seven users a block
    blocks = list(package.everyone(3))
    assert [len(users) for users, _, _ in blocks][:2] == [7, 7]
    items = np.concatenate([items for _, items, _ in blocks])
    for user, row in zip(package.for_users(list(SPLIT.users.ids), 3), items, strict=True):
        assert user.items == [SPLIT.items.ids[item] for item in row]


def test_unknown_items_are_reported_and_left_out(package: Package):
    mixed, plain = package.for_histories([["i1", "nowhere", "i2"], ["i1", "i2"]], 3)
    assert mixed.unknown == ["nowhere"]
    assert mixed.known == 2
    assert mixed.items == plain.items


def test_an_unknown_user_is_a_sentence_with_the_remedy(package: Package):
    with pytest.raises(UserError, match=r"user 'nobody'.*--history"):
        package.for_users(["nobody"], 3)


def test_where_the_model_knows_nothing_recent_popularity_is_listed_and_said(package: Package):
    asked = [Asked(user="u3"), Asked(user="nobody"), Asked(), Asked(history=["zz"]), Asked(history=["zz", "i1"])]
    replies = package.reply(asked, 3)
    assert [one.reason for one in replies] == [None, "unknown user", "empty history", "no known item", None]
    times, histories = package.histories.times, package.histories
    counted = np.bincount(histories.items, 0.5 ** ((times.max() - times) / (30 * DAY)), ITEMS)
    best = np.argsort(-counted, kind="stable")[:3]
    for one in replies[1:4]:
        assert (one.fallback, one.known) == ("recent_popularity", 0)
        assert counted[[int(item[1:]) for item in one.items]] == pytest.approx(counted[best])  # some are as good
        assert one.scores == pytest.approx(counted[best])
    assert replies[3].unknown == replies[4].unknown == ["zz"]
    assert replies[4].items == package.for_histories([["i1"]], 3)[0].items


def test_without_a_clock_popularity_is_plain(place: Path, tmp_path: Path):
    copy = shutil.copytree(place, tmp_path / "copy") / CONTENT
    about = read_json(copy / "about.json")
    write_json(copy / "about.json", {**about, "trained_until": None})
    package = Package.load(copy)
    assert package.reply([Asked()], ITEMS)[0].scores == sorted(np.bincount(package.histories.items), reverse=True)


def test_threads_that_score_at_once_leave_the_path_of_products_as_they_found_it(package: Package):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    seen = []
    score = package.artifact.model.score

    def looking(queries: Queries) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        time.sleep(0.002)
        seen.append(torch.get_float32_matmul_precision())
        return score(queries)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(package.artifact.model, "score", looking)
        list(threads.map(lambda _: package.for_users(["u3"], 2), range(40)))
    assert set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


def test_weights_by_age_count_a_bare_history_as_now(tmp_path: Path):
    aging = {"kind": "exponential", "half_life_days": 1e-9}
    package = packaging.build(trained(tmp_path / "model", aging, l2=5), SPLIT, DATASET, tmp_path / "package")
    newest = int(np.argmax(package.histories.times))
    assert package.histories.weights[newest] == 1.0
    assert package.for_histories([["i1"]], 3)[0].items


def test_the_pyfunc_answers_users_and_histories_in_one_frame(served, package: Package):
    frame = pd.DataFrame({"user_id": ["u3", None], "history": [None, ["i1", "zz"]]})
    answers = served.predict(frame, params={"k": 2})
    assert list(answers.columns) == ["items", "scores", "known", "unknown", "fallback", "reason"]
    assert answers["items"][0] == package.for_users(["u3"], 2)[0].items
    assert answers["items"][1] == package.for_histories([["i1"]], 2)[0].items
    assert answers["unknown"][1] == ["zz"]


def test_the_pyfunc_lets_seen_items_stay_in_where_the_dataset_does_unless_asked(served, tmp_path: Path):
    split = replace(SPLIT, config=GlobalTime(mask_seen=False))
    packaging.build(trained(tmp_path / "model", LINEAR, l2=5), split, DATASET, tmp_path / "package")
    lenient = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    frame, everything = pd.DataFrame({"user_id": ["u3"]}), {"k": ITEMS}
    assert len(lenient.predict(frame, params=everything)["items"][0]) == ITEMS
    strict = served.predict(frame, params=everything)["items"][0]
    assert len(strict) < ITEMS
    assert lenient.predict(frame, params={**everything, "exclude_seen": True})["items"][0] == strict


def test_the_scoring_server_reads_records_that_leave_a_column_out(place: Path):
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    client = TestClient(init(mlflow.pyfunc.load_model(str(place))))
    records = [{"user_id": "u3"}, {"history": ["i1", "i2"]}, {"history": '["i1", "i2"]'}]
    answer = client.post("/invocations", json={"dataframe_records": records, "params": {"k": 2}})
    assert answer.status_code == 200, answer.text
    user, history, text = answer.json()["predictions"]
    assert user["known"] > 0
    assert history == text
    stranger = client.post("/invocations", json={"dataframe_records": [{"user_id": "nobody"}]})
    assert stranger.json()["predictions"][0]["fallback"] == "recent_popularity"
    refused = client.post("/invocations", json={"dataframe_records": [{"user_id": None}]})
    assert refused.status_code == 400
    assert "neither" in refused.text


@pytest.mark.parametrize(
    ("row", "word"), [({"history": "i1, i2"}, "JSON"), ({"history": 7}, "not a list"), ({"user_id": None}, "neither")]
)
def test_a_query_that_asks_nothing_is_refused_with_what_is_wrong(package: Package, row: dict, word: str):
    with pytest.raises(UserError, match=word):
        packaging.answer_frame(package, pd.DataFrame([row]), 3, True)


def test_the_pyfunc_lets_a_given_history_speak_for_an_unknown_user(served):
    frame = pd.DataFrame({"user_id": ["nobody"], "history": [["i1"]]})
    assert served.predict(frame, params={"exclude_seen": False})["known"][0] == 1
    assert served.predict(pd.DataFrame({"user_id": ["nobody"]}))["reason"][0] == "unknown user"
    with pytest.raises(MlflowException, match="neither"):
        served.predict(pd.DataFrame({"user_id": [None]}))


def test_a_flipped_byte_is_found_before_anything_is_served(place: Path, tmp_path: Path):
    copy = shutil.copytree(place, tmp_path / "copy")
    weights = copy / CONTENT / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        mlflow.pyfunc.load_model(str(copy))


def test_a_model_that_answers_otherwise_than_when_packaged_is_refused(place: Path, tmp_path: Path):
    copy = shutil.copytree(place, tmp_path / "copy")
    shutil.rmtree(copy / CONTENT / "model")
    shutil.move(trained(tmp_path / "other", model="popularity.MostPop"), copy / CONTENT / "model")
    with pytest.raises(UserError, match="as when it was packaged"):
        check_golden(copy)


def test_a_model_of_another_split_is_not_packaged(tmp_path: Path):
    other = Split(
        GlobalTime(), SPLIT.users, Vocabulary(tuple(f"j{item}" for item in range(ITEMS))), SPLIT.train, SPLIT.valid,
        SPLIT.test, True,
    )  # fmt: skip
    with pytest.raises(UserError, match="prepared"):
        packaging.build(trained(tmp_path / "model"), other, DATASET, tmp_path / "package")


def test_another_process_loads_the_package_and_gives_the_golden_answers(place: Path):
    load = "from noise2next.registry.packaging import check_golden; check_golden(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"import sys, pathlib; {load}", str(place)], check=True, timeout=60)
