"""Mult-VAE and Mult-DAE: a plain dense form beside the sparse one, annealing, and they learn what was planted."""

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.laws import RecommenderLaws
from tests.models.test_diffrec import queries

from noise2next.config import TrainerConfig
from noise2next.models.base import Clock
from noise2next.models.mult_dae import MultDAE
from noise2next.models.mult_vae import MultVAE

WIDE = 60


def made(kind, **options):
    torch.manual_seed(0)
    return kind(kind.Config(**options), WIDE)


def plain(weights, name, x, sparse_first):
    """A perceptron in float64 on dense rows: tanh after every layer but the last."""
    first = weights[f"{name}.first.weight"]
    x = x @ (first if sparse_first else first.T) + weights[f"{name}.first.bias"]
    for k in range(sum(one.startswith(f"{name}.others") for one in weights) // 2):
        x = torch.tanh(x) @ weights[f"{name}.others.{k}.weight"].T + weights[f"{name}.others.{k}.bias"]
    return x


def exact(model):
    return {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}


def dropped_row(model, asked, monkeypatch):
    """The row at length 1 with a fixed half of it dropped, dense; the model is made to drop the same."""
    once = asked.folded()
    kept = 2.0 * torch.randint(0, 2, (len(once.items),))
    monkeypatch.setattr(model.dropout, "_mask", lambda values: kept)
    mask = torch.zeros(len(asked), WIDE, dtype=torch.float64)
    mask[once.rows(), once.items] = kept.double()
    return F.normalize(asked.multi_hot().double()) * mask


def same(found, expected, model, weights):
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, weights[name].grad, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("hidden", [(16,), (), (20, 9)], ids=str)
def test_losses_and_gradients_of_mult_vae_are_those_of_the_plain_form(hidden, monkeypatch):
    model, asked = made(MultVAE, hidden=hidden, latent_size=7, total_anneal_steps=1000).train(), queries(24, WIDE)
    weights, noise, x = exact(model), torch.randn(24, 7), asked.multi_hot().double()
    row = dropped_row(model, asked, monkeypatch)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    found = model.loss(asked, "train", Clock(batch=150))
    mean, log_variance = plain(weights, "encoder", row, True).split(7, dim=1)
    logits = plain(weights, "decoder", mean + noise * torch.exp(0.5 * log_variance), False)
    nll = -(torch.log_softmax(logits, dim=1) * x).sum(dim=1).mean()
    kl = (0.5 * (-log_variance + log_variance.exp() + mean**2 - 1)).sum(dim=1).mean()
    same(found, {"nll": nll, "kl": 0.15 * kl}, model, weights)


@pytest.mark.parametrize("hidden", [(16,), (20, 9, 20)], ids=str)
def test_losses_and_gradients_of_mult_dae_are_those_of_the_plain_form(hidden, monkeypatch):
    model, asked = made(MultDAE, hidden=hidden, l2=0.01).train(), queries(24, WIDE)
    weights, x = exact(model), asked.multi_hot().double()
    row = dropped_row(model, asked, monkeypatch)
    found = model.loss(asked, "train", Clock())
    nll = -(torch.log_softmax(plain(weights, "layers", row, True), dim=1) * x).sum(dim=1).mean()
    l2 = sum((value**2).sum() for name, value in weights.items() if name.endswith("weight"))
    same(found, {"nll": nll, "l2": 0.01 * l2}, model, weights)


def test_scores_are_the_plain_logits_of_the_mean_without_any_draw():
    asked = queries(24, WIDE)
    row = F.normalize(asked.multi_hot().double())
    vae, dae = made(MultVAE, hidden=(16,), latent_size=7).eval(), made(MultDAE, hidden=(16,)).eval()
    weights = exact(vae)
    mean = plain(weights, "encoder", row, True)[:, :7]
    np.testing.assert_allclose(vae.score(asked), plain(weights, "decoder", mean, False).detach(), atol=1e-6)
    np.testing.assert_allclose(dae.score(asked), plain(exact(dae), "layers", row, True).detach(), atol=1e-6)
    state = torch.get_rng_state()
    vae.score(asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert not vae.stochastic


def test_the_divergence_counts_in_proportion_to_the_finished_batches_up_to_a_cap():
    model = made(MultVAE)
    for batch, expected in ((0, 0), (1, 5e-6), (20_000, 0.1), (40_000, 0.2), (200_000, 0.2)):
        assert model.beta(Clock(batch=batch)) == pytest.approx(expected)


def test_the_networks_have_the_widths_of_the_paper():
    """I -> 600 -> 2 x 200 and 200 -> 600 -> I; I -> 200 -> I."""
    shapes = {name: tuple(value.shape) for name, value in made(MultVAE).named_parameters() if name.endswith("weight")}
    assert list(shapes.values()) == [(WIDE, 600), (400, 600), (600, 200), (WIDE, 600)]
    shapes = {name: tuple(value.shape) for name, value in made(MultDAE).named_parameters() if name.endswith("weight")}
    assert list(shapes.values()) == [(WIDE, 200), (WIDE, 200)]


@pytest.mark.parametrize("kind", [MultVAE, MultDAE])
def test_initial_weights_are_uniform_and_biases_a_normal_cut_at_two_deviations(kind):
    for name, parameter in kind(kind.Config(), 2000).named_parameters():
        value = parameter.detach()
        if name.endswith("weight"):
            bound = (6 / sum(value.shape)) ** 0.5
            assert bound * 0.99 < float(value.abs().max()) <= bound
            assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
        else:
            assert float(value.abs().max()) <= 0.002
            assert float(value.std()) == pytest.approx(0.00088, rel=0.15)


class TestMultVAE(RecommenderLaws):
    model = "noise2next.models.mult_vae.MultVAE"
    options: ClassVar = {"hidden": [32], "latent_size": 16, "total_anneal_steps": 500}
    trainer = TrainerConfig(epochs=50, batch_size=40, patience=50, metric="recall@10", learning_rate=0.01)


class TestMultDAE(RecommenderLaws):
    model = "noise2next.models.mult_dae.MultDAE"
    options: ClassVar = {"hidden": [32]}
    trainer = TrainerConfig(epochs=40, batch_size=40, patience=40, metric="recall@10", learning_rate=0.01)
