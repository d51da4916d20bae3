"""Recommendations for a user, a history and everyone; from the champion or from a variant."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.config import Params, RecommendationsConfig, Settings
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.registry import packaging
from noise2next.registry.packaging import CONTENT
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import denoise, evaluate, recommend, register, train
from noise2next.workspace import Workspace, read_json, write_json, writing

USERS, ITEMS = 30, 10


class World(NamedTuple):
    params: Params
    space: Workspace
    settings: Settings


VARIANTS = {
    "most_pop": {"model": "noise2next.models.popularity.MostPop"},
    "ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 5}},
    "drawn": {
        "model": "noise2next.models.diffrec.DiffRec",
        "options": {"steps": 4, "hidden": [8], "schedule": "cosine", "parameterisation": "eps", "sampling_steps": 4},
        "trainer": {"epochs": 2},
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with _world(tmp_path_factory.mktemp("shop"), "ease") as made:
        for name in ("most_pop", "drawn"):
            train.run(made.params, made.space, made.settings, name)
        yield made


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Its champion draws."""
    with _world(tmp_path_factory.mktemp("casino"), "drawn") as made:
        yield made


@contextlib.contextmanager
def _world(root: Path, champion: str) -> Iterator[World]:
    """A shop that has names for most of its items."""
    shop = {"path": "s.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"}
    params = Params.model_validate(
        {
            "datasets": {"shop": {**shop, "names": {"path": "titles.csv", "item": "id", "name": "title"}}},
            "variants": VARIANTS,
            "trainer": {"metric": "recall@5"},
            "evaluation": {"cutoffs": [5], "bootstrap_samples": 20},
        }
    )
    space, settings = Workspace(root, "shop"), Settings(root=root, device="cpu")
    space.promotion_policy.parent.mkdir()
    space.promotion_policy.write_text("metric: recall@5\n")
    space.data.mkdir()
    titles = [f'i{item},"Title, {item}"\n' for item in range(ITEMS - 1)]
    (space.data / "titles.csv").write_text("id,title\n" + "".join(titles))
    _prepare(space)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        train.run(params, space, settings, champion)
        evaluate.run(params, space, settings, champion)
        register.run(params, space, settings)
        yield World(params, space, settings)


def _prepare(space: Workspace) -> None:
    """The last user's only item is one that training never saw."""
    draw = np.random.default_rng(1)
    with writing(space.prepared) as folder:
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(f"i{item}" for item in range(ITEMS))).save(folder / "items.parquet")
        for at, (name, rows) in enumerate({"train": 100, "valid": 40, "test": 40}.items()):
            users = np.sort(draw.integers(0, USERS - 1, rows))
            items = (draw.integers(0, 5, rows) + 5 * (users % 2)).astype(np.int32)
            if name == "test":
                users, items = np.append(users, USERS - 1), np.append(items, np.int32(-1))
            times = 1000 * at + np.arange(len(users))
            pq.write_table(
                pa.table({"user": users.astype(np.int32), "item": items, "time": times}), folder / f"{name}.parquet"
            )
        write_json(folder / "report.json", {"data_version": "1" * 64, "items": ITEMS, "notes": []})


def test_a_user_gets_unseen_items_best_first_from_the_champion(world: World):
    report = recommend.for_user(*world, "u3", 4)
    assert (report.model, report.version, report.variant) == ("noise2next-shop", "1", "ease")
    assert report.data_version == "1" * 64
    assert report.scores == sorted(report.scores, reverse=True)
    seen = _seen(world, 3)
    assert len(report.items) == min(4, ITEMS - len(seen))
    assert not seen & set(report.items)


def test_a_history_that_nobody_has_is_answered_in_its_own_taste(world: World):
    report = recommend.for_history(*world, ["i0", "i1", "i2", "nowhere"], 2)
    assert set(report.items) == {"i3", "i4"}
    assert report.unknown == ["nowhere"]
    assert report.known == 3


def test_a_variant_that_was_never_registered_answers_when_named(world: World):
    report = recommend.for_history(*world, ["i0"], 2, "most_pop")
    assert report.variant == "most_pop"
    assert report.version is None


