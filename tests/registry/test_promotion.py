"""The gate: what it lets through, what it stops, and how often chance fools it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from noise2next.errors import UserError
from noise2next.registry.promotion import Judged, Policy, Version, decide

POLICY = Policy.model_validate(
    {
        "metric": "recall@20",
        "bootstrap": {"samples": 500, "level": 0.95, "seed": 1},
        "guards": {"ndcg@20": 0.02},
        "baseline": {"variant": "most_pop"},
        "floors": {"coverage@20": 0.1},
        "limits": {"latency_ms": 20, "size_mb": 10},
    }
)
NEW = Version(version="2", variant="diffrec", data_version="d", fingerprint="new")
OLD = Version(version="1", variant="ease", data_version="d", fingerprint="old")
USERS = tuple(f"u{user}" for user in range(400))
BASE = np.random.default_rng(0).beta(1, 4, len(USERS))


def judged(recall: np.ndarray, ndcg: np.ndarray | None = None, coverage: float = 0.5) -> Judged:
    metrics = {"recall@20": recall.astype(np.float32), "ndcg@20": (BASE if ndcg is None else ndcg).astype(np.float32)}
    return Judged(USERS, metrics, {"coverage@20": coverage})


def ask(challenger: Judged, champion: Judged | None = None, baseline: Judged | None = None, **properties):
    given = {"latency_ms": 5.0, "size_mb": 1.0, **properties}
    rival = None if champion is None else (OLD, champion)
    return decide(POLICY, NEW, challenger, given["latency_ms"], given["size_mb"], rival, baseline, [])


def test_a_clear_gain_is_promoted_with_every_check_on_record():
    decision = ask(judged(BASE + 0.05), judged(BASE), judged(BASE - 0.1))
    assert decision.promoted
    assert [check.name for check in decision.checks] == [
        "coverage@20",
        "latency_ms",
        "size_mb",
        "recall@20 above most_pop",
        "recall@20 above the champion",
        "ndcg@20 guarded",
    ]
    assert decision.champion == OLD


def test_a_model_is_never_promoted_over_itself():
    decision = ask(judged(BASE), judged(BASE))
    assert not decision.promoted
    assert "above the champion" in decision.reasons[0]


def test_a_first_model_needs_only_the_floors_and_the_baseline():
    assert ask(judged(BASE), None, judged(BASE - 0.1)).promoted
    assert not ask(judged(BASE), None, judged(BASE + 0.1)).promoted


@pytest.mark.parametrize(
    ("challenger", "properties", "word"),
    [
        (judged(BASE + 0.05, coverage=0.01), {}, "coverage@20"),
        (judged(BASE + 0.05), {"latency_ms": 21.0}, "latency_ms"),
        (judged(BASE + 0.05), {"size_mb": 11.0}, "size_mb"),
        (judged(BASE + 0.05, ndcg=BASE * 0.9), {}, "ndcg@20"),
    ],
)
def test_one_breach_stops_a_model_that_wins_everything_else(challenger, properties, word):
    decision = ask(challenger, judged(BASE), **properties)
    assert not decision.promoted
    assert len(decision.reasons) == 1
    assert word in decision.reasons[0]


def test_a_guard_lets_a_small_loss_pass():
    assert ask(judged(BASE + 0.05, ndcg=BASE * 0.99), judged(BASE)).promoted


def test_equal_models_are_promoted_no_more_often_than_the_level_says():
    draw = np.random.default_rng(7)
    promoted = 0
    for _ in range(300):  # A/A: two models that differ by chance alone
        one, other = BASE + draw.normal(0, 0.1, (2, len(USERS)))
        promoted += ask(judged(one), judged(other)).promoted
    assert promoted <= 25  # 5% of 300 is 15; more than 25 would be chance once in 200


def test_a_real_gain_is_seen_through_the_noise():
    draw = np.random.default_rng(8)
    promoted = 0
    for _ in range(100):  # three standard errors of the paired mean
        gain = 0.1 * 2**0.5 / len(USERS) ** 0.5 * 3
        one, other = BASE + draw.normal(0, 0.1, (2, len(USERS)))
        promoted += ask(judged(one + gain), judged(other)).promoted
    assert promoted >= 85


def test_models_judged_on_different_users_are_not_compared():
    other = Judged(USERS[::-1], judged(BASE).per_user, {"coverage@20": 0.5})
    with pytest.raises(ValueError, match="different users"):
        ask(judged(BASE), other)


def test_a_metric_that_nobody_measured_is_named(tmp_path: Path):
    policy = POLICY.model_copy(update={"metric": "recall@7"})
    with pytest.raises(UserError, match="recall@7"):
        decide(policy, NEW, judged(BASE), 1.0, 1.0, (OLD, judged(BASE)), None, [])


def test_the_policy_of_the_repository_is_read(repository: Path):
    assert Policy.load(repository / "mlflow" / "promotion.yaml").bootstrap.level == 0.95


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("metric: recall@20\nmargin: 3\n", "margin"),
        ("metric: [", "YAML"),
        ("bootstrap: {level: 2}\n", "level"),
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
