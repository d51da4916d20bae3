"""The gate: what it lets through, what it stops, and how often chance fools it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from noise2next.errors import UserError
from noise2next.registry.promotion import (
    Bootstrap,
    Contender,
    Decision,
    Judged,
    Occasion,
    Policy,
    Version,
    decide,
    lower_bounds,
    questions,
    refuse,
)
from noise2next.registry.record import render

ASKED: dict[str, Any] = {
    "metric": "recall@20",
    "bootstrap": {"samples": 500, "level": 0.95, "seed": 1},
    "guards": {"ndcg@20": 0.02},
    "groups": {"quantile": 0.5, "margins": {"light": 0.1, "heavy": 0.1}, "least_users": 100},
    "baseline": {"variant": "most_pop"},
    "floors": {"coverage@20": 0.1},
    "ceilings": {"popularity@20": 0.9},
    "of_champion": {"coverage@20": {"at_least": 0.7}, "popularity@20": {"at_most": 1.5}},
    "limits": {"latency_ms": 20, "size_mb": 10},
}
POLICY = Policy.model_validate(ASKED)
PLAIN = POLICY.model_copy(update={"groups": None})
NEW = Version(version="2", variant="diffrec", data_version="d", fingerprint="new")
OLD = Version(version="1", variant="ease", data_version="d", fingerprint="old")
OCCASION = Occasion(dataset="shop", data_version="d", split="global_time", by="me@here", when="2026-01-31T12:00:00.0Z")
USERS = tuple(f"u{user}" for user in range(400))
LENGTHS = np.arange(400)
LIGHT = LENGTHS < 200
BASE = np.random.default_rng(0).beta(1, 4, len(USERS))
SPREAD = {"coverage@20": 0.5, "popularity@20": 100.0}


def judged(recall: NDArray[Any], ndcg: NDArray[Any] | None = None, **lists: float) -> Judged:
    metrics = {"recall@20": recall.astype(np.float32), "ndcg@20": (BASE if ndcg is None else ndcg).astype(np.float32)}
    return Judged(USERS, LENGTHS, metrics, {**SPREAD, **{f"{name}@20": value for name, value in lists.items()}})


def popular(recall: NDArray[Any], popularity: float = 300.0) -> Judged:
    return judged(recall, popularity=popularity)


def contender(of: Judged, version: Version = NEW, **properties: Any) -> Contender:
    return Contender(version, of, **{"latency_ms": 5.0, "size_mb": 1.0, **properties})


def ask(
    challenger: Judged,
    champion: Judged | None = None,
    baseline: Judged | None = None,
    policy: Policy = POLICY,
    **own: Any,
) -> Decision:
    rival = None if champion is None else contender(champion, OLD)
    return decide(policy, OCCASION, contender(challenger, **own), rival, baseline, [])


def failed(decision: Decision) -> list[str]:
    assert decision.promoted == (not any(not one.passed for one in decision.checks))
    return [check.name for check in decision.checks if not check.passed]


def test_a_clear_gain_is_promoted_with_every_check_on_record():
    decision = ask(judged(BASE + 0.05), judged(BASE), popular(BASE - 0.1))
    assert decision.promoted
    assert [check.name for check in decision.checks] == [
        "integrity",
        "coverage@20",
        "latency_ms",
        "size_mb",
        "popularity@20",
        "coverage@20 beside the champion's",
        "popularity@20 beside the champion's",
        "recall@20 above most_pop",
        "recall@20 above the champion",
        "ndcg@20 guarded",
        "recall@20 of light users (at most 199 items)",
        "recall@20 of heavy users (more than 199 items)",
    ]
    assert decision.champion == OLD
    assert decision.occasion == OCCASION


def test_a_model_is_never_promoted_over_itself_and_fails_in_nothing_else():
    assert failed(ask(judged(BASE), judged(BASE))) == ["recall@20 above the champion"]


def test_a_guard_without_any_margin_lets_an_equal_model_pass_also_where_nobody_hits_anything():
    policy = PLAIN.model_copy(update={"guards": {"ndcg@20": 0.0}})
    assert ask(judged(BASE + 0.05), judged(BASE), policy=policy).promoted
    nothing = np.zeros(len(USERS))
    assert ask(judged(BASE + 0.05, nothing), judged(BASE, nothing), policy=policy).promoted


def test_a_first_model_needs_only_its_own_properties_and_the_baseline():
    assert ask(judged(BASE), None, popular(BASE - 0.1)).promoted
    assert failed(ask(judged(BASE), None, popular(BASE + 0.1))) == ["recall@20 above most_pop"]


@pytest.mark.parametrize(
    ("challenger", "properties", "name"),
    [
        (judged(BASE + 0.05, coverage=0.09), {}, "coverage@20"),
        (judged(BASE + 0.05), {"latency_ms": 21.0}, "latency_ms"),
        (judged(BASE + 0.05), {"size_mb": 11.0}, "size_mb"),
        (judged(BASE + 0.05, popularity=271.0), {}, "popularity@20"),
        (judged(BASE + 0.05, coverage=0.34), {}, "coverage@20 beside the champion's"),
        (judged(BASE + 0.05, popularity=151.0), {}, "popularity@20 beside the champion's"),
        (judged(BASE + 0.05, ndcg=BASE * 0.9), {}, "ndcg@20 guarded"),
        (judged(BASE * np.where(LIGHT, 0.8, 1.8)), {}, "recall@20 of light users (at most 199 items)"),
        (judged(BASE * np.where(LIGHT, 1.8, 0.8)), {}, "recall@20 of heavy users (more than 199 items)"),
        (judged(BASE + 0.05), {"rolled_back": "version 2 was rolled back"}, "rolled back"),
    ],
)
def test_each_breach_stops_a_model_that_wins_everything_else(challenger: Judged, properties: dict[str, Any], name: str):
    champion = judged(BASE, coverage=0.1 if name == "coverage@20" else 0.5)
    rise = 200.0 if name == "popularity@20" else 100.0
    champion = replace(champion, lists={**champion.lists, "popularity@20": rise})
    decision = ask(challenger, champion, popular(BASE - 0.1), **properties)
    assert failed(decision) == [name]
    assert len(decision.reasons) == 1


def test_a_collapse_of_coverage_is_blocked_although_it_keeps_the_floor():
    decision = ask(judged(BASE + 0.2, coverage=0.12), judged(BASE, coverage=0.9))
    assert failed(decision) == ["coverage@20 beside the champion's"]
    assert "the floor 0.63, 0.7 times the champion's" in decision.reasons[0]


def test_a_value_at_its_limit_is_within_it():
    at = judged(BASE + 0.05, coverage=0.7 * 0.5, popularity=1.5 * 100.0)
    assert ask(at, judged(BASE), popular(BASE - 0.1), latency_ms=20.0, size_mb=10.0).promoted


def test_a_guard_lets_a_small_loss_pass():
    assert ask(judged(BASE + 0.05, ndcg=BASE * 0.99), judged(BASE)).promoted


def test_a_group_that_is_too_small_is_not_asked_and_that_is_said():
    few = POLICY.model_copy(update={"groups": POLICY.groups.model_copy(update={"quantile": 0.9})})
    decision = ask(judged(BASE * np.where(LENGTHS > 359, 0.5, 1.5)), judged(BASE), policy=few)
    assert decision.promoted
    assert "40 heavy users (more than 359 items) are fewer than 100" in decision.remarks[0]
    assert decision.remarks[0] in decision.reasons


def test_users_of_one_length_are_one_group():
    light, *heavy = questions(POLICY, np.full(400, 7))[2:]
    assert light.members is not None
    assert light.members.all()
    assert heavy == []


def test_a_margin_of_a_share_moves_with_the_mean_that_it_is_a_share_of():
    """A champion's mean is no constant: the bound is that of the mean of mine - (1 - share) theirs."""
    question = questions(PLAIN, LENGTHS)[1]
    mine, theirs = BASE * 0.99, BASE
    (bound,) = lower_bounds(question.contrast(mine, theirs)[:, None], PLAIN.bootstrap)
    check = next(
        one for one in ask(judged(BASE + 0.05, mine), judged(BASE, theirs)).checks if one.name == question.name
    )
    assert check.observed - check.limit == pytest.approx(bound, abs=1e-7)


