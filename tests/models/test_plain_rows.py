"""The peers that the benchmark of row models measures against: the same losses, gradients and scores, on tiny data."""

import random

import numpy as np
import pytest
import torch
from benchmarks.plain_diffrec import PlainDiffRec, PlainNetwork
from benchmarks.plain_rows import PlainLDiffRec, PlainLightGCN, preferences
from tests.models.test_diffrec import queries
from tests.models.test_light_gcn import histories, random_histories, with_graph

from noise2next.models.base import Clock
from noise2next.models.l_diffrec import LDiffRec
from noise2next.training.seeding import epoch_order

ITEMS = 60


@pytest.fixture
def both():
    """L-DiffRec in both forms, without dropout, with the same weights; the plain one in float64."""
    torch.manual_seed(0)
    clusters = torch.arange(ITEMS) % 3
    made = LDiffRec(
        LDiffRec.Config(steps=4, hidden=(16,), encoder=(12,), clusters=3, input_dropout=0, dropout=0), ITEMS, clusters
    )
    of = made.config
    network = PlainNetwork(12, of.hidden)
    network.dropout.p = 0.0
    plain = PlainLDiffRec(
        [(clusters == one).nonzero().squeeze(1) for one in range(3)],
        made.latent_sizes,
        0.0,
        of.diffusion_weight,
        PlainDiffRec(network, of.steps, of.noise_scale, of.noise_min, of.noise_max, first_beta=None),
    )
    plain.network.double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5).add_(0.05 * torch.randn_like(parameter))
        for other, mine in layers(plain, made):
            other.weight.copy_(torch.cat([one.weight for one in mine], dim=1))
            other.bias.copy_(mine[-1].bias)
        for other, mine in zip(plain.encoders, made.encoders, strict=True):
            other.weight.copy_(mine.first.weight.T)
            other.bias.copy_(mine.first.bias)
    return made, plain


def layers(plain, made):
    """All but the encoders: a plain layer, and the layers of ours that it is."""
    net = made.denoiser
    ours = [[net.embedding], [net.from_items, net.from_step], *([one] for one in (*net.middle, net.decode))]
    theirs = [plain.diffusion.network.embedding, *plain.diffusion.network.layers]
    return [*zip(theirs, ours, strict=True), (plain.decoder, [made.decoders[0].first])]


def test_the_plain_l_diffrec_has_the_losses_and_gradients_of_ours(both, monkeypatch):
    made, plain = both
    asked, t, divisor = queries(24, ITEMS), torch.randint(0, 4, (24,)), 0.5 + torch.rand(24)
    spread, noise = torch.randn(24, 12), torch.randn(24, 12)
    drawn = iter([spread, noise])
    monkeypatch.setattr(made.step_sampler, "forward", lambda size: (t, divisor))
    monkeypatch.setattr(torch, "randn_like", lambda x: next(drawn))
    plain.epochs, plain.batches = 30, 12
    loss = torch.stack(list(made.train().loss(asked, "train", Clock(epoch=30, batch=12)).values())).sum()
    rows = asked.multi_hot().double()
    expected = plain.loss_of(rows, spread.double(), t, divisor.double(), noise.double())
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    pairs = [
        (torch.cat([one.weight.grad for one in mine], dim=1), other.weight.grad) for other, mine in layers(plain, made)
    ]
    pairs += [
        (mine.first.weight.grad.T, other.weight.grad) for other, mine in zip(plain.encoders, made.encoders, strict=True)
    ]
    for found, right in pairs:
        np.testing.assert_allclose(found, right, atol=2e-6 * float(right.abs().max()))


def test_the_plain_l_diffrec_has_the_scores_of_ours(both):
    made, plain = both
    asked = queries(24, ITEMS)
    plain.network.eval()
    np.testing.assert_allclose(made.eval().score(asked), plain.score(asked.multi_hot().double()), atol=1e-5)


def test_the_plain_lightgcn_has_the_losses_and_gradients_of_ours():
    train = random_histories()
    made = with_graph(train, layers=3, embedding_size=8, decay=0.3)
    pairs = torch.stack([train.folded().rows(), train.folded().items], dim=1)
    plain = PlainLightGCN(len(train), train.n_items, pairs, 8, 3, 0.3)
    with torch.no_grad():
        plain.nodes.copy_(torch.cat([made.users, made.items]))
    batch = next(made.batches(train, 40, epoch_order(1, 0)))
    keys = train.keys.tolist()
    users = torch.tensor([keys.index(key) for key in batch.keys.tolist()])
    loss = torch.stack(list(made.loss(batch, "train", Clock()).values())).sum()
    expected = plain.loss(users, *batch.items.view(-1, 2).unbind(dim=1))
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found = torch.cat([made.users.grad, made.items.grad])
    np.testing.assert_allclose(found, plain.nodes.grad, atol=1e-6 * float(plain.nodes.grad.abs().max()))


def test_plain_preferences_are_of_items_that_the_user_has_taken_and_has_not():
    random.seed(0)
    rows = [[0, 3], [1], [0, 1, 2, 4]]
    drawn = preferences(rows, histories(rows, 6).n_items, 200)
    assert drawn.shape == (200, 3)
    assert all(yes in rows[user] and no not in rows[user] for user, yes, no in drawn.tolist())
