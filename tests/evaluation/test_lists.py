"""Coverage, Gini, novelty and popularity of lists whose values are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise2next.data.interactions import Interactions
from noise2next.evaluation.lists import band_shares, describe, exposure, gini, popularity

AMOUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=30).map(np.array)


@given(AMOUNTS)
def test_gini_is_half_the_mean_difference_over_the_mean(amounts: np.ndarray) -> None:
    if not amounts.sum():
        assert gini(amounts) == 0
        return
    differences = np.abs(amounts[:, None] - amounts[None, :]).mean()
    assert gini(amounts) == pytest.approx(differences / (2 * amounts.mean()), abs=1e-12)


def test_gini_is_zero_when_all_are_shown_alike_and_near_one_when_one_has_all() -> None:
    assert gini(np.full(10, 7)) == 0
    assert gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)


def test_lists_of_known_make() -> None:
    top = np.array([[0, 1], [0, -1]], dtype=np.int32)
    found = describe(top, np.array([8, 2, 1, 4]), n_users=8, cutoffs=[1, 2])
    assert found["coverage@1"] == 0.25
    assert found["coverage@2"] == 0.5
    assert found["novelty@1"] == 0  # everybody has item 0
    assert found["novelty@2"] == pytest.approx((0 + 2 + 0) / 3)  # bits: -log2(2 / 8) for item 1
    assert found["popularity@2"] == pytest.approx((8 + 2 + 8) / 3)


def test_popularity_counts_users_not_interactions() -> None:
    train = Interactions.of(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), None, 2)
    assert popularity(train, 3).tolist() == [1, 2, 0]


@given(AMOUNTS)
def test_bands_take_the_most_popular_first_and_share_out_everything(amounts: np.ndarray) -> None:
    shares = band_shares(amounts, amounts)
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1.0 if amounts.sum() else 0.0)
    full = [
        share for share, band in zip(shares, np.array_split(amounts, 10), strict=True) if len(band) == len(amounts) / 10
    ]
    assert full == sorted(full, reverse=True)


def test_exposure_leaves_padding_out() -> None:
    assert exposure(np.array([[2, -1], [2, 0]], dtype=np.int32), 3).tolist() == [1, 0, 2]