def test_items_are_shown_by_name_where_the_data_has_one(world: World):
    report = recommend.for_history(*world, ["i0"], ITEMS)
    said = dict(zip(report.items, report.names, strict=True))
    assert said["i3"] == "Title, 3"
    assert said["i9"] == "i9"
    unnamed = world.params.model_copy(
        update={"datasets": {"shop": world.params.datasets["shop"].model_copy(update={"names": None})}}
    )
    assert recommend.for_history(unnamed, world.space, world.settings, ["i0"], 3).names == []


@pytest.mark.parametrize("variant", [None, "drawn"], ids=["champion", "variant"])
def test_draws_come_with_their_shares_and_their_diversity(drawing: World, variant: str | None):
    report = recommend.for_user(*drawing, "u3", 2, variant, 8)
    assert isinstance(report, recommend.DrawnReport)
    assert report.shares == sorted(report.shares, reverse=True)
    assert all(round(8 * share) == pytest.approx(8 * share) and share > 0 for share in report.shares)
    assert report.draws == 8
    assert 0 < report.diversity < 1
    assert report.distinct > 2 == len(report.items)
    assert report == recommend.for_user(*drawing, "u3", 2, variant, 8)
    assert not _seen(drawing, 3) & set(report.items)


def test_draws_of_a_history_report_what_is_unknown(drawing: World):
    report = recommend.for_history(*drawing, ["i0", "nowhere"], 3, None, 5)
    assert (report.known, report.unknown, report.user) == (1, ["nowhere"], None)
    assert report.names == [f"Title, {item[1:]}" if item != "i9" else item for item in report.items]


def test_drawing_leaves_the_models_own_list_as_it_was(drawing: World):
    opened = recommend.open_model(*drawing, None)
    before = opened.package.for_users(["u3"], 4)
    opened.package.draw(opened.ask_user("u3"), 4, 6)
    assert opened.package.for_users(["u3"], 4) == before


def _seen(world: World, user: int) -> set[str]:
    return {
        f"i{item}"
        for name in ("train", "valid", "test")
        for one, item, _ in pq.read_table(world.space.prepared / f"{name}.parquet").to_pandas().itertuples(index=False)
        if one == user
    }


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_list_is_drawn_step_by_step_to_the_list_that_is_recommended(drawing: World, tmp_path: Path, kind: str):
    report = denoise.run(*drawing, "u3", 4, tmp_path / f"list.{kind}")
    assert report.items == recommend.for_user(*drawing, "u3", 4).items
    assert report.steps == [3, 2, 1, 0]
    assert [one.item for one in report.courses][:4] == report.items
    assert [one.ranks[-1] for one in report.courses][:4] == [1, 2, 3, 4]
    assert all(one.ranks[-1] > 4 >= min(one.ranks) for one in report.courses[4:])
    for step in range(4):
        ranks = [one.ranks[step] for one in report.courses]
        assert len(set(ranks)) == len(ranks)
        assert {1, 2, 3, 4} <= set(ranks)
    first = (tmp_path / f"list.{kind}").read_bytes()
    assert first[:5] in (b"<?xml", b"\x89PNG\r")
    denoise.run(*drawing, "u3", 4, tmp_path / f"again.{kind}")
    assert (tmp_path / f"again.{kind}").read_bytes() == first


def test_the_example_is_the_first_judged_user(drawing: World):
    report = denoise.example(*drawing, "drawn")
    table = pq.read_table(drawing.space.evaluation("drawn") / "per_user.parquet").to_pandas()
    assert report is not None
    assert report.user == table[table["part"] == "test"]["user"].iloc[0]
    assert denoise.example(*drawing, "ease") is None


