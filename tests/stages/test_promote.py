"""What a person does about the champion, and that it is written down."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mlflow.artifacts
import pytest
from tests.stages.small_shop import ITEMS, POLICY, World, prepare, small_shop
from typer.testing import CliRunner

from noise2next import cli
from noise2next.errors import UserError
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import promote


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    made = small_shop(tmp_path_factory.mktemp("refused"), empty_store)
    made.offer("ease")
    assert not made.offer("twin").promoted
    return made


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    made = small_shop(tmp_path_factory.mktemp("followed"), empty_store)
    made.offer("faint")
    assert made.offer("faint", "ease").promoted
    return made


@pytest.fixture
def two(refused: World, tmp_path: Path) -> World:
    """Version 1 is champion; version 2, no better, was refused."""
    return refused.copy(tmp_path / "copy")


@pytest.fixture
def changed(followed: World, tmp_path: Path) -> World:
    """Version 2 took over from version 1."""
    return followed.copy(tmp_path / "copy")


def ask(world: World, version: str | None = None, force: bool = False, reason: str | None = None):
    return promote.run(world.params, world.space, world.settings, version, force, reason)


def go_back(world: World, reason: str | None = None):
    return promote.rollback(world.space, world.settings, reason)


def told(world: World) -> list[tuple[str, str | None, str, bool]]:
    events = promote.history(world.space, world.settings).events
    assert [one.when for one in events] == sorted(one.when for one in events)
    return [(one.what, one.champion, one.version, one.done) for one in events if one.what != "decision"]


def test_the_gate_asked_again_says_the_same_and_moves_nothing(two: World):
    before = two.aliases()
    report = ask(two)
    assert (report.version, report.promoted, report.unchanged) == ("2", False, False)
    assert two.aliases() == before
    assert [one.passed for one in report.decision.checks].count(False) >= 1
    assert "stays champion" in report.summary


def test_a_challenger_that_one_bad_reading_refused_is_promoted_when_it_is_asked_again(world: World, monkeypatch):
    world.offer("faint")
    with monkeypatch.context() as slow:
        slow.setattr("noise2next.stages.gate.side_by_side", lambda packages: [5000.0, 1.0][: len(packages)])
        assert "latency_ms" in world.offer("faint", "ease").decision.reasons[0]
    report = ask(world)
    assert (report.promoted, report.forced, report.champion, report.previous) == (True, False, "2", "1")
    assert [one[0] for one in told(world)] == ["promotion", "promotion"]


def test_the_champion_has_no_need_of_promotion(two: World):
    report = ask(two, "1")
    assert report.unchanged
    assert report.decision is None


def test_force_moves_the_alias_against_the_gate_and_keeps_the_reason(two: World):
    report = ask(two, "2", force=True, reason="a contract says so")
    assert (report.promoted, report.forced) == (True, True)
    assert not report.decision.promoted
    assert two.aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    last = promote.history(two.space, two.settings).events[-1]
    assert (last.what, last.champion, last.version, last.why[0]) == (
        "forced promotion",
        "1",
        "2",
        "a contract says so",
    )


@pytest.mark.parametrize(
    ("force", "reason", "word"), [(True, None, "--reason"), (True, "  ", "--reason"), (False, "because", "--force")]
)
def test_force_and_reason_go_together(two: World, force: bool, reason: str | None, word: str):
    with pytest.raises(UserError, match=word):
        ask(two, "2", force, reason)
    assert two.aliases()["champion"] == "1"


def test_a_broken_package_is_refused_and_cannot_be_forced(two: World):
    two.damage("2")
    refused = ask(two, "2")
    assert [(one.name, one.passed) for one in refused.decision.checks] == [("integrity", False)]
    with pytest.raises(UserError, match="never forced"):
        ask(two, "2", force=True, reason="I insist")
    assert two.aliases()["champion"] == "1"


def test_a_package_with_other_golden_answers_cannot_be_forced(two: World, monkeypatch):
    def differ(place):
        raise UserError(f"{place}: user 'u1' gets other items")

    monkeypatch.setattr("noise2next.stages.gate.check_golden", differ)
    with pytest.raises(UserError, match=r"other items.*never forced"):
        ask(two, "2", force=True, reason="I insist")
    assert two.aliases()["champion"] == "1"


def test_a_version_that_is_not_there_is_named_with_those_that_are(two: World):
    with pytest.raises(UserError, match=r"no verified version '7'; there are 1, 2"):
        ask(two, "7")


def test_a_version_of_another_catalogue_is_not_judged_but_may_be_forced(two: World):
    prepare(two.space, 2, 1000, [f"j{item}" for item in range(ITEMS)])
    refused = ask(two, "2")
    assert "knows none of today's items" in refused.decision.reasons[0]
    assert ask(two, "2", force=True, reason="the shop was renamed").champion == "2"


def test_a_version_of_older_data_is_judged_on_todays_window_and_that_is_said(two: World):
    prepare(two.space, 2, 1000, [*(f"i{item}" for item in range(ITEMS - 2)), "new-a", "new-b"])
    report = ask(two, "2")
    assert report.decision.occasion.data_version == f"{2:064d}"
    assert report.decision.challenger.data_version == f"{1:064d}"
    assert any("the challenger does not know 2 of 20" in one for one in report.decision.remarks)
    assert any("the champion does not know 2 of 20" in one for one in report.decision.remarks)


def test_every_decision_has_a_page_of_its_own(two: World):
    pages = [mlflow.artifacts.load_text(ask(two).record) for _ in range(2)]
    assert all('was <span class="refused">' in page for page in pages)
    assert pages[0] != pages[1]  # each says when it was asked


def test_a_rollback_changes_places_and_a_second_one_undoes_it(changed: World):
    report = go_back(changed, "complaints")
    assert (report.version, report.replaced, report.reason) == ("1", "2", "complaints")
    assert report.seconds < 5
    assert changed.aliases() == {"challenger": "2", "champion": "1", "previous": "2"}
    go_back(changed)
    assert changed.aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    assert told(changed)[-2:] == [("rollback", "2", "1", True), ("rollback", "1", "2", True)]


def test_a_rollback_does_not_wait_for_a_registration_which_then_finds_its_champion_gone(changed: World):
    compared = changed.registry.champion()
    with changed.registry.alone():
        waiting = threading.Thread(target=go_back, args=[changed], daemon=True)
        waiting.start()
        waiting.join(60)
        assert not waiting.is_alive()
        with pytest.raises(UserError, match="meanwhile"):
            changed.registry.promote(compared, compared, "promotion", "me", [])
    assert changed.aliases()["champion"] == "1"


def test_without_a_previous_champion_there_is_nothing_to_go_back_to(two: World):
    with pytest.raises(UserError, match="no previous champion"):
        go_back(two)
    assert two.aliases()["champion"] == "1"


def test_a_broken_previous_champion_is_not_gone_back_to(changed: World):
    changed.damage("1")
    before = changed.aliases()
    with pytest.raises(UserError, match="sha256"):
        go_back(changed)
    assert changed.aliases() == before


def test_what_was_rolled_back_does_not_return_with_the_next_retraining(changed: World):
    go_back(changed, "complaints")
    again = changed.offer("faint", "ease")
    assert not again.promoted
    assert "was rolled back by" in again.decision.reasons[0]
    assert "complaints" in again.decision.reasons[0]
    assert changed.aliases()["champion"] == "1"
    assert ask(changed, "2", force=True, reason="the complaints were ours").champion == "2"


def test_once_it_has_been_champion_again_its_rollback_is_history(changed: World):
    go_back(changed)
    go_back(changed)
    assert changed.registry.rolled_back(changed.registry.version("2")) is None
    assert changed.registry.rolled_back(changed.registry.version("1")) is not None


@pytest.mark.parametrize("moved", [0, 1])  # aliases before the process is killed
def test_a_move_that_was_killed_did_not_come_about_and_leaves_a_way_back(changed: World, monkeypatch, moved: int):
    class Killed(Exception):
        pass

    go_back(changed)
    go_back(changed)  # champion 2, previous 1
    assert changed.offer("twin").version == "3"
    real, count = ModelRegistry.point, iter(range(9))

    def die(registry, alias, version):
        if next(count) >= moved:
            raise Killed
        real(registry, alias, version)

    with monkeypatch.context() as dying:
        dying.setattr(ModelRegistry, "point", die)
        with pytest.raises(Killed):
            changed.registry.promote(
                changed.registry.version("3"), changed.registry.champion(), "forced promotion", "me", ["why not"]
            )
    assert changed.aliases()["champion"] == "2"
    assert told(changed)[-1] == ("forced promotion", "2", "3", False)
    assert go_back(changed).version == "1"  # not lost, although `previous` may have pointed at the champion itself
    assert told(changed)[-2:] == [("forced promotion", "2", "3", False), ("rollback", "2", "1", True)]


def test_the_history_has_every_decision_with_who_and_why(changed: World):
    events = promote.history(changed.space, changed.settings).events
    assert [(one.what, one.version, one.promoted) for one in events] == [
        ("decision", "1", True),
        ("promotion", "1", True),
        ("decision", "2", True),
        ("promotion", "2", True),
    ]
    assert all("@" in one.by and one.why for one in events)


def test_before_any_registration_there_is_no_history_and_nothing_to_promote(world: World):
    assert promote.history(world.space, world.settings).events == []
    with pytest.raises(UserError, match="no challenger"):
        ask(world)
    with pytest.raises(UserError, match="no champion yet"):
        go_back(world)


def test_the_three_commands_print_one_document_each(changed: World, monkeypatch: pytest.MonkeyPatch):
    from ruamel.yaml import YAML

    with changed.space.params.open("w") as file:
        YAML().dump(changed.params.model_dump(mode="json", exclude={"latent_variants"}), file)
    monkeypatch.setenv("NOISE2NEXT_ROOT", str(changed.space.root))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, [*arguments, "--dataset", "shop"], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert json.loads(call("rollback", "--reason", "complaints", "--json"))["version"] == "1"
    assert not json.loads(call("promote", "--json"))["promoted"]
    forced = json.loads(call("promote", "--version", "2", "--force", "--reason", "better now", "--json"))
    assert (forced["forced"], forced["champion"]) == (True, "2")
    events = json.loads(call("history", "--json"))["events"]
    assert [one["what"] for one in events[4:]] == ["rollback", "decision", "decision", "forced promotion"]
    shown = call("history")
    assert "better now" in shown
    assert "complaints" in shown
    assert "champion now: 2" in shown
    assert "was not promoted" in call("promote", "--version", "1")
    with pytest.raises(UserError, match="--reason"):
        call("promote", "--force")


def test_a_registration_asks_about_the_groups_and_the_lists_of_the_champion_too(world: World):
    world.space.promotion_policy.write_text(
        POLICY
        + "groups: {margins: {light: 0.5, heavy: 0.5}, least_users: 10}\nof_champion: {coverage@5: {at_least: 0.1}}\n"
    )
    world.offer("faint")
    names = [one.name for one in world.offer("faint", "ease").decision.checks]
    assert any(name.startswith("recall@5 of light users (at most") for name in names)
    assert any(name.startswith("recall@5 of heavy users (more than") for name in names)
    assert "coverage@5 beside the champion's" in names