@pytest.mark.parametrize(("mine", "champion", "passed"), [(19.0, 1.0, True), (30.0, 31.0, True), (30.0, 29.0, False)])
def test_on_a_slow_machine_the_champion_beside_it_is_the_limit(mine: float, champion: float, passed: bool):
    decision = decide(
        POLICY,
        OCCASION,
        contender(judged(BASE + 0.05), latency_ms=mine),
        contender(judged(BASE), OLD, latency_ms=champion),
        None,
        [],
    )
    assert decision.promoted == passed


def test_a_broken_package_is_refused_without_further_questions():
    decision = refuse(POLICY, OCCASION, NEW, "integrity", "weights.safetensors: its sha256 is another")
    assert failed(decision) == ["integrity"]
    assert decision.reasons == ["weights.safetensors: its sha256 is another"]


def test_equal_models_are_promoted_no_more_often_than_the_level_says():
    draw = np.random.default_rng(7)
    one, other = BASE[:, None] + draw.normal(0, 0.1, (2, len(USERS), 2000))  # A/A: they differ by chance alone
    share = np.mean(lower_bounds(one - other, POLICY.bootstrap) > 0)
    assert share <= 0.0627  # 5 % and 2.6 standard errors


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_differences_of_few_users_do_not_break_the_level(sign: int):
    """Most users tie, few differ by much: here the plain percentile bound is wrong in 8 to 12 of 100 trials."""
    draw = np.random.default_rng(3)
    gain = np.where(draw.random((200, 2000)) < 0.05, draw.random((200, 2000)), 0) - 0.025
    assert np.mean(lower_bounds(sign * gain, Bootstrap()) > 0) <= 0.0627


