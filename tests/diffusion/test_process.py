"""The forward and reverse process: identities first, then numbers computed by hand in float64."""

import numpy as np
import pytest
import torch

from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import betas

SCHEDULES = ["linear-var", "linear", "cosine", "binomial"]
PUBLISHED = {  # schedule, first beta: to_clean, to_noisy, weight_x0
    ("linear-var", None): (
        [1, 0.826128264, 0.452511068, 0.3116390633, 0.2376813011],
        [0, 0.1738717301, 0.5474888978, 0.6883608742, 0.7623186081],
        [1, 8260.869565, 786.7494824, 296.6432475, 155.7377049],
    ),
    ("linear-var", 1e-5): (
        [1, 0.9793881577, 0.4949121719, 0.3311696743, 0.2488698609],
        [0, 0.02061184172, 0.5050877993, 0.6688302685, 0.7511300537],
        [1, 97938.32607, 1020.100035, 344.7720621, 173.2884949],
    ),
    ("linear", None): (
        [1, 0.8518818259, 0.6087605921, 0.4693164114, 0.3810512222],
        [0, 0.1481181669, 0.3912393192, 0.5306832594, 0.618947964],
        [1, 8518.392307, 901.6399445, 271.9536228, 117.1784784],
    ),
    ("linear", 1e-5): (None, None, [1, 98290.58149, 1097.565701, 295.0851157, 122.6145695]),
    ("cosine", None): (
        [1, 0.7517488494, 0.5781570732, 0.4665729768, 0.3063907175],
        [0, 0.2438944255, 0.3879881607, 0.3822239094, 0.02865148775],
        None,
    ),
    ("binomial", None): (
        [1, 0.5477225575, 0.4082482905, 0.3535533906, 0.3464101615],
        [0, 0.4472135955, 0.5773502692, 0.6123724357, 0.5656854249],
        [1, 3, 1, 0.5, 0.3],
    ),
}


def process(schedule="linear-var", first=1e-5, steps=5):
    return GaussianDiffusion(betas(schedule, steps, 0.1, 0.001, 0.02, first))


