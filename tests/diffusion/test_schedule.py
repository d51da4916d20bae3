"""Variances per step, against numbers computed by hand in float64."""

import numpy as np
import pytest
import torch

from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import betas, embedding_betas

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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1e-4, 5.75e-4, 1.05e-3, 1.525e-3, 2e-3]), ("binomial", [1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2])],
)
def test_linear_and_binomial_betas_are_the_published_ones(schedule, expected):
    np.testing.assert_allclose(betas(schedule, 5, 0.1, 0.001, 0.02), expected, rtol=1e-9)


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


EMBEDDING = {
    ("truncated-linear", 5): [0.03, 0.075, 0.12, 0.165, 0.21],
    ("sqrt", 5): [0.4417428131, 0.3351143585, 0.3867755333, 0.5317410199, 0.999],
    ("truncated-cosine", 5): [0.02025351319, 0.1554648288, 0.3097214679, 0.4882453003, 0.7284458707],
    ("cosine", 5): [0.1012940794, 0.279543846, 0.4736353534, 0.7240523691, 0.999],
    ("linear", 1000): [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)],
    ("quadratic", 1000): [(0.01 + (0.02**0.5 - 0.01) * t / 999) ** 2 for t in range(1000)],
    ("truncated-linear", 32): [0.013125 + t * 0.0200604838709677 for t in range(32)],
    ("piecewise-linear", 1000): [
        *(0.0101 - 0.01 * t / 9 for t in range(10)),
        *(1e-4 + (0.02 - 1e-4) * t / 989 for t in range(990)),
    ],
}


@pytest.mark.parametrize(("schedule", "steps"), EMBEDDING)
def test_a_schedule_over_embeddings_is_the_published_one(schedule, steps):
    np.testing.assert_allclose(embedding_betas(schedule, steps), EMBEDDING[schedule, steps], rtol=2e-9)


def test_diffurecs_schedule_leaves_these_shares_of_the_target():
    table = GaussianDiffusion(embedding_betas("truncated-linear", 32))
    kept = table.signal**2
    steps = [0, 1, 2, 15, 31]
    expected = [0.986875, 0.9541250756, 0.9033217626, 0.05198290948, 9.901298767e-7]
    np.testing.assert_allclose(kept[steps], expected, rtol=1e-8)
    np.testing.assert_allclose(
        table.to_clean[[1, 2, 15, 31]], [0.7186275563, 0.5379732181, 0.09118775849, 0.001045860608], rtol=1e-8
    )
    np.testing.assert_allclose(
        table.to_noisy[[1, 2, 15, 31]], [0.2813167114, 0.4617056821, 0.8074411049, 0.604151258], rtol=1e-8
    )
    np.testing.assert_allclose(table.variance[[1, 31]], [0.009494500134, 0.6349989062], rtol=1e-8)
    np.testing.assert_allclose(table.betas[[1, 31]].log(), [-3.405642731, -0.4541302801], rtol=1e-8)


def test_few_steps_have_their_own_tables():
    truncated, root, cosine = (
        GaussianDiffusion(embedding_betas(name, 5)) for name in ("truncated-linear", "sqrt", "truncated-cosine")
    )
    np.testing.assert_allclose(truncated.signal**2, [0.97, 0.89725, 0.78958, 0.6592993, 0.520846447], rtol=1e-8)
    np.testing.assert_allclose(
        truncated.noise, [0.1732050808, 0.3205464085, 0.4587155982, 0.5836957255, 0.692209183], rtol=1e-8
    )
    np.testing.assert_allclose(
        truncated.variance, [0, 0.02189781022, 0.05859709153, 0.1019055728, 0.1493198716], rtol=1e-8
    )
    np.testing.assert_allclose(
        truncated.to_clean, [1, 0.7188947301, 0.5401955015, 0.4303372972, 0.3558655021], rtol=1e-8
    )
    np.testing.assert_allclose(
        truncated.to_noisy, [0, 0.2808085264, 0.458074536, 0.5643613038, 0.6319924043], rtol=1e-8
    )
    np.testing.assert_allclose(
        root.signal**2, [0.5582571869, 0.3711771878, 0.2276149331, 0.1065827364, 0.0001065827364], rtol=1e-8
    )
    np.testing.assert_allclose(
        cosine.signal**2, [0.9797464868, 0.827430367, 0.5711574191, 0.2922924935, 0.07937323358], rtol=1e-8
    )


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "piecewise-linear"])
def test_a_scaled_schedule_of_few_steps_stays_invertible(schedule):
    assert embedding_betas(schedule, 12).max() == 0.999


def test_a_piecewise_schedule_needs_its_falling_steps():
    with pytest.raises(ValueError, match="more than 10 steps, not 10"):
        embedding_betas("piecewise-linear", 10)


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