def test_a_real_gain_is_seen_through_the_noise():
    draw = np.random.default_rng(8)
    promoted = 0
    for _ in range(40):  # four standard errors of the paired mean
        gain = 0.1 * 2**0.5 / len(USERS) ** 0.5 * 4
        one, other = BASE + draw.normal(0, 0.1, (2, len(USERS)))
        promoted += ask(judged(one + gain), judged(other), policy=PLAIN).promoted
    assert promoted >= 36


def test_a_column_that_never_varies_is_its_own_bound():
    values = np.stack([np.zeros(50), np.full(50, 0.25)], axis=1)
    np.testing.assert_array_equal(lower_bounds(values, Bootstrap()), [0.0, 0.25])


def test_models_judged_on_different_users_are_not_compared():
    with pytest.raises(ValueError, match="different users"):
        ask(judged(BASE), replace(judged(BASE), users=USERS[::-1]))


def test_a_metric_that_nobody_measured_is_named():
    with pytest.raises(UserError, match="recall@7"):
        ask(judged(BASE), judged(BASE), policy=POLICY.model_copy(update={"metric": "recall@7"}))
    with pytest.raises(UserError, match="coverage@7"):
        ask(judged(BASE), judged(BASE), policy=POLICY.model_copy(update={"floors": {"coverage@7": 0.1}}))


def test_the_policy_of_the_repository_is_read(repository: Path):
    policy = Policy.load(repository / "mlflow" / "promotion.yaml")
    assert policy.bootstrap.level == 0.95
    assert policy.of_champion["coverage@20"].at_least is not None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("metric: recall@20\nmargin: 3\n", "margin"),
        ("metric: [", "YAML"),
        ("bootstrap: {level: 2}\n", "level"),
        ("metric: recall@20\ngroups: {margins: {middling: 0.1}}\n", "middling"),
        ("metric: recall@20\ngroups: {margins: {}}\n", "margins"),
        ("metric: recall@20\nof_champion: {coverage@20: {}}\n", "at_least"),
        ("metric: recall@20\nceilings: {popularity@20: 0.9}\n", "baseline"),
        ("", "file"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, text: str, word: str):
    (tmp_path / "promotion.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"promotion\.yaml.*{word}"):
        Policy.load(tmp_path / "promotion.yaml")


def test_a_missing_policy_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        Policy.load(tmp_path / "promotion.yaml")


def test_the_page_needs_nothing_else_and_tells_who_when_and_why():
    decision = ask(judged(BASE * np.where(LIGHT, 0.8, 1.8)), judged(BASE), popular(BASE - 0.1))
    page = render(decision)
    for said in ("me@here", "2026-01-31 12:00:00", "refused", "distribution of the gain", *decision.reasons):
        assert said.replace("'", "&#39;") in page
    assert "light-dark(" in page
    assert not [outside for outside in ("://", "src=", "<link", "@import", "url(") if outside in page]
    assert page == render(decision)


def test_a_margin_lies_left_of_zero_on_the_page():
    page = render(ask(judged(BASE + 0.05, BASE * 1.1), judged(BASE), policy=PLAIN))
    wins, guard = (float(one) for one in re.findall(r'class="limit" x1="([\d.]+)"', page)[1:])
    assert guard < wins


@pytest.mark.parametrize("changed", [1, 2])
def test_where_few_lists_have_changed_a_gain_is_bounded_by_what_a_mean_can_be(changed: int):
    """Resamples without them have next to no spread, or none: what is beyond the bound is drawn at the scale's end."""
    hits = np.tile([0.0, 1.0], len(USERS) // 2)
    fewer = np.where((hits == 1) & (hits.cumsum() <= changed), 0.0, hits)
    decision = ask(judged(fewer, hits), judged(hits, hits), policy=PLAIN)
    gain = decision.over_champion[0].gain
    assert (gain.low, decision.promoted) == (-gain.theirs, False)
    places = re.findall(r' (?:x1|x2|cx)="([^"]+)"', render(decision))
    assert all(0 <= float(one) <= 600 for one in places)


def test_a_gain_of_more_than_the_whole_mean_is_drawn_whole():
    often, seldom = (np.arange(len(USERS)) % every == 0 for every in (10, 40))
    decision = ask(judged(often, BASE), judged(seldom, BASE), policy=PLAIN)
    page, gain = render(decision), decision.over_champion[0].gain
    low, high = map(float, re.search(r'class="reach [^"]*" x1="([^"]+)" x2="([^"]+)"', page).groups())
    mean = float(re.search(r'cx="([^"]+)"', page)[1])
    middle = gain.mine - gain.theirs
    assert gain.high > 1.3 * middle > 1.3 * gain.theirs
    assert (high - mean) / (mean - low) == pytest.approx((gain.high - middle) / (middle - gain.low), rel=0.01)


def test_a_text_from_outside_is_no_markup_on_the_page():
    odd = NEW.model_copy(update={"variant": "<script>alert(1)</script>"})
    assert "<script>alert" not in render(refuse(POLICY, OCCASION, odd, "integrity", "<b>broken</b>"))


def test_a_decision_comes_back_from_its_own_record():
    decision = ask(judged(BASE + 0.05), judged(BASE), popular(BASE - 0.1))
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