def test_an_evaluation_says_what_the_draws_of_a_model_are_good_for(drawing: World, world: World):
    found = evaluate.EvaluationReport.model_validate(read_json(drawing.space.evaluation("drawn") / "report.json"))
    assert found.draws is not None
    assert (found.draws.draws, found.draws.cutoff) == (10, 5)
    assert found.draws.users == found.users["test"]
    assert set(found.draws.gain) == {"recall@5", "ndcg@5"}
    assert read_json(world.space.evaluation("ease") / "report.json")["draws"] is None


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (lambda world: recommend.for_user(*world, "nobody", 3), "nobody.*--history"),
        (lambda world: recommend.for_user(*world, f"u{USERS - 1}", 3), "none of this user's items"),
        (lambda world: recommend.for_history(*world, ["nowhere"], 3), "nowhere"),
        (lambda world: recommend.for_history(*world, ["i1"], 3, "best"), "no variant 'best'"),
        (lambda world: recommend.for_all(*world, world.space.root, 3), "folder"),
        (lambda world: recommend.for_user(*world, "u3", 3, None, 5), "ease of shop does not draw.*leave --draws out"),
        (lambda world: recommend.for_history(*world, ["i1"], 3, "most_pop", 5), "most_pop of shop does not draw"),
        (lambda world: denoise.run(*world, "u3", 3, Path("list.gif"), "drawn"), "list.gif.*\\.svg or \\.png"),
        (lambda world: denoise.run(*world, "u3", 3, Path("list.svg")), "ease.*not come about in steps"),
        (lambda world: denoise.run(*world, "nobody", 3, Path("list.svg"), "drawn"), "nobody"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(world: World, ask, word: str):
    with pytest.raises(UserError, match=word):
        ask(world)


def test_everyone_is_in_the_table_as_if_asked_alone(world: World, tmp_path: Path):
    report = recommend.for_all(*world, tmp_path / "new" / "all.parquet", 3)
    table = pq.read_table(report.path).to_pandas()
    assert report.users == USERS - 1
    assert report.left_out == 1  # the user of whom the model knows nothing
    assert report.rows == len(table)
    assert set(table["model_version"]) == {"1"}
    assert set(table["data_version"]) == {"1" * 64}
    for user in ("u0", "u7", "u28"):
        mine = table[table["user"] == user]
        alone = recommend.for_user(*world, user, 3)
        assert mine["item"].tolist() == alone.items
        assert mine["rank"].tolist() == list(range(1, len(alone.items) + 1))
        np.testing.assert_allclose(mine["score"], alone.scores, rtol=1e-6)


def test_a_table_that_fails_half_way_leaves_the_old_one(world: World, tmp_path: Path, monkeypatch):
    out = tmp_path / "all.parquet"
    out.write_bytes(b"yesterday's")

    class Died(Exception):
        pass

    def half(*_: object) -> Iterator[pa.Table]:
        raise Died
        yield

    monkeypatch.setattr(recommend, "_tables", half)
    with pytest.raises(Died):
        recommend.for_all(*world, out, 3)
    assert out.read_bytes() == b"yesterday's"
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]


NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture
def shop(world: World, tmp_path: Path) -> World:
    """A copy of the world, in which no table is kept yet."""
    root = shutil.copytree(world.space.root, tmp_path / "shop")
    return World(world.params, Workspace(root, "shop"), Settings(root=root, device="cpu"))


def test_the_kept_table_is_the_file_that_anyone_may_have_with_its_time(shop: World, tmp_path: Path):
    report = recommend.run(*shop, NOW)
    assert Path(report.path).parent == shop.space.recommended("1", "1" * 64)
    table, file = pq.read_table(report.path), recommend.for_all(*shop, tmp_path / "all.parquet", report.k)
    assert set(table.column("time").to_pylist()) == {NOW}
    assert table.schema == pq.read_table(file.path).schema
    assert table.drop(["time"]) == pq.read_table(file.path).drop(["time"])
    assert (report.users, report.rows, report.left_out) == (file.users, file.rows, 1)
    assert report.known_until is not None
    assert report.known_until == max(
        pq.read_table(shop.space.prepared / f"{part}.parquet").column("time").to_numpy().max()
        for part in ("train", "valid", "test")
    )
    assert recommend.kept(Path(report.path).parent) == report


def test_a_table_once_made_stays_as_it_is_until_it_is_damaged_or_asked_for_otherwise(shop: World):
    first = recommend.run(*shop, NOW)
    assert recommend.run(*shop) == first
    Path(first.path).write_bytes(b"half")
    second = recommend.run(*shop)
    assert second.made > first.made
    longer = shop.params.model_copy(update={"recommendations": RecommendationsConfig(k=3)})
    assert recommend.run(longer, shop.space, shop.settings).k == 3
    assert len(shop.space.kept_recommendations()) == 1


