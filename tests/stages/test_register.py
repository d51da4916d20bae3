"""From evaluated variants to a champion: the order of things, and what a bad day leaves as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow.artifacts
import pytest
from tests.stages.small_shop import ITEMS, POLICY, World, prepare

from noise2next.config import Settings
from noise2next.errors import UserError
from noise2next.registry import packaging, versions
from noise2next.registry.packaging import CONTENT
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import register
from noise2next.workspace import Workspace, digest


def test_the_first_model_above_the_floors_is_champion_and_its_decision_is_kept(world: World):
    report = world.offer("ease")
    assert report.chosen == "ease"
    assert report.promoted
    assert world.aliases() == {"challenger": "1", "champion": "1"}
    champion = world.registry.champion()
    assert champion.tags["verified"] == "true"
    assert json.loads(champion.tags["decision"]) == json.loads(report.decision.model_dump_json())
    assert mlflow.artifacts.load_dict(report.record.replace(".html", ".json"))["promoted"] is True
    page = mlflow.artifacts.load_text(report.record)
    assert page == (world.space.registration / "decision.html").read_text()
    assert "let through" in page
    assert json.loads((world.space.registration / "report.json").read_text())["champion"] == "1"


def test_a_copied_project_reads_its_own_packages(world: World, tmp_path: Path):
    world.offer("ease")
    copy = Workspace(tmp_path / "copy", "shop")
    copy.root.mkdir()
    shutil.copy(world.space.tracking_store, copy.tracking_store)
    shutil.copytree(world.space.tracking_artifacts, copy.tracking_artifacts)
    registry = versions.ModelRegistry(Settings(root=copy.root, device="cpu"), copy)
    found = registry.fetch(registry.champion())
    assert found.is_relative_to(copy.tracking_artifacts)
    assert world.registry.fetch(world.registry.champion()).is_relative_to(world.space.tracking_artifacts)


def test_of_packages_fetched_from_elsewhere_those_that_nobody_asks_for_any_more_go(world: World, monkeypatch):
    world.offer("ease")
    registry = world.registry
    here = registry.fetch(registry.champion())
    monkeypatch.setattr(versions, "KEPT_PACKAGES", 2)
    monkeypatch.setattr(registry.client, "get_model_version_download_uri", lambda *_: "s3://elsewhere/model")
    monkeypatch.setattr(
        mlflow.artifacts, "download_artifacts", lambda dst_path, **_: shutil.copytree(here, Path(dst_path) / "model")
    )
    for number in "1213":
        place = registry.fetch(SimpleNamespace(version=number, tags={"digest": digest(here)}))
        assert digest(place) == digest(here)
    assert sorted(one.name for one in world.space.packages()) == ["1", "3"]


def test_the_same_weights_again_make_no_new_version(world: World):
    world.offer("ease")
    again = world.offer("ease")
    assert again.unchanged
    assert again.champion == "1"
    assert world.count() == 1


def test_a_better_model_takes_over_and_the_old_champion_is_previous(world: World):
    first = world.offer("faint")
    assert first.promoted, first.summary
    second = world.offer("faint", "ease")
    assert second.promoted, second.summary
    assert world.aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    assert second.decision.champion.variant == "faint"


def test_a_model_that_is_no_better_leaves_the_champion_and_is_registered_once(world: World):
    world.offer("ease")
    for _ in range(2):
        report = world.offer("twin")
        assert not report.promoted
        assert "stays champion" in report.summary
        assert world.aliases() == {"challenger": "2", "champion": "1"}
        assert world.count() == 2


def test_where_nothing_beats_the_baseline_the_baseline_is_the_first_champion(world: World):
    policy = world.space.promotion_policy
    policy.write_text(POLICY.replace("baseline: {variant: most_pop}", "baseline: {variant: most_pop, margin: 1000}"))
    report = world.offer("ease")
    assert report.chosen == "ease"
    assert report.promoted
    champion = world.registry.champion()
    assert champion.tags["variant"] == "most_pop"
    assert "was not promoted" in report.summary
    assert "is champion" in report.summary


def test_a_champion_of_older_data_is_judged_on_todays_users_through_its_own_items(world: World):
    world.offer("ease")
    prepare(world.space, 2, 1000, [*(f"i{item}" for item in range(ITEMS - 2)), "new-a", "new-b"])
    report = world.offer("ease")
    assert report.version == "2"
    assert report.decision.champion.data_version == f"{1:064d}"
    assert any("does not know 2 of 20 items" in one for one in report.decision.reasons)


def test_a_champion_of_another_catalogue_is_not_compared_and_that_is_said(world: World):
    world.offer("ease")
    prepare(world.space, 2, 1000, [f"j{item}" for item in range(ITEMS)])
    report = world.offer("ease")
    assert report.promoted
    assert any("knows none of today's items" in one for one in report.decision.reasons)
    assert world.aliases() == {"challenger": "2", "champion": "2", "previous": "1"}


def test_a_damaged_champion_does_not_bar_the_way(world: World):
    world.offer("faint")
    world.damage("1")
    report = world.offer("ease")
    assert report.champion == "2"
    assert any("could not be compared" in one for one in report.decision.reasons)


def test_a_package_that_comes_back_changed_gets_no_alias(world: World, monkeypatch: pytest.MonkeyPatch):
    world.offer("faint")
    before = world.aliases()
    send = type(world.registry.client).log_model_artifacts

    def broken(client, model_id: str, local_dir: str) -> None:
        target = Path(local_dir) / CONTENT / "golden.json"
        target.write_bytes(target.read_bytes().replace(b"u", b"v", 1))
        send(client, model_id, local_dir)

    monkeypatch.setattr(type(world.registry.client), "log_model_artifacts", broken)
    with pytest.raises(UserError, match="sha256"):
        world.offer("ease")
    assert world.aliases() == before
    monkeypatch.undo()
    assert world.offer("ease").champion == "3"  # the broken version 2 is never offered again


def test_a_registration_that_dies_before_the_last_step_leaves_the_champion(world: World, monkeypatch):
    world.offer("faint")

    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(ModelRegistry, "promote", die)
    with pytest.raises(Killed):
        world.offer("ease")
    assert world.aliases()["champion"] == "1"
    monkeypatch.undo()
    assert world.offer("ease").champion == "2"
    assert world.count() == 2


def test_the_alias_moves_only_over_the_champion_that_was_compared(world: World):
    world.offer("faint")
    world.offer("ease")
    registry = world.registry
    with pytest.raises(UserError, match="meanwhile"):
        registry.promote(registry.champion(), registry.at("previous"), "promotion", "me", [])
    assert world.aliases() == {"challenger": "2", "champion": "2", "previous": "1"}


def test_without_an_evaluation_there_is_nothing_to_register(world: World):
    with pytest.raises(UserError, match="no variant can be registered"):
        register.run(world.params, world.space, world.settings)


def test_an_experiment_with_noise_is_never_offered(world: World):
    report = world.offer("faint", "noised")
    assert report.chosen == "faint"
    assert "noise" in report.left_out["noised"]


def test_a_policy_with_an_unknown_key_stops_before_the_registry_is_touched(world: World):
    world.offer("faint")
    world.space.promotion_policy.write_text(POLICY + "superority: 0.1\n")
    with pytest.raises(UserError, match=r"promotion\.yaml.*superority"):
        world.offer("ease")
    assert world.count() == 1


def test_a_size_limit_counts_every_file_of_the_package(world: World):
    report = world.offer("ease")
    place = world.registry.fetch(world.registry.champion())
    assert report.size_mb == pytest.approx(packaging.size_mb(place), abs=0.001)
