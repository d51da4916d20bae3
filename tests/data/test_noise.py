"""False positives reach what a model reads, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from noise2next.config import EvaluationConfig, LinearWeights, Noise, PerUserRatio, UniformWeights
from noise2next.data.interactions import Interactions, Split
from noise2next.data.noise import reading, with_false_positives
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.evaluation.evaluator import Evaluator
from noise2next.models.base import ModelConfig, Recommender

USERS, ITEMS = 40, 60
KEYS = Vocabulary(tuple(f"u{user}" for user in range(USERS))).keys


def histories(seed: int = 0, users: int = USERS, items: int = ITEMS) -> Interactions:
    """Of 0 to 25 items, some returning, some unknown (-1), at times that tie."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 26, users)
    total = int(lengths.sum())
    of = np.repeat(np.arange(users), lengths)
    times = draw.integers(0, 40, total)
    made = Interactions.of(of, draw.integers(-1, items, total), times, users).in_time_order()
    return made.weighted(draw.uniform(0.1, 0.9, total).astype(np.float32))


def of_user(found: Interactions, user: int) -> list[tuple[int, int, float]]:
    """(item, time, weight) of each interaction."""
    rows = slice(found.indptr[user], found.indptr[user + 1])
    assert found.times is not None
    return list(zip(found.items[rows].tolist(), found.times[rows].tolist(), found.weights[rows].tolist(), strict=True))


def without(longer: list, shorter: list) -> list:
    """What is left of `longer` when `shorter`, a subsequence of it, is taken out; refuses what is none."""
    rest = iter(shorter)
    wanted = next(rest, None)
    left = []
    for one in longer:
        if one == wanted:
            wanted = next(rest, None)
        else:
            left.append(one)
    assert wanted is None
    return left


def equal(one: Interactions, other: Interactions) -> bool:
    names = ("indptr", "items", "times", "weights")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**63 - 1), st.sampled_from([0.01, 0.3, 1.0, 2.5]))
def test_each_user_gets_the_share_of_items_that_are_not_the_users_own(seed: int, noise_seed: int, share: float) -> None:
    real = histories(seed)
    found = with_false_positives(real, ITEMS, KEYS, share, noise_seed)
    for user in range(USERS):
        own = of_user(real, user)
        added = [item for item, _, weight in without(of_user(found, user), own) if weight == 1]
        known = [item for item, _, _ in own if item >= 0]
        assert len(added) == found.lengths[user] - len(own)
        assert len(added) == min(round(share * len(known)), ITEMS - len(set(known)))
        assert len(set(added)) == len(added)
        assert not set(added) & set(known)
        assert all(0 <= item < ITEMS for item in added)


def test_the_real_interactions_keep_their_order_and_times_stay_sorted() -> None:
    real = histories(1)
    found = with_false_positives(real, ITEMS, KEYS, 0.5, 7)
    for user in range(USERS):
        own, read = of_user(real, user), of_user(found, user)
        without(read, own)
        times = [time for _, time, _ in read]
        assert times == sorted(times)
        assert set(times) == {time for _, time, _ in own}


def test_a_log_without_times_stays_without() -> None:
    bare = replace(histories(2), times=None)
    found = with_false_positives(bare, ITEMS, KEYS, 0.5, 7)
    assert found.times is None
    np.testing.assert_array_equal(found.items, with_false_positives(histories(2), ITEMS, KEYS, 0.5, 7).items)


def test_equal_seeds_give_equal_interactions_and_others_give_others() -> None:
    one, same, other = (with_false_positives(histories(), ITEMS, KEYS, 0.3, seed) for seed in (5, 5, 6))
    assert equal(one, same)
    assert not np.array_equal(one.items, other.items)


def test_no_other_user_matters() -> None:
    whole = with_false_positives(histories(), ITEMS, KEYS, 0.4, 3)
    kept = np.array([31, 4, 17])
    real = histories()
    rows = np.concatenate([np.arange(real.indptr[user], real.indptr[user + 1]) for user in kept])
    assert real.times is not None
    some = Interactions.of(np.repeat(np.arange(3), real.lengths[kept]), real.items[rows], real.times[rows], 3)
    alone = with_false_positives(some.weighted(real.weights[rows]), ITEMS, KEYS[kept], 0.4, 3)
    for place, user in enumerate(kept):
        assert of_user(alone, place) == of_user(whole, int(user))


