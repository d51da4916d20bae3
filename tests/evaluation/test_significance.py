"""The bootstrap: its spread is the textbook's, pairs stay pairs, seeds repeat."""

import numpy as np
import pytest

from noise2next.evaluation import significance
from noise2next.evaluation.significance import intervals, paired_difference, resampled_means

DRAW = np.random.default_rng(0)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_users() -> None:
    values = DRAW.normal(3, 2, (4000, 1))
    found = intervals(values, resampled_means(values, 4000, seed=1), 0.95)[0]
    error = values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    samples = draw.exponential(1.0, (150, 400))  # users x repetitions of the experiment
    found = intervals(samples, resampled_means(samples, 500, seed=2), 0.9)
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])
    assert 0.84 <= covered <= 0.95


def test_one_draw_of_users_serves_all_columns() -> None:
    values = DRAW.random((50, 1)) + np.array([0.0, 10.0])
    found = resampled_means(values, 100, seed=3)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 10.0)


def test_pairing_sees_a_small_steady_difference_that_unpaired_intervals_cannot() -> None:
    other = DRAW.random(300)
    one = other + 0.01 + DRAW.normal(0, 0.01, 300)
    both = np.stack([one, other], axis=1)
    first, second = intervals(both, resampled_means(both, 1000, seed=4), 0.95)
    assert first.low < second.high
    assert paired_difference(one, other, 1000, 0.95, seed=4).low > 0


def test_a_model_does_not_differ_from_itself() -> None:
    values = DRAW.random(40).astype(np.float32)
    found = paired_difference(values, values, 100, 0.95, seed=1)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_blocks_of_samples_make_no_difference_to_the_mean_and_seeds_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    values = DRAW.random((30, 2))
    once = resampled_means(values, 64, seed=9)
    assert np.array_equal(once, resampled_means(values, 64, seed=9))
    assert not np.array_equal(once, resampled_means(values, 64, seed=10))
    monkeypatch.setattr(significance, "DRAWS_AT_ONCE", 7 * 30)
    np.testing.assert_allclose(once, resampled_means(values, 64, seed=9))


def test_a_single_user_has_no_spread() -> None:
    found = intervals(np.array([[0.4]]), resampled_means(np.array([[0.4]]), 20, seed=1), 0.95)[0]
    assert found.low == found.high == pytest.approx(0.4)
