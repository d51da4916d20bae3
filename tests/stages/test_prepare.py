from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from noise2next.config import Params
from noise2next.data import preparation
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.stages import ingest, prepare
from noise2next.workspace import Workspace, digest, read_json, verify, write_json, writing

CLOCK = {"path": "log.csv", "format": "delimited", "columns": {"time": "time", "rating": "rating"}, "time_unit": "s"}


def params(**dataset: Any) -> Params:
    return Params.model_validate({"datasets": {"shop": CLOCK | dataset}, "variants": {}})


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """With 300 ingested rows, a second after each other from the start of 1970."""
    place, rng, n = Workspace(tmp_path, "shop"), np.random.default_rng(0), 300
    log = pd.DataFrame({"user": rng.integers(0, 10, n).astype(str), "item": rng.integers(0, 30, n).astype(str)})
    log = log.assign(
        time=np.arange(n) * 1_000_000, rating=5.0, split=np.resize(["train", "valid", "test"], n), row=range(n)
    )
    with writing(place.ingested) as folder:
        log.to_parquet(folder / "interactions.parquet", index=False)
    return place


def test_the_report_says_what_the_files_hold(space: Workspace) -> None:
    report = prepare.run(params(k_core=2, positive="rating >= 4"), space)
    split = Split.load(space.prepared, params().dataset("shop").split, has_clock=True)
    assert (len(split.users), len(split.items)) == (report.users, report.items_in_train)
    assert (len(split.train), len(split.valid), len(split.test)) == (report.train, report.valid, report.test)
    assert report.train + report.valid + report.test == report.rows["after_k_core"]
    assert report.rows["ingested"] == report.rows["positive"] == 300
    assert report.unlearnable["test"] == (split.test.items < 0).sum()
    assert read_json(space.prepared / "report.json") == report.model_dump(mode="json")
    assert report.leakage == []


def test_what_became_of_the_rows_is_told(space: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        rows = prepare.run(params(k_core=6), space).rows
    repeats, core = rows["positive"] - rows["after_repeats"], rows["after_repeats"] - rows["after_k_core"]
    assert min(repeats, core) > 0
    told = f"shop: {rows['after_k_core']} rows of 300 ({repeats} repeats, {core} outside the 6-core), "
    assert told in caplog.text


def held(space: Workspace, success: bool) -> None:
    """What `validate` leaves behind."""
    found = {"success": success, "ingested": digest(space.ingested), "breaches": ["broken"], "docs": "d", "remedy": "r"}
    with writing(space.validation) as folder:
        write_json(folder / "report.json", found)


def test_a_log_that_failed_its_contract_is_not_prepared_until_it_is_another_or_passes(space: Workspace) -> None:
    held(space, success=False)
    with pytest.raises(UserError, match=r"failed the contract \(broken\).*noise2next validate"):
        prepare.run(params(), space)
    assert not space.prepared.exists()
    log = pd.read_parquet(space.ingested / "interactions.parquet")
    with writing(space.ingested) as folder:
        log.iloc[1:].to_parquet(folder / "interactions.parquet", index=False)
    prepare.run(params(), space)  # another log, not held yet
    held(space, success=True)
    prepare.run(params(), space)


def test_a_damaged_log_is_named_and_not_prepared(space: Workspace) -> None:
    (space.ingested / "interactions.parquet").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"interactions\.parquet: its sha256"):
        prepare.run(params(), space)