def test_more_history_keeps_the_false_positives_that_it_has_not_made_true() -> None:
    real = histories(4)
    places = np.arange(len(real)) - real.indptr[real.users]
    early = places < real.lengths[real.users] // 2
    assert real.times is not None
    half = Interactions.of(real.users[early], real.items[early], real.times[early], USERS)
    before, after = (with_false_positives(one, ITEMS, KEYS, 0.5, 3) for one in (half, real))
    for user in range(USERS):
        assert {item for item, _, _ in of_user(before, user)} <= {item for item, _, _ in of_user(after, user)}


def test_items_and_places_are_drawn_evenly() -> None:
    users, length = 3000, 9
    real = Interactions.of(np.repeat(np.arange(users), length), np.tile(np.arange(length), users), None, users)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, users)
    found = with_false_positives(real, 29, keys, 1 / length, 1)
    false = found.items >= length
    items = np.bincount(found.items[false], minlength=29)[length:]
    places = np.bincount((np.arange(len(found)) - found.indptr[found.users])[false], minlength=length + 1)
    for counts in (items, places):  # chi-squared: mean df, deviation sqrt(2 df)
        df, expected = len(counts) - 1, users / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < df + 5 * np.sqrt(2 * df)


def test_a_user_with_the_whole_catalogue_gets_nothing() -> None:
    real = Interactions.of(np.zeros(5, dtype=np.int64), np.arange(5), np.arange(5), 1)
    assert equal(with_false_positives(real, 5, KEYS[:1], 1.0, 1), real)


@pytest.mark.parametrize("share", [0.0, -0.1, float("inf"), float("nan")])
def test_a_share_of_nothing_is_no_noise(share: float) -> None:
    with pytest.raises(ValidationError):
        Noise(share=share)


def test_false_positives_are_weighed_as_if_they_had_happened() -> None:
    split = a_split()
    read = reading(split.train, split, LinearWeights(low=0.5, high=1.0), Noise(share=0.5), 1)
    rows = read.lengths > 1
    assert read.weights[read.indptr[:-1][rows]].tolist() == [0.5] * int(rows.sum())
    assert read.weights[read.indptr[1:][rows] - 1].tolist() == [1.0] * int(rows.sum())


# --- through the evaluator --------------------------------------------------------------------------------------------


class Recorder(Recommender):
    """It keeps what it was asked with; lower items first."""

    Config = ModelConfig

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Queries] = []

    def score(self, queries: Queries) -> Tensor:
        self.asked.append(queries)
        return -torch.arange(ITEMS, dtype=torch.float32).expand(len(queries), ITEMS)


def a_split() -> Split:
    train, valid, test = (histories(seed) for seed in (10, 11, 12))
    users = Vocabulary(tuple(f"u{user}" for user in range(USERS)))
    items = Vocabulary(tuple(f"i{item}" for item in range(ITEMS)))
    return Split(PerUserRatio(), users, items, train, valid, test, has_clock=False)


def test_only_what_is_read_is_noised() -> None:
    """Lists, masks and truth are those of an evaluation without noise, as this model does not look at what it reads."""
    config, split = EvaluationConfig(cutoffs=(5, 20), memory_mb=64), a_split()
    plain, noised = Recorder(), Recorder()
    expected = Evaluator(split, UniformWeights(), ["valid", "test"], config, "cpu").judge(plain)
    found = Evaluator(split, UniformWeights(), ["valid", "test"], config, "cpu", Noise(share=0.5), 1).judge(noised)
    for part, judgement in expected.items():
        assert np.array_equal(found[part].users, judgement.users)
        assert np.array_equal(found[part].top, judgement.top)
        assert found[part].means() == judgement.means()
    for one, other in zip(plain.asked, noised.asked, strict=True):
        assert torch.equal(one.keys, other.keys)
        more = other.lengths - one.lengths
        assert torch.equal(more, torch.round(0.5 * one.lengths.double()).long())


def test_what_will_be_judged_is_not_looked_at() -> None:
    config, split = EvaluationConfig(cutoffs=(5,), memory_mb=64), a_split()
    one, other = Recorder(), Recorder()
    Evaluator(split, UniformWeights(), ["test"], config, "cpu", Noise(share=0.5), 1).judge(one)
    others = np.where(split.test.items < 0, -1, (split.test.items + 7) % ITEMS)
    moved = replace(split.test, items=others.astype(np.int32))
    Evaluator(replace(split, test=moved), UniformWeights(), ["test"], config, "cpu", Noise(share=0.5), 1).judge(other)
    assert torch.equal(one.asked[0].items, other.asked[0].items)
