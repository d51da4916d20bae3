"""DiffRec: the fast forms equal the plain ones, and it learns what was planted."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from benchmarks.plain_diffrec import PlainDiffRec, PlainNetwork
from pydantic import ValidationError
from tests.models.laws import RecommenderLaws
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.evaluation.ranking import rank
from noise2next.models.base import Clock, HasDenoising
from noise2next.models.diffrec import DiffRec
from noise2next.training.fit import fit

OFFICIAL = {"steps": 40, "hidden": (200, 600), "noise_scale": 0.005, "noise_min": 0.005, "noise_max": 0.01}


def queries(users, items, seed=0):
    """Random histories, some empty, some with repeats, with weights."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (users,), generator=draw)
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    n = int(indptr[-1])
    chosen = torch.randint(0, items, (n,), generator=draw)
    weights = 0.1 + 0.9 * torch.rand(n, generator=draw)
    keys = torch.randint(-(2**62), 2**62, (users,), generator=draw)
    return Queries(indptr, chosen, weights, None, keys, items)


def model(items=60, **options):
    torch.manual_seed(0)
    return DiffRec(DiffRec.Config(**options), items).eval()


def trained(items=60, **options):
    """A model whose weights are no longer small, so that the chain is far from linear."""
    made = model(items, **options)
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.mul_(2)
    return made