@pytest.mark.parametrize("name", ["train.parquet", "users.parquet", "report.json"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_split_is_a_sentence_with_the_command_that_makes_it_again(
    space: Workspace, name: str, gone: bool
) -> None:
    prepare.run(params(), space)
    (space.prepared / name).unlink() if gone else (space.prepared / name).write_bytes(b"garbage")
    with pytest.raises(UserError, match=rf"{name}: .*`noise2next prepare --dataset shop` makes the folder again"):
        Split.load(space.prepared, params().dataset("shop").split, has_clock=True)


def test_cuts_are_told_as_times_of_day(space: Workspace) -> None:
    assert prepare.run(params(repeats="keep"), space).cuts == {
        "valid": "1970-01-01T00:04:00+00:00",
        "test": "1970-01-01T00:04:30+00:00",
    }
    assert prepare.run(params(split={"kind": "leave_one_out"}), space).cuts is None


def test_preparing_again_gives_the_same_bytes_and_another_split_others(space: Workspace) -> None:
    first = prepare.run(params(), space)
    content = digest(space.prepared)
    assert prepare.run(params(), space) == first
    assert digest(space.prepared) == content
    assert prepare.run(params(split={"kind": "leave_one_out"}), space).data_version != first.data_version


def test_only_the_outputs_are_left_behind(space: Workspace) -> None:
    prepare.run(params(k_core=2), space)
    names = {"train.parquet", "valid.parquet", "test.parquet", "users.parquet", "items.parquet", "report.json"}
    assert set(verify(space.prepared)) == names
    assert {path.name for path in space.artifacts.iterdir() if path.is_dir()} == {"ingest", "prepare"}


def test_a_leak_stops_the_stage_and_changes_nothing(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.run(params(), space)
    before = digest(space.prepared)
    monkeypatch.setattr(preparation, "leakage", lambda *_: ["3 training rows lie outside their window"])
    with pytest.raises(UserError, match="3 training rows"):
        prepare.run(params(repeats="keep"), space)
    assert digest(space.prepared) == before


def test_a_refusal_changes_nothing(space: Workspace) -> None:
    prepare.run(params(), space)
    before = digest(space.prepared)
    with pytest.raises(UserError, match=r"datasets\.shop\.k_core"):
        prepare.run(params(k_core=500), space)
    assert digest(space.prepared) == before


def test_a_log_that_is_not_ingested_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise2next ingest"):
        prepare.run(params(), Workspace(tmp_path, "shop"))


def test_a_log_with_repeated_row_numbers_leaks_and_is_refused(space: Workspace) -> None:
    log = pd.read_parquet(space.ingested / "interactions.parquet").assign(row=7)
    with writing(space.ingested) as folder:
        log.to_parquet(folder / "interactions.parquet", index=False)
    with pytest.raises(UserError, match="it leaks: 299 rows are in the split more than once"):
        prepare.run(params(repeats="keep"), space)


@pytest.mark.parametrize(
    ("dataset", "note"),
    [
        ({"format": "diffrec", "split": {"kind": "official", "history": "train"}}, "older than the validation rows"),
        ({"format": "diffurec", "split": {"kind": "official"}}, "not applied"),
        ({"split": {"kind": "random"}}, "nothing about the future"),
        ({"k_core": 2}, "depends on later rows too"),
        ({"repeats": "last"}, "comes back to the item later"),
    ],
)
def test_what_a_reader_of_the_numbers_must_know_is_noted(space: Workspace, dataset: dict[str, Any], note: str) -> None:
    assert any(note in one for one in prepare.run(params(**dataset), space).notes)
    assert prepare.run(params(), space).notes == []


@pytest.mark.parametrize(("missing", "remedy"), [("pyspark", "install noise2next"), ("java", "install Java 17")])
def test_spark_without_its_needs_names_the_remedy(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, missing: str, remedy: str
) -> None:
    if missing == "pyspark":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setenv("JAVA_HOME", "/nowhere")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    spark = params().model_copy(update={"engine": "spark"})
    with pytest.raises(UserError, match=f"{remedy}.*engine: duckdb"):
        prepare.run(spark, space)


@pytest.mark.real
def test_movielens_is_filtered_as_published(tmp_path: Path, shared: Path) -> None:
    asked = params(
        path="ml-1m.zip",
        member="ml-1m/ratings.dat",
        separator="::",
        header=False,
        columns={"user": "1", "item": "2", "rating": "3", "time": "4"},
        positive="rating >= 4",
        k_core=10,
        split={"kind": "per_user_ratio"},
    )
    place = Workspace(tmp_path, "shop")
    place.data.mkdir()
    shutil.copy(shared / "raw" / "ml-1m_partial.zip", place.data / "ml-1m.zip")
    ingest.run(asked, place)
    report = prepare.run(asked, place)
    assert report.rows == {
        "ingested": 663_062,
        "positive": 575_281,
        "after_repeats": 575_281,
        "after_k_core": 571_531,
    }
    users = pd.read_parquet(shared / "diffrec_official" / "ml-1m_users_map.parquet")["movielens_user_id"]
    items = pd.read_parquet(shared / "diffrec_official" / "ml-1m_clean_items_map.parquet")["movielens_movie_id"]
    split = Split.load(place.prepared, asked.dataset("shop").split, has_clock=True)
    assert split.users.ids == tuple(str(one) for one in sorted(users))
    assert split.items.ids == tuple(str(one) for one in sorted(items))
    assert (len(split.users), len(split.items)) == (5_949, 2_810)
