"""Variances per step, against numbers computed by hand in float64."""

import numpy as np
import pytest
import torch

from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import betas

LINEAR_VAR = [1e-4, 4.750475048e-4, 4.752732821e-4, 4.754992742e-4, 4.757254814e-4]
ABAR = {
    ("linear-var", None): [0.9999, 0.999425, 0.99895, 0.998475, 0.998],
    ("linear-var", 1e-5): [0.99999, 0.9995149572, 0.9990399145, 0.9985648717, 0.998089829],
    ("linear", None): [0.9999, 0.9993250575, 0.9982757662, 0.9967533956, 0.9947598889],
    ("linear", 1e-5): [0.99999, 0.9994150058, 0.99836562, 0.9968431124, 0.9948494262],
    ("cosine", None): [0.8987059206, 0.6474782111, 0.3408096398, 0.09404561268, 9.404561268e-5],
    ("binomial", None): [5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6],
}


@pytest.mark.parametrize(("schedule", "first"), ABAR)
def test_the_share_of_signal_left_is_the_published_one(schedule, first):
    kept = torch.cumprod(1 - betas(schedule, 5, 0.1, 0.001, 0.02, first), dim=0)
    np.testing.assert_allclose(kept, ABAR[schedule, first], rtol=1e-9)


@pytest.mark.parametrize("first", [None, 1e-5])
def test_a_linear_variance_has_these_betas_and_only_the_first_is_overridden(first):
    expected = [first or LINEAR_VAR[0], *LINEAR_VAR[1:]]
    np.testing.assert_allclose(betas("linear-var", 5, 0.1, 0.001, 0.02, first), expected, rtol=1e-9)


def test_cosine_betas_end_at_the_cap():
    expected = [0.1012940794, 0.279543846, 0.4736353534, 0.7240523691, 0.999]
    np.testing.assert_allclose(betas("cosine", 5, 0.1, 0.001, 0.02), expected, rtol=1e-9)


def test_the_published_movielens_schedule_has_these_values():
    table = GaussianDiffusion(betas("linear-var", 40, 0.005, 0.005, 0.01, 1e-5))
    steps = [1, 20, 39]
    beta = betas("linear-var", 40, 0.005, 0.005, 0.01, 1e-5)
    np.testing.assert_allclose(beta[steps], [6.410416671e-7, 6.410494749e-7, 6.410572829e-7], rtol=1e-7)
    np.testing.assert_allclose(table.signal[steps] ** 2, [0.999989359, 0.9999771793, 0.9999649996], rtol=1e-9)
    np.testing.assert_allclose(table.to_clean[steps], [0.06024211427, 0.0280903838, 0.01831541146], rtol=1e-7)
    np.testing.assert_allclose(table.to_noisy[steps], [0.9397578857, 0.9719096162, 0.9816845885], rtol=1e-8)
    np.testing.assert_allclose(table.weight_x0[steps], [6024.181306, 1266.478376, 533.0456563], rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("linear-var", 5, 0.1, 0.02, 0.02), "noise_min 0.02 must be below noise_max 0.02"),
        (("linear", 5, 0.1, 0.03, 0.02), "noise_min"),
        (("linear", 5, 100.0, 0.001, 0.02), "outside"),
        (("linear-var", 5, 100.0, 0.001, 0.02), "at most 1"),
        (("binomial", 5, 0.1, 0.001, 0.02, 1.5), "outside"),
        (("cosine", 5, 0.1, 0.001, 0.02, 0.0), "outside"),
    ],
)
def test_a_schedule_that_is_none_is_refused_with_the_place(arguments, place):
    with pytest.raises(ValueError, match=place):
        betas(*arguments)