def test_what_the_test_window_promised_is_kept_with_the_table_where_it_was_measured_at_its_k(shop: World, caplog):
    assert recommend.run(*shop, NOW).offline is None  # 20 is no cutoff here
    assert "recommendations.k is 20 and evaluation.cutoffs is without it" in caplog.text
    at_five = shop.params.model_copy(update={"recommendations": RecommendationsConfig(k=5)})
    evaluate.run(*shop, "most_pop")
    promised = recommend.run(at_five, shop.space, shop.settings).offline
    judged = {
        name: read_json(shop.space.evaluation(name) / "report.json")["metrics"]["test"]["recall@5"]["mean"]
        for name in ("ease", "most_pop")
    }
    assert promised == recommend.Offline(recall=judged["ease"], popularity=judged["most_pop"])


def test_of_more_tables_than_are_kept_the_oldest_go(shop: World):
    few = shop.params.model_copy(update={"recommendations": RecommendationsConfig(keep=2)})
    mine = Path(recommend.run(few, shop.space, shop.settings, NOW).path).parent
    for age in (1, 2, 3):
        with writing(shop.space.recommended("0", f"{age}")) as folder:
            write_json(folder / "report.json", {"made": (NOW - timedelta(days=age)).isoformat()})
    remade = few.model_copy(update={"recommendations": RecommendationsConfig(keep=2, k=3)})
    recommend.run(remade, shop.space, shop.settings, NOW - timedelta(days=9))  # never the one just made
    assert sorted(shop.space.kept_recommendations()) == sorted([mine, shop.space.recommended("0", "1")])


@pytest.mark.parametrize("end", ["raise RuntimeError", "os.kill(os.getpid(), 9)"], ids=["raises", "is killed"])
def test_a_writer_that_dies_half_way_leaves_the_tables_as_they_were(shop: World, end: str):
    kept = Path(recommend.run(*shop, NOW).path)
    before = kept.read_bytes()
    longer = shop.params.model_copy(update={"recommendations": RecommendationsConfig(k=4)})
    code = f"""
import os, sys
from noise2next.config import Params, RecommendationsConfig, Settings
from noise2next.registry import packaging
from noise2next.stages import recommend
from noise2next.workspace import Workspace
packaging.SCORES_BYTES = 1  # a block is one user
whole = recommend._tables
def half(*arguments):
    blocks = whole(*arguments)
    yield next(blocks)
    {end}
recommend._tables = half
root = __import__("pathlib").Path(sys.argv[2])
recommend.run(Params.model_validate_json(sys.argv[1]), Workspace(root, "shop"), Settings(root=root, device="cpu"))
"""
    root = shop.space.root
    done = subprocess.run(
        [sys.executable, "-c", code, longer.model_dump_json(), str(root)], capture_output=True, check=False
    )
    assert done.returncode in (1, -9)
    assert shop.space.kept_recommendations() == [kept.parent]
    assert kept.read_bytes() == before
    assert recommend.run(longer, shop.space, shop.settings).k == 4
    assert [one.name for one in kept.parent.parent.iterdir() if one.is_dir()] == [kept.parent.name]


def test_no_more_than_a_block_of_users_is_held_at_a_time(shop: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packaging, "SCORES_BYTES", 4 * ITEMS * 4)  # four users' scores
    report = recommend.run(*shop, NOW)
    groups = pq.ParquetFile(report.path).metadata
    assert groups.num_row_groups == math.ceil(USERS / 4)
    assert max(groups.row_group(at).num_rows for at in range(groups.num_row_groups)) <= 4 * report.k


def test_a_champion_that_fails_its_manifest_is_never_asked(world: World):
    registry = ModelRegistry(world.settings, world.space)
    golden = registry.fetch(registry.champion()) / CONTENT / "golden.json"
    before = golden.read_bytes()
    golden.write_bytes(before + b" ")
    with pytest.raises(UserError, match="sha256"):
        recommend.for_user(*world, "u3", 3)
    golden.write_bytes(before)


def test_without_a_champion_the_remedy_is_named(world: World):
    empty = Workspace(world.space.root, "bazaar")
    params = world.params.model_copy(update={"datasets": {"bazaar": world.params.datasets["shop"]}})
    with pytest.raises(UserError, match="no champion yet"):
        recommend.for_user(params, empty, world.settings, "u1", 3)