def exact(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def pinned():
    return process()


@pytest.mark.parametrize(("schedule", "first"), PUBLISHED)
def test_posterior_shares_and_loss_weights_are_the_published_ones(schedule, first):
    made = process(schedule, first)
    for table, expected in zip((made.to_clean, made.to_noisy, made.weight_x0), PUBLISHED[schedule, first], strict=True):
        if expected is not None:
            np.testing.assert_allclose(table, expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("schedule", "first", "variance", "snr"),
    [
        (
            "linear-var",
            1e-5,
            [0, 9.793930547e-6, 2.401118023e-4, 3.181039454e-4, 3.574167326e-4],
            [99999, 2060.673927, 1040.573892, 695.8018301, 522.5133352],
        ),
        (
            "linear-var",
            None,
            [0, 8.261695735e-5, 2.602687021e-4, 3.273929429e-4, 3.627406795e-4],
            [9999, 1738.130435, 951.3809524, 654.7377049, 499],
        ),
        ("binomial", None, [0, 1 / 10, 1 / 6, 1 / 4, 2 / 5], [5, 2, 1, 0.5, 0.2]),
    ],
)
def test_variance_and_signal_to_noise_are_the_published_ones(schedule, first, variance, snr):
    made = process(schedule, first)
    np.testing.assert_allclose(made.variance, variance, rtol=1e-9)
    np.testing.assert_allclose((made.signal / made.noise) ** 2, snr, rtol=1e-9)


def test_log_variances_are_the_published_ones_where_there_is_noise(pinned):
    """The authors' table repeats the value of t = 1 at t = 0; here no noise is drawn there."""
    np.testing.assert_allclose(pinned.variance[1:3].log(), [-11.5337477, -8.3344059], rtol=1e-8)
    assert pinned.variance[0] == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_reverse_step_returns_the_prediction_itself(schedule):
    made = process(schedule)
    assert float(made.to_clean[0]) == pytest.approx(1, abs=1e-9)
    assert made.to_noisy[0] == 0
    assert made.variance[0] == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_single_steps_composed_are_the_marginal(schedule):
    """q(x_t | x_0) has the mean and variance of t + 1 steps q(x_s | x_{s-1}) one after the other."""
    steps = betas(schedule, 7, 0.1, 0.001, 0.02, 1e-5)
    made = GaussianDiffusion(steps)
    mean, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for t, beta in enumerate(steps):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        assert made.signal[t] == pytest.approx(float(mean), rel=1e-12)
        assert made.noise[t] ** 2 == pytest.approx(float(variance), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_reverse_step_from_the_truth_lands_on_the_marginal_before(schedule):
    """With x_t ~ q(x_t | x_0), the posterior's mean and variance give q(x_{t-1} | x_0)."""
    made = process(schedule)
    for t in range(1, 5):
        mean = made.to_clean[t] + made.to_noisy[t] * made.signal[t]
        variance = (made.to_noisy[t] * made.noise[t]) ** 2 + made.variance[t]
        assert mean == pytest.approx(float(made.signal[t - 1]), rel=1e-9)
        assert variance == pytest.approx(float(made.noise[t - 1] ** 2), rel=1e-6)


def test_noising_and_the_posterior_mean_give_the_published_rows(pinned):
    t = torch.tensor([2])
    x0 = exact([[1.0, 0, 0, 1]])
    x_t = pinned.add_noise(x0, t, exact([[0.5, -1, 2, 0]]))
    np.testing.assert_allclose(x_t, [[1.015012465, -0.03098524663, 0.06197049325, 0.999519842]], rtol=1e-9)
    mean = pinned.posterior_mean(exact([[0.8, 0.1, -0.1, 0.6]]), x_t, t)
    np.testing.assert_allclose(mean, [[0.9086001498, 0.03384094716, -0.01819067713, 0.8017925805]], rtol=1e-9)


def test_the_whole_reverse_chain_gives_the_published_states(pinned):
    x = exact([[1.0, 0, 1]])
    states = []
    for step in reversed(range(5)):
        x = pinned.posterior_mean(0.5 * x + 0.1 * (step + 1), x, torch.tensor([step]))
        states.append(x[0, :2].tolist())
        assert x[0, 0] == x[0, 2]
    expected = [
        [0.9999999146, 0.1244349304],
        [0.9668829042, 0.2362982554],
        [0.8760954688, 0.3262984587],
        [0.6429543363, 0.3623896669],
        [0.4214771681, 0.2811948335],
    ]
    np.testing.assert_allclose(states, expected, rtol=2e-9)


def test_the_weighted_error_of_one_row_is_the_published_one(pinned):
    error = exact([[1.0, 0, 0, 1]]) - exact([[0.8, 0.1, -0.1, 0.6]])
    mean = float(error.square().mean())
    assert mean == pytest.approx(0.055)
    weights = pinned.loss_weight("x0", torch.tensor([0, 1, 4])).double()
    np.testing.assert_allclose(weights * mean, [0.055, 5386.607934, 9.530867218], rtol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_row_is_found_again_from_its_noise(schedule):
    made, t = process(schedule), torch.tensor([0, 2, 4])
    x0, noise = torch.randn(3, 6).double(), torch.randn(3, 6).double()
    found = made.clean_from_noise(made.add_noise(x0, t, noise), t, noise)
    np.testing.assert_allclose(found, x0, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_of_the_clean_rows_error_are_those_of_the_evidence_bound(schedule):
    """The bound's term at t is to_clean^2 |x_0 - guess|^2 / (2 variance); the authors leave out the half."""
    made = process(schedule)
    for t in range(1, 5):
        of_clean = float(made.to_clean[t] ** 2 / made.variance[t])
        assert float(made.weight_x0[t]) == pytest.approx(of_clean, rel=1e-6)


def test_weights_of_the_noises_error_are_the_authors_and_not_those_of_the_bound():
    """By hand in fractions, for betas 1/6, 1/5, 1/4, 1/3, 1/2; and in 50 digits for the published linear schedule."""
    made = process("binomial", None)
    np.testing.assert_allclose(made.weight_eps, [0.1, 15, 6, 4, 3.75], rtol=1e-9)
    of_noise = (made.noise / made.signal) ** 2  # the error of x_0 in that of the noise
    np.testing.assert_allclose((made.weight_x0 * of_noise)[1:], [1.5, 1, 1, 1.5], rtol=1e-9)
    digits = [5.000050001e-6, 4.852732821e6, 4.082783298e3, 1.557677132e3, 9.278920861e2]
    np.testing.assert_allclose(process().weight_eps, digits, rtol=1e-8)


def test_the_first_noise_weight_is_half_the_error_of_the_clean_row(pinned):
    t = torch.tensor([0])
    x0, noise, guess = (torch.randn(1, 8).double() for _ in range(3))
    found = pinned.clean_from_noise(pinned.add_noise(x0, t, noise), t, guess)
    half = (x0 - found).square().mean() / 2
    assert pinned.weight_eps[0] * (noise - guess).square().mean() == pytest.approx(float(half), rel=1e-9)


@pytest.mark.parametrize("parameterisation", ["x0", "eps"])
def test_reverse_shares_are_the_posterior_mean_of_what_the_network_says(pinned, parameterisation):
    of_row, of_output = pinned.reverse_shares(parameterisation)
    x, output = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    t = torch.arange(5)
    x0 = output if parameterisation == "x0" else pinned.clean_from_noise(x, t, output)
    expected = pinned.posterior_mean(x0, x, t)
    np.testing.assert_allclose(of_row[:, None] * x + of_output[:, None] * output, expected, atol=1e-12)


def test_sampling_adds_the_posterior_deviation_and_nothing_at_the_end(pinned):
    t = torch.tensor([0, 3])
    x0, x_t, noise = (torch.randn(2, 4).double() for _ in range(3))
    added = pinned.posterior_sample(x0, x_t, t, noise) - pinned.posterior_mean(x0, x_t, t)
    assert added[0].abs().max() == 0
    np.testing.assert_allclose(added[1], 3.181039454e-4**0.5 * noise[1], rtol=1e-8, atol=1e-12)


def test_values_of_any_shape_pass_through_the_process(pinned):
    x0 = torch.randn(2, 3, 4)
    noised = pinned.add_noise(x0, torch.tensor([1, 4]), torch.zeros(2, 3, 4))
    assert noised.dtype == torch.float32
    np.testing.assert_allclose(noised[1], x0[1] * float(pinned.signal[4]), rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("first", [None, 1e-5])
def test_the_only_step_of_a_process_returns_the_prediction_and_counts_one(schedule, first):
    made = process(schedule, first, steps=1)
    x0, x_t, t = torch.randn(3, 4).double(), torch.randn(3, 4).double(), torch.zeros(3, dtype=torch.int64)
    np.testing.assert_allclose(made.posterior_mean(x0, x_t, t), x0, atol=1e-12)
    assert made.loss_weight("x0", t).tolist() == [1, 1, 1]
    assert made.noise[0] ** 2 == pytest.approx(float(betas(schedule, 1, 0.1, 0.001, 0.02, first)[0]))


def test_no_step_is_no_process():
    with pytest.raises(ValueError, match="at least one step"):
        GaussianDiffusion(torch.empty(0))


def test_a_process_seen_at_some_steps_has_the_same_marginals_there():
    whole = GaussianDiffusion(betas("cosine", 12, 0.1, 0.001, 0.02))
    for count in (1, 2, 5, 12):
        some, steps = whole.respaced(count)
        assert steps[-1] == 11
        assert len(steps.unique()) == count
        torch.testing.assert_close(some.signal, whole.signal[steps], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(some.noise, whole.noise[steps], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(whole.respaced(12)[0].to_clean, whole.to_clean, rtol=1e-9, atol=1e-12)


def test_the_wide_reverse_step_has_the_forward_variance_and_none_at_the_end():
    process = GaussianDiffusion(betas("linear", 5, 0.1, 0.001, 0.02))
    x0, x_t, noise = (
        torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3)
    )
    t = torch.arange(5)
    spread = process.posterior_sample_wide(x0, x_t, t, noise) - process.posterior_mean(x0, x_t, t)
    expected = process.betas.sqrt()[:, None] * noise
    expected[0] = 0
    torch.testing.assert_close(spread, expected, rtol=1e-12, atol=1e-12)
