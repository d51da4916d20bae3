"""The denoiser and its parts, each against the plain form it replaces."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from noise2next.nn.activations import FEW, tanh
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import row_error
from noise2next.nn.mlp import Denoiser
from noise2next.nn.time_embedding import step_embedding

EVEN = [
    -0.9899924966, 0.8890786092, 0.9971620353, 0.9999286807, 0.9999982085,
    0.1411200081, 0.4577545485, 0.075285293, 0.01194293119, 0.001892870903,
]  # fmt: skip


def test_step_embeddings_are_the_published_ones():
    found = step_embedding(torch.tensor([0, 3]), 10)
    np.testing.assert_allclose(found, [[1.0] * 5 + [0.0] * 5, EVEN], rtol=1e-8)
    odd = step_embedding(torch.tensor([3]), 5)
    np.testing.assert_allclose(odd, [[-0.9899924966, 0.9995500337, 0.1411200081, 0.0299955002, 0]], rtol=1e-9)


@pytest.mark.parametrize(("hidden", "widths"), [((7,), [7]), ((4, 9), [9, 4, 9]), ((3, 4, 9), [9, 4, 3, 4, 9])])
def test_hidden_widths_run_from_the_outside_in_and_back(hidden, widths):
    net = Denoiser(20, 5, hidden, 6, 0.5, False)
    found = [net.from_items.out_features, *(layer.out_features for layer in net.middle)]
    assert found == widths
    assert net.decode.in_features == widths[-1]
    parameters = (20 + 6) * widths[0] + widths[0] + 6 * 6 + 6 + widths[-1] * 20 + 20
    parameters += sum(a * b + b for a, b in pairwise(widths))
    assert sum(one.numel() for one in net.parameters()) == parameters


@pytest.mark.parametrize("normalise", [False, True])
def test_two_halves_of_the_first_layer_are_the_layer_of_the_concatenation(normalise):
    torch.manual_seed(0)
    net = Denoiser(20, 5, (4, 9), 6, 0.5, normalise).eval()
    x, t = torch.randn(8, 20), torch.randint(0, 5, (8,))
    row = x / x.norm(dim=1, keepdim=True) if normalise else x
    joined = torch.cat([row, net.embedding(step_embedding(t, 6).float())], dim=1)
    weight = torch.cat([net.from_items.weight, net.from_step.weight], dim=1)
    state = torch.tanh(nn.functional.linear(joined, weight, net.from_step.bias))
    for layer in net.middle:
        state = torch.tanh(layer(state))
    np.testing.assert_allclose(net(x, t).detach(), net.decode(state).detach(), atol=2e-6)


def test_without_a_step_embedding_the_network_is_not_told_the_step():
    torch.manual_seed(0)
    net = Denoiser(20, 5, (4, 9), 0, 0.5, False).eval()
    x = torch.randn(5, 20)
    assert torch.equal(net(x, torch.arange(5)), net(x, torch.zeros(5, dtype=torch.int64)))
    layers = [net.from_items, *net.middle, net.decode]
    state = x
    for layer in layers[:-1]:
        state = torch.tanh(layer(state))
    np.testing.assert_allclose(net(x, torch.arange(5)).detach(), layers[-1](state).detach(), atol=2e-6)
    assert sum(one.numel() for one in net.parameters()) == (20 + 1) * 9 + (9 + 1) * 4 + (4 + 1) * 9 + (9 + 1) * 20


def test_initial_weights_have_the_deviation_of_the_whole_layer():
    torch.manual_seed(0)
    net = Denoiser(3000, 5, (100, 200), 10, 0.5, False)
    for weight, fans in [
        (net.from_items.weight, 3010 + 200),
        (net.from_step.weight, 3010 + 200),
        (net.middle[0].weight, 300),
        (net.decode.weight, 3200),
    ]:
        deviation = math.sqrt(2 / fans)
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * weight.numel()))
        assert abs(float(weight.detach().mean())) < 4 * deviation / math.sqrt(weight.numel())
    assert float(net.decode.bias.detach().std()) == pytest.approx(0.001, rel=0.06)
    unbiased = Denoiser(30, 5, (10,), 10, 0.5, False, bias_deviation=0)
    assert not any(value.any() for name, value in unbiased.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.73])
def test_dropout_zeroes_with_its_probability_and_keeps_the_mean(p):
    torch.manual_seed(0)
    found = Dropout(p).train()(torch.ones(1000, 1001))
    n = found.numel()
    dropped = float((found == 0).double().mean())
    assert abs(dropped - p) < 4 * math.sqrt(p * (1 - p) / n) + 2**-16
    assert found.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=2e-4)]
    assert abs(float(found.double().mean()) - 1) < 4 * math.sqrt(p / (1 - p) / n)


@pytest.mark.parametrize("p", [2**-16, 0.3, 0.5, 1 - 2**-16])
def test_dropout_exhausts_its_levels_exactly(p, monkeypatch):
    """Every 16-bit value is kept or dropped by p x 2^16 alone: counted over all values, not sampled."""
    lanes = torch.arange(-(2**15), 2**15).to(torch.int16)
    monkeypatch.setattr(torch.Tensor, "random_", lambda words, *_: words.copy_(lanes.view(torch.int64)))
    found = Dropout(p).train()(torch.ones(2**16))
    dropped = round(p * 2**16)
    assert torch.equal(found == 0, lanes < dropped - 2**15)
    assert found[-1] == pytest.approx(2**16 / (2**16 - dropped), rel=1e-7)


def test_dropped_places_are_independent_within_and_between_words():
    torch.manual_seed(0)
    kept = (Dropout(0.5).train()(torch.ones(500_000)) > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs(float((kept[lag:] * kept[:-lag]).mean()) * 4) < 4 / math.sqrt(len(kept))
    for lane in range(4):
        assert abs(float(kept[lane::4].mean()) * 2) < 4 / math.sqrt(len(kept) / 4)


def test_dropout_does_nothing_outside_training_and_follows_the_seed_inside():
    x, dropout = torch.randn(5, 7), Dropout(0.5)
    assert dropout.eval()(x) is x
    torch.manual_seed(3)
    first = dropout.train()(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)


def test_row_error_and_its_gradient_are_those_of_the_plain_mean():
    torch.manual_seed(0)
    output, target, weight = torch.randn(6, 50, requires_grad=True), torch.randn(6, 50), torch.rand(6)
    (weight * row_error(output, target)).sum().backward()
    plain = output.detach().double().requires_grad_()
    error = (plain - target).square().mean(dim=1)
    (weight * error).sum().backward()
    np.testing.assert_allclose(row_error(output, target).detach(), error.detach(), rtol=1e-6)
    np.testing.assert_allclose(output.grad, plain.grad, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("count", [401, 2 * FEW + 1], ids=["few", "many"])
def test_tanh_and_its_gradient_are_those_of_torch(count):
    x = torch.cat([torch.linspace(-12, 12, count), torch.tensor([0.0, 1e-4, -1e-4, 50.0, -50.0])]).requires_grad_()
    tanh(x).sum().backward()
    plain = x.detach().double().requires_grad_()
    torch.tanh(plain).sum().backward()
    np.testing.assert_allclose(tanh(x).detach(), torch.tanh(plain).detach(), atol=2e-7)
    np.testing.assert_allclose(x.grad, plain.grad, atol=5e-7)
