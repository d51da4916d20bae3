"""Importance sampling of steps: the law, its memory, and its place in a checkpoint."""

from collections import deque

import numpy as np
import pytest
import torch

from noise2next.diffusion.step_sampler import StepSampler


def filled(rows):
    """A sampler whose steps have seen ten losses each, `rows` repeated."""
    sampler = StepSampler(len(rows))
    for losses in zip(*(row * 4 for row in rows), strict=True):
        sampler.record(torch.arange(len(rows)), torch.tensor(losses, dtype=torch.float64))
    return sampler


def test_the_law_is_the_published_one():
    sampler = StepSampler(3)
    rms = torch.tensor([2.0, 1.0, 2.309401077], dtype=torch.float64)
    for _ in range(10):
        sampler.record(torch.arange(3), rms)
    found = sampler.probabilities()
    np.testing.assert_allclose(found, [0.3766469648, 0.1884901491, 0.4348628862], rtol=1e-9)
    np.testing.assert_allclose(3 * found, [1.129940894, 0.5654704472, 1.304588658], rtol=1e-9)


def test_root_mean_squares_are_taken_over_the_last_ten_losses():
    sampler = filled([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    last_ten = [([row * 4 for row in ([2.0] * 3, [1.0] * 3, [4.0, 0.0, 0.0])][i])[-10:] for i in range(3)]
    rms = np.sqrt(np.mean(np.square(last_ten), axis=1))
    np.testing.assert_allclose(sampler.probabilities(), 0.999 * rms / rms.sum() + 0.001 / 3, rtol=1e-12)


def test_steps_are_uniform_until_each_has_ten_losses():
    sampler = StepSampler(4)
    for _ in range(9):
        sampler.record(torch.arange(4), torch.arange(4.0) + 1)
    sampler.record(torch.arange(3), torch.arange(3.0) + 1)
    t, divisor = sampler(1000)
    assert set(t.tolist()) == {0, 1, 2, 3}
    assert (divisor == 1).all()
    sampler.record(torch.tensor([3]), torch.tensor([4.0]))
    assert sampler.probabilities()[3] > 0.39


def test_memory_is_that_of_a_queue_of_ten_per_step_in_batch_order():
    sampler, queues = StepSampler(5), [deque(maxlen=10) for _ in range(5)]
    torch.manual_seed(0)
    for size in (7, 100, 1, 33, 400):
        t, losses = torch.randint(0, 5, (size,)), torch.rand(size)
        sampler.record(t, losses)
        for step, loss in zip(t.tolist(), losses.double().tolist(), strict=True):
            queues[step].append(loss)
        for step in range(5):
            kept = sampler.losses[step][: min(10, int(sampler.seen[step]))]
            assert sorted(kept.tolist()) == sorted(queues[step])


def test_the_divisor_makes_the_weighted_mean_unbiased():
    """E over P of value(t) / (T P(t)) is the plain mean over steps."""
    sampler = filled([[1.0] * 3, [5.0] * 3, [0.1] * 3])
    value = torch.tensor([3.0, -1.0, 10.0], dtype=torch.float64)
    expected = (sampler.probabilities() * value / (3 * sampler.probabilities())).sum()
    assert expected == pytest.approx(float(value.mean()))
    torch.manual_seed(0)
    t, divisor = sampler(200_000)
    assert float((value[t] / divisor).mean()) == pytest.approx(float(value.mean()), rel=0.05)


def test_draws_follow_the_law():
    sampler = filled([[1.0] * 3, [5.0] * 3, [0.1] * 3])
    torch.manual_seed(0)
    t, _ = sampler(200_000)
    shares = torch.bincount(t, minlength=3) / len(t)
    np.testing.assert_allclose(shares, sampler.probabilities(), atol=0.004)


def test_the_memory_travels_in_the_state():
    sampler = filled([[1.0] * 3, [5.0] * 3])
    other = StepSampler(2)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities(), sampler.probabilities())


def test_without_importance_the_steps_stay_uniform():
    sampler = StepSampler(2, importance=False)
    for _ in range(10):
        sampler.record(torch.arange(2), torch.tensor([1.0, 100.0]))
    assert sampler.probabilities().tolist() == [0.5, 0.5]


def test_losses_of_zero_leave_a_law():
    sampler = filled([[0.0] * 3, [0.0] * 3])
    assert sampler.probabilities().tolist() == [0.5, 0.5]