@pytest.mark.parametrize(
    "options",
    [
        OFFICIAL,
        {**OFFICIAL, "parameterisation": "eps"},
        {**OFFICIAL, "hidden": (1000,)},
        {**OFFICIAL, "hidden": (1000,), "parameterisation": "eps"},
        {"steps": 5, "hidden": (8, 16, 32), "schedule": "cosine"},
        {"steps": 5, "hidden": (16,), "schedule": "binomial", "parameterisation": "eps"},
        {"steps": 5, "hidden": (16,), "noise_scale": 0.0},
        {"steps": 1, "hidden": (16, 32)},
        {"steps": 5, "hidden": (16, 32), "step_embedding_size": 0},
        {"steps": 5, "hidden": (16,), "sampling_steps": 3},
        {"steps": 5, "hidden": (16,), "sampling_steps": 5, "parameterisation": "eps", "step_embedding_size": 5},
    ],
    ids=str,
)
def test_the_chain_in_hidden_space_is_the_plain_chain(options):
    made, asked = trained(300, **options), queries(33, 300)
    assert made.reads_in_hidden_space
    plain = made.restore(made._start(asked), asked.keys)
    np.testing.assert_allclose(made.score(asked), plain, atol=1e-5 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("options", [{"normalise": True}, {"sampling_noise": True}])
def test_the_plain_chain_serves_where_the_hidden_one_is_not_exact(options):
    made, asked = model(steps=5, hidden=(16,), **options), queries(9, 60)
    assert not made.reads_in_hidden_space
    assert torch.equal(made.score(asked), made.restore(asked.multi_hot(), asked.keys))


def test_the_final_scores_are_the_network_at_step_zero():
    """c1 = 1 and c2 = 0 at t = 0: what comes out is one network output on the state before."""
    made, asked = trained(steps=4, hidden=(16,)), queries(9, 60)
    x = asked.multi_hot()
    with torch.no_grad():
        for step in (3, 2, 1):
            t = torch.full((9,), step)
            x = made.process.posterior_mean(made.denoiser(x, t), x, t)
        last = made.denoiser(x, torch.zeros(9, dtype=torch.int64))
    np.testing.assert_allclose(made.score(asked), last, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sampling_noise": True}, {"sampling_steps": 3}])
def test_a_row_does_not_depend_on_its_batch(options):
    made, asked = trained(steps=5, hidden=(16,), **options), queries(40, 60)
    together = made.score(asked)
    alone = torch.cat([made.score(asked.select(torch.tensor([user]))) for user in range(40)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("options", [{"sampling_noise": True}, {"sampling_steps": 3}])
def test_stochastic_scores_follow_the_seed(options):
    made, asked = trained(steps=5, hidden=(16,), schedule="cosine", **options), queries(5, 60)
    first = made.score(asked)
    assert torch.equal(made.score(asked), first)
    made.scoring_seed = 1
    assert not torch.allclose(made.score(asked), first, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parameterisation": "eps"},
        {"noise_scale": 0.0},
        {"normalise": True},
        {"sampling_noise": True},
        {"sampling_steps": 3},
    ],
    ids=str,
)
def test_the_list_denoises_step_by_step_to_the_scores(options):
    made, asked = trained(steps=5, hidden=(16,), schedule="cosine", **options), queries(9, 60)
    assert isinstance(made, HasDenoising)
    seen = list(made.denoising(asked))
    assert [step for step, _ in seen] == [4, 3, 2, 1, 0]
    assert not torch.allclose(seen[0][1], seen[-1][1], atol=1e-3)
    size = float(seen[-1][1].abs().max())
    np.testing.assert_allclose(made.score(asked), seen[-1][1], atol=1e-5 * max(1.0, size))


def test_each_step_of_the_list_is_the_network_on_that_state():
    made, asked = trained(steps=4, hidden=(16,)), queries(9, 60)
    x = asked.multi_hot()
    with torch.no_grad():
        for step, predicted in made.denoising(asked):
            t = torch.full((9,), step)
            x0 = made.denoiser(x, t)
            assert torch.equal(predicted, x0)
            x = made.process.posterior_mean(x0, x, t)


@pytest.mark.parametrize(
    ("options", "draws"), [({}, False), ({"sampling_noise": True}, True), ({"sampling_steps": 1}, True)]
)
def test_a_model_says_whether_it_draws(options, draws):
    made, asked = trained(steps=5, hidden=(16,), schedule="cosine", **options), queries(9, 60)
    first = made.score(asked)
    made.scoring_seed = 1
    assert made.stochastic is draws
    assert torch.equal(made.score(asked), first) is not draws


def test_scores_follow_the_weights_after_each_change():
    made, asked = trained(steps=5, hidden=(16,)), queries(5, 60)
    made.begin_scoring()
    old = made.score(asked)
    made.load_state_dict(model(steps=5, hidden=(16,)).state_dict())
    loaded = made.score(asked)
    assert not torch.allclose(loaded, old, atol=1e-3)
    made.train()
    with torch.no_grad():
        made.denoiser.decode.weight.mul_(3)
    made.eval()
    assert not torch.allclose(made.score(asked), loaded, atol=1e-3)
    np.testing.assert_allclose(made.score(asked), made.restore(asked.multi_hot(), asked.keys), atol=1e-5)


def plain_form(made):
    """The benchmark's peer in float64 with the same weights: concatenated first layer, torch's tanh and mean."""
    net, config = made.denoiser, made.config
    network = PlainNetwork(net.decode.out_features, config.hidden).double()
    first = torch.cat([net.from_items.weight, net.from_step.weight], dim=1)
    sources = [(net.embedding.weight, net.embedding.bias), (first, net.from_step.bias)]
    sources += [(layer.weight, layer.bias) for layer in (*net.middle, net.decode)]
    with torch.no_grad():
        for layer, (weight, bias) in zip((network.embedding, *network.layers), sources, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return PlainDiffRec(network, config.steps, config.noise_scale, config.noise_min, config.noise_max)


def test_loss_and_gradients_are_those_of_the_plain_form(monkeypatch):
    made, asked = model(steps=5, hidden=(16, 32), noise_min=0.001).train(), queries(24, 60)
    x0, t, noise = asked.multi_hot(), torch.randint(0, 5, (24,)), torch.randn(24, 60)
    mask, divisor = 2.0 * torch.randint(0, 2, (24, 60)), 0.5 + torch.rand(24)
    monkeypatch.setattr(made.denoiser.dropout, "_mask", lambda x: mask.float())
    monkeypatch.setattr(made.step_sampler, "forward", lambda size: (t, divisor))
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    plain = plain_form(made)
    monkeypatch.setattr(plain.network.dropout, "forward", lambda x: x * mask)
    loss = made.loss(asked, "train", Clock())["denoising"]
    expected = plain.loss_of(x0.double(), t, divisor, noise.double())
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    net, peer = made.denoiser, plain.network
    pairs = [
        (torch.cat([net.from_items.weight.grad, net.from_step.weight.grad], dim=1), peer.layers[0].weight.grad),
        (net.from_step.bias.grad, peer.layers[0].bias.grad),
        (net.embedding.weight.grad, peer.embedding.weight.grad),
        (net.embedding.bias.grad, peer.embedding.bias.grad),
        *((a.weight.grad, b.weight.grad) for a, b in zip([*net.middle, net.decode], peer.layers[1:], strict=True)),
        *((a.bias.grad, b.bias.grad) for a, b in zip([*net.middle, net.decode], peer.layers[1:], strict=True)),
    ]
    for found, right in pairs:
        np.testing.assert_allclose(found, right, atol=1e-6 * float(right.abs().max()))
    rings = [sorted(made.step_sampler.losses[step][made.step_sampler.losses[step] > 0].tolist()) for step in range(5)]
    lists = [sorted(plain.history[step][plain.history[step] > 0].tolist()) for step in range(5)]
    for ring, kept in zip(rings, lists, strict=True):
        np.testing.assert_allclose(ring, kept, rtol=1e-5)


def test_scores_are_those_of_the_plain_form():
    made, asked = (
        trained(steps=40, hidden=(16, 32), noise_scale=0.005, noise_min=0.005, noise_max=0.01),
        queries(24, 60),
    )
    plain = plain_form(made)
    plain.network.eval()
    np.testing.assert_allclose(made.score(asked), plain.score(asked.multi_hot().double()), atol=1e-5)


def test_predicting_noise_is_judged_by_the_weighted_error_of_the_noise(monkeypatch):
    made = model(steps=5, hidden=(16,), parameterisation="eps", dropout=0.0).train()
    asked, t, noise = queries(24, 60), torch.randint(0, 5, (24,)), torch.randn(24, 60)
    monkeypatch.setattr(made.step_sampler, "forward", lambda size: (t, torch.ones(size)))
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    output = made.denoiser(made.process.add_noise(asked.multi_hot(), t, noise), t)
    expected = (made.process.weight_eps[t] * (output - noise).square().mean(dim=1)).mean()
    loss = made.loss(asked, "train", Clock())["denoising"]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_losses_fill_the_memory_of_the_step_sampler():
    made = model(steps=3, hidden=(16,)).train()
    made.loss(queries(50, 60), "train", Clock())
    assert int(made.step_sampler.seen.sum()) == 50
    assert made.step_sampler.losses.max() > 0


def test_without_reweighting_the_loss_is_the_plain_squared_error():
    asked, losses = queries(50, 60), {}
    for reweight in (True, False):
        made = model(steps=3, hidden=(16,), reweight=reweight, importance_sampling=False).train()
        torch.manual_seed(5)
        losses[reweight] = float(made.loss(asked, "train", Clock())["denoising"].detach())
    assert losses[False] < 1 < losses[True]


def test_elbo_terms_are_one_a_step_and_those_of_training_without_dropout():
    made, asked = model(steps=6, hidden=(16,), dropout=0.0), queries(50, 60)
    terms = made.elbo_terms(asked)
    assert terms.shape == (6,)
    assert torch.equal(made.elbo_terms(asked), terms)
    t, noise = torch.full((50,), 4), torch.randn(50, 60)
    with torch.no_grad():
        x0 = asked.multi_hot()
        output = made.denoiser(made.process.add_noise(x0, t, noise), t)
        expected = float(made.process.weight_x0[4] * (output - x0).square().mean())
    assert float(terms[4]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("options", [{"parameterisation": "eps"}, {"noise_scale": 0.0}, {"reweight": False}], ids=str)
def test_a_loss_that_is_not_weighed_by_the_bound_has_no_terms_of_it(options):
    assert model(steps=3, hidden=(16,), **options).elbo_terms(queries(5, 60)) is None


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(found) if isinstance(one, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return found


def test_neither_training_nor_ranking_makes_the_matrix_of_users_and_items(tmp_path):
    """Only a batch of its rows, here at most 20 of 400."""
    train, made = queries(400, 3000), model(3000, hidden=(8,))
    config = TrainerConfig(epochs=1, batch_size=20)
    cpu = torch.device("cpu")
    with LargestTensor() as largest:
        fit(made, train, config, lambda _: {"recall@20": 0.0}, tmp_path / "c", 1, cpu, lambda *_: None, progress=False)
        rank(made, train, [train, None], 10, memory_mb=1)
    assert 20 * 3000 <= largest.elements < 400 * 3000 / 10


class TestDiffRec(RecommenderLaws):
    model = "noise2next.models.diffrec.DiffRec"
    options: ClassVar = {"steps": 5, "hidden": [32], "schedule": "cosine", "dropout": 0.3}
    trainer = TrainerConfig(epochs=60, batch_size=40, patience=60, metric="recall@10", learning_rate=0.01)


class TestDiffRecPredictingNoise(RecommenderLaws):
    model = "noise2next.models.diffrec.DiffRec"
    options: ClassVar = {
        "steps": 5,
        "hidden": [128],
        "schedule": "binomial",
        "dropout": 0.0,
        "parameterisation": "eps",
    }
    trainer = TrainerConfig(epochs=60, batch_size=40, patience=60, metric="recall@10", learning_rate=0.01)


class TestDiffRecInOneStep(RecommenderLaws):
    model = "noise2next.models.diffrec.DiffRec"
    options: ClassVar = {"steps": 1, "hidden": [32], "dropout": 0.3}
    trainer = TrainerConfig(epochs=30, batch_size=40, patience=30, metric="recall@10", learning_rate=0.01)


def test_one_step_is_one_pass_through_the_network():
    made, asked = trained(steps=1, hidden=(16,)), queries(9, 60)
    once = made.denoiser(asked.multi_hot(), torch.zeros(9, dtype=torch.int64))
    np.testing.assert_allclose(made.score(asked), once.detach(), atol=1e-5)


class TestDiffRecNotToldTheStep(RecommenderLaws):
    model = "noise2next.models.diffrec.DiffRec"
    options: ClassVar = {**TestDiffRec.options, "step_embedding_size": 0}
    trainer = TestDiffRec.trainer


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"noise_min": 0.02, "noise_max": 0.01}, "noise_min"),
        ({"steps": 0}, "steps"),
        ({"hidden": []}, "hidden"),
        ({"sampling_steps": 6}, "sampling_steps"),
        ({"noise_scale": 0, "parameterisation": "eps"}, "noise_scale"),
        ({"noise_scale": 1000}, "at most 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"step": 3}, "step"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_their_place(options, place):
    with pytest.raises(ValidationError, match=place):
        DiffRec.Config(**options)
