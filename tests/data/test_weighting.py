from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise2next.config import ExponentialWeights, LinearWeights, UniformWeights
from noise2next.data.interactions import Interactions
from noise2next.data.weighting import DAY, refusal, time_weights, weigh
from noise2next.errors import UserError


def histories(*lengths: int, times: list[int] | None = None) -> Interactions:
    total = sum(lengths)
    users = np.repeat(np.arange(len(lengths)), lengths)
    clock = np.arange(total, dtype=np.int64) if times is None else np.asarray(times, dtype=np.int64)
    return Interactions.of(users, np.arange(total), clock, len(lengths))


@pytest.mark.parametrize(
    ("length", "low", "expected"),
    [(5, 0.1, [0.1, 0.325, 0.55, 0.775, 1.0]), (3, 0.5, [0.5, 0.75, 1.0]), (2, 0.1, [0.1, 1.0]), (1, 0.1, [0.1])],
)
def test_linear_weights_are_those_of_the_t_diffrec_paper(length: int, low: float, expected: list[float]) -> None:
    weighted = weigh(histories(length), LinearWeights(low=low), has_clock=True)
    np.testing.assert_allclose(weighted.weights, expected, rtol=1e-6)


@given(st.lists(st.integers(0, 7), max_size=6))
def test_each_history_is_weighed_as_if_it_were_alone(lengths: list[int]) -> None:
    together = time_weights(np.asarray(lengths, dtype=np.int64), 0.1, 1.0)
    alone = [time_weights(np.asarray([length]), 0.1, 1.0) for length in lengths]
    np.testing.assert_array_equal(together, np.concatenate([*alone, np.zeros(0)]))


def test_a_half_life_before_the_newest_interaction_of_all_halves_the_weight() -> None:
    log = histories(2, 2, times=[0, 30 * DAY, 45 * DAY, 60 * DAY])
    weighted = weigh(log, ExponentialWeights(half_life_days=30), has_clock=True)
    np.testing.assert_allclose(weighted.weights, [0.25, 0.5, 0.5**0.5, 1.0], rtol=1e-6)


def test_decay_does_not_care_when_the_clock_started() -> None:
    early, late = [0, 1, 5], [10**15, 10**15 + 1, 10**15 + 5]
    weights = [
        weigh(histories(3, times=times), ExponentialWeights(half_life_days=2 / DAY), has_clock=True).weights
        for times in (early, late)
    ]
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("weighting", [UniformWeights(), LinearWeights(), ExponentialWeights()])
def test_weighing_changes_weights_only_and_works_on_nobody(weighting: UniformWeights) -> None:
    for log in (histories(3, 0, 2), histories(), histories(0, 0)):
        weighted = weigh(log, weighting, has_clock=True)
        assert weighted.weights.dtype == np.float32
        assert weighted.weights.shape == weighted.items.shape
        for field in ("indptr", "items", "times"):
            np.testing.assert_array_equal(getattr(weighted, field), getattr(log, field))


def test_uniform_weights_undo_any_other() -> None:
    log = weigh(histories(4), LinearWeights(), has_clock=False)
    assert weigh(log, UniformWeights(), has_clock=False).weights.tolist() == [1, 1, 1, 1]


def test_a_place_in_the_order_is_no_clock_to_decay_by() -> None:
    with pytest.raises(UserError, match="need a clock"):
        weigh(histories(3), ExponentialWeights(), has_clock=False)


def test_a_bare_history_has_no_clock_but_has_linear_weights() -> None:
    bare = Interactions.of(np.zeros(2, dtype=np.int64), np.arange(2), None, 1)
    np.testing.assert_allclose(weigh(bare, LinearWeights(), has_clock=False).weights, [0.1, 1.0])
    with pytest.raises(UserError, match="need a clock"):
        weigh(bare, ExponentialWeights(), has_clock=True)


def test_a_weighting_is_refused_only_where_the_log_lacks_what_it_needs() -> None:
    assert refusal(ExponentialWeights(), has_clock=True) is None
    assert "clock" in str(refusal(ExponentialWeights(), has_clock=False))
    assert refusal(LinearWeights(), has_clock=False) is None
    assert "order" in str(refusal(LinearWeights(), has_clock=False, has_order=False))
    assert refusal(UniformWeights(), has_clock=False, has_order=False) is None
