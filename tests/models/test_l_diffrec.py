"""L-DiffRec: a plain dense form beside the fast one, clusters that only permute, and it learns what was planted."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.models.laws import ITEMS, TASTES, RecommenderLaws
from tests.models.test_diffrec import queries

from noise2next.config import TrainerConfig
from noise2next.errors import UserError
from noise2next.models.base import Clock
from noise2next.models.l_diffrec import LDiffRec, cluster_widths
from noise2next.models.rows import item_rows

WIDE = 60  # items of the small models here
KINDS = [
    {"clusters": 1, "encoder": (12,)},
    {"clusters": 1, "encoder": (20, 12), "decoder": (15,)},
    {"clusters": 2, "encoder": (12,)},
    {"clusters": 3, "encoder": (24, 18, 12), "decoder": (1,)},
    {"clusters": 4, "encoder": (12,), "decoder": (99, 99)},
    {"clusters": 5, "encoder": (30, 12), "nll_target": "clean"},
    {"clusters": 2, "encoder": (12,), "reweight": False, "steps": 1, "step_embedding_size": 0},
]


def labels(clusters, items=WIDE, seed=0):
    """Every cluster has at least two items, and no two need have as many."""
    draw = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(items, generator=draw).square() * clusters).long()
    drawn[: 2 * clusters] = torch.arange(clusters).repeat(2)
    return drawn[torch.randperm(items, generator=draw)]


def model(item_clusters=None, **options):
    """With weights so large that no tanh is nearly linear."""
    torch.manual_seed(0)
    config = LDiffRec.Config(**{"steps": 4, "hidden": (16,), "schedule": "cosine", **options})
    made = LDiffRec(config, WIDE, labels(config.clusters) if item_clusters is None else item_clusters)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5).add_(0.05 * torch.randn_like(parameter))
    return made.eval()


# --- the plain form ---------------------------------------------------------------------------------------------------


class Plain:
    """The paper's model on dense float64 rows, items permuted so that clusters are contiguous."""

    def __init__(self, made):
        self.config, self.process = made.config, made.process
        self.weights = {name: value.detach().double().requires_grad_() for name, value in made.named_parameters()}
        clusters = made.item_clusters
        self.order = torch.cat([(clusters == one).nonzero().squeeze(1) for one in range(made.config.clusters)])
        self.sizes = torch.bincount(clusters).tolist()

    def layer(self, x, name):
        weight = self.weights[f"{name}.weight"]
        return (
            x @ (weight if name.startswith("encoders") and ".first" in name else weight.T)
            + self.weights[f"{name}.bias"]
        )

    def perceptron(self, x, name):
        x = self.layer(x, f"{name}.first")
        for k in range(sum(one.startswith(f"{name}.others") for one in self.weights) // 2):
            x = self.layer(torch.tanh(x), f"{name}.others.{k}")
        return x

    def encode(self, x):
        parts = x[:, self.order].split(self.sizes, dim=1)
        found = [torch.tanh(self.perceptron(part, f"encoders.{c}")) for c, part in enumerate(parts)]
        means = [one[:, : one.shape[1] // 2] for one in found]
        return torch.cat(means, dim=1), torch.cat([one[:, one.shape[1] // 2 :] for one in found], dim=1)

    def decode(self, z):
        if not self.config.decoder or self.config.clusters == 1:
            return self.perceptron(z, "decoders.0")
        widths = [self.weights[f"decoders.{c}.first.weight"].shape[1] for c in range(self.config.clusters)]
        parts = [self.perceptron(part, f"decoders.{c}") for c, part in enumerate(z.split(widths, dim=1))]
        scores = torch.zeros(len(z), WIDE, dtype=torch.float64)
        scores[:, self.order] = torch.cat(parts, dim=1)
        return scores

    def denoise(self, z, t):
        first = z @ self.weights["denoiser.from_items.weight"].T
        if self.config.step_embedding_size:
            half = self.config.step_embedding_size // 2
            angles = t[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
            e = self.layer(torch.cat([angles.cos(), angles.sin()], dim=1), "denoiser.embedding")
            first = first + self.layer(e, "denoiser.from_step")
        else:
            first = first + self.weights["denoiser.from_items.bias"]
        return self.layer(torch.tanh(first), "denoiser.decode")

    def score(self, x):
        z, _ = self.encode(x)
        for step in reversed(range(self.config.steps)):
            t = torch.full((len(z),), step)
            z = self.process.posterior_mean(self.denoise(z, t), z, t)
        return self.decode(z)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_scores_are_those_of_the_plain_form(options):
    made, asked = model(**options), queries(24, WIDE)
    expected = Plain(made).score(asked.multi_hot().double()).detach()
    np.testing.assert_allclose(made.score(asked), expected, atol=1e-5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_losses_and_gradients_are_those_of_the_plain_form(options, monkeypatch):
    made, asked = model(**options).train(), queries(24, WIDE)
    plain, clock = Plain(made), Clock(epoch=100, batch=30)
    once = asked.folded()
    kept = 1.25 * torch.randint(0, 2, (len(once.items),))
    dropped = torch.zeros(24, WIDE, dtype=torch.float64)
    dropped[once.rows(), once.items] = (once.weights * kept).double()
    t, divisor, mask = torch.arange(24) % made.config.steps, 0.5 + torch.rand(24), 2.0 * torch.randint(0, 2, (24, 12))
    of_latent, of_diffusion = torch.randn(24, 12), torch.randn(24, 12)
    draws = iter([of_latent, of_diffusion])
    monkeypatch.setattr(made.input_dropout, "_mask", lambda values: kept)
    monkeypatch.setattr(made.denoiser.dropout, "_mask", lambda z: mask)
    monkeypatch.setattr(made.step_sampler, "forward", lambda size: (t, divisor))
    monkeypatch.setattr(torch, "randn_like", lambda like: next(draws))
    found = made.loss(asked, "train", clock)

    mean, log_variance = plain.encode(dropped)
    z0 = mean + torch.exp(0.5 * log_variance) * of_latent
    restored = plain.denoise(plain.process.add_noise(z0, t, of_diffusion.double()) * mask, t)
    error = ((restored - z0) ** 2).mean(dim=1)
    target = dropped if made.config.nll_target == "dropped" else asked.multi_hot().double()
    nll = -(torch.log_softmax(plain.decode(restored), dim=1) * target).sum(dim=1).mean()
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
    if made.config.reweight:
        weighed = plain.process.weight_x0[t] * error
        expected = {"diffusion": 0.024 * (weighed / divisor).mean(), "nll": nll, "kl": 0.15 * kl}
    else:
        expected = {"diffusion": (error / divisor).mean(), "nll": 0.024 * nll, "kl": 0.024 * 0.15 * kl}
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, parameter in made.named_parameters():
        right = plain.weights[name].grad
        np.testing.assert_allclose(parameter.grad, right, atol=2e-6 * max(1.0, float(right.abs().max())), err_msg=name)


# --- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "width", "expected"),
    [
        ([1016, 1794], 300, [108, 192]),
        ([2, 998], 300, [1, 299]),
        ([10, 10, 10], 100, [33, 33, 34]),
        ([7], 300, [300]),
        ([2, 2, 2, 2, 92], 20, [1, 1, 1, 1, 16]),
    ],
)
def test_a_latent_is_shared_by_size_rounded_down_and_the_last_has_the_rest(sizes, width, expected):
    assert cluster_widths(sizes, width) == expected


def test_every_layer_of_an_encoder_is_shared_and_its_decoder_mirrors_it():
    made = model(torch.arange(WIDE) % 3 // 2, clusters=2, encoder=(30, 12), decoder=(7,))  # 40 and 20 items
    found = [[module.weight.shape for module in (net.first, *net.others)] for net in (*made.encoders, *made.decoders)]
    assert found == [[(40, 20), (16, 20)], [(20, 10), (8, 10)], [(20, 8), (40, 20)], [(10, 4), (20, 10)]]


def test_mean_and_log_variance_lie_within_one():
    made = model()
    with torch.no_grad():
        made.encoders[0].first.weight.mul_(1000)
        found = made._encode(item_rows(queries(24, WIDE)))
    assert all(float(one.abs().max()) == pytest.approx(1, abs=1e-6) for one in found)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_new_labels_for_items_only_move_the_columns(options):
    """Item j of the other model is item order[j] of this one, and so are its cluster and its weights."""
    made, asked = model(**options), queries(24, WIDE)
    order = torch.randperm(WIDE, generator=torch.Generator().manual_seed(1))
    other = model(made.item_clusters[order], **options)
    state = made.state_dict()
    state["item_clusters"] = made.item_clusters[order]
    shared = len(made.decoders) == 1
    last = f"others.{len(made.decoders[0].others) - 1}" if len(made.decoders[0].others) else "first"
    starts = np.cumsum([0, *made.sizes])
    for c in range(made.config.clusters):
        mine = (other.item_clusters == c).nonzero().squeeze(1)
        rows = made.position[order[mine]] - starts[c]
        state[f"encoders.{c}.first.weight"] = state[f"encoders.{c}.first.weight"][rows]
        if not shared:
            for part in ("weight", "bias"):
                state[f"decoders.{c}.{last}.{part}"] = state[f"decoders.{c}.{last}.{part}"][rows]
    if shared:
        for part in ("weight", "bias"):
            state[f"decoders.0.{last}.{part}"] = state[f"decoders.0.{last}.{part}"][order]
    other.load_state_dict(state)
    place = order.argsort()
    moved = type(asked)(asked.indptr, place[asked.items], asked.weights, None, asked.keys, WIDE)
    np.testing.assert_allclose(other.score(moved), made.score(asked)[:, order], atol=1e-5)


@pytest.mark.parametrize("decoder", [(), (1,)], ids=["one decoder", "a decoder each"])
def test_the_order_of_the_clusters_does_not_matter(decoder):
    """With the encoders in another order, and the latent's places permuted alike, the scores are the same."""
    clusters = torch.arange(WIDE) % 6 // 2
    clusters[clusters == 2] = torch.tensor([2, 2, 2, 2, 1] * 4)  # of 20, 24 and 16 items
    options = {"clusters": 3, "encoder": (45, 15), "decoder": decoder}
    made, asked = model(clusters, **options), queries(24, WIDE)
    new = torch.tensor([2, 0, 1])  # the label that each cluster gets
    other = model(new[clusters], **options)
    assert [made.latent_sizes[c] for c in new.argsort()] == other.latent_sizes == [6, 4, 5]
    bounds = np.cumsum([0, *made.latent_sizes])
    places = torch.cat([torch.arange(bounds[c], bounds[c + 1]) for c in new.argsort().tolist()])
    state = made.state_dict()
    moved = {"item_clusters": new[clusters]}
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        if kind == "encoders" or (kind == "decoders" and decoder):
            c, _, rest = rest.partition(".")
            moved[f"{kind}.{int(new[int(c)])}.{rest}"] = value
        elif name in ("decoders.0.first.weight", "denoiser.from_items.weight"):
            moved[name] = value[:, places]
        elif name in ("denoiser.decode.weight", "denoiser.decode.bias"):
            moved[name] = value[places]
        else:
            moved.setdefault(name, value)
    other.load_state_dict(moved)
    np.testing.assert_allclose(other.score(asked), made.score(asked), atol=1e-5)


@pytest.mark.parametrize(
    ("item_clusters", "said"),
    [
        (torch.zeros(WIDE, dtype=torch.int64), r"\[60, 0\] items"),
        (torch.arange(WIDE) % 3, "from 0 to 2, and options.clusters 2 asks for 0 to 1"),
        (torch.arange(WIDE) % 2 - 1, "from -1 to 0"),
        (torch.tensor([1] + [0] * (WIDE - 1)), r"\[59, 1\] items"),
        (torch.arange(10) % 2, "10 labels for 60 items"),
    ],
)
def test_labels_that_are_no_such_clusters_are_refused(item_clusters, said):
    with pytest.raises(UserError, match=said):
        model(item_clusters, clusters=2)


def test_a_latent_too_narrow_for_its_clusters_is_refused():
    with pytest.raises(UserError, match="a width of 2 is too small for 3 clusters"):
        model(clusters=3, encoder=(2,))


# --- training ---------------------------------------------------------------------------------------------------------


def test_lambda_falls_by_epochs_and_the_divergence_grows_by_batches():
    made = model(diffusion_weight=0.03)
    for epoch, expected in ((0, 0.03), (10, 0.0294), (100, 0.024), (417, 0.005), (1000, 0.005)):
        assert made.weights_at(Clock(epoch=epoch))[0] == pytest.approx(expected)
    for finished, expected in ((0, 0.0), (1, 0.005), (30, 0.15), (60, 0.3), (61, 0.3), (9000, 0.3)):
        assert made.weights_at(Clock(batch=finished))[1] == pytest.approx(expected)


@pytest.mark.parametrize(("own", "expected"), [(5e-4, 5e-4), (None, 1e-3)])
def test_the_denoiser_may_have_a_learning_rate_of_its_own(own, expected):
    made = model(denoiser_learning_rate=own)
    autoencoders, denoiser = made.trained_in("train", 1e-3)
    assert (autoencoders["lr"], denoiser["lr"]) == (1e-3, expected)
    assert {id(one) for one in denoiser["params"]} == {id(one) for one in made.denoiser.parameters()}
    trained = [id(one) for group in (autoencoders, denoiser) for one in group["params"]]
    assert sorted(trained) == sorted(id(one) for one in made.parameters())


def test_initial_weights_are_of_xavier_and_biases_zero():
    made = LDiffRec(LDiffRec.Config(), 3000, labels(2, 3000))
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif not name.startswith("denoiser"):
            deviation = float(parameter.detach().std())
            assert deviation == pytest.approx((2 / sum(parameter.shape)) ** 0.5, rel=0.03), name


def test_losses_fill_the_memory_of_the_step_sampler():
    made = model().train()
    made.loss(queries(50, WIDE), "train", Clock())
    assert int(made.step_sampler.seen.sum()) == 50
    assert made.step_sampler.losses.max() > 0


# --- scoring ----------------------------------------------------------------------------------------------------------

DRAWN = [{"sampling_noise": True}, {"sampling_steps": 3}]


@pytest.mark.parametrize("options", [{}, *DRAWN], ids=str)
def test_a_row_does_not_depend_on_its_batch(options):
    made, asked = model(**options), queries(40, WIDE)
    alone = torch.cat([made.score(asked.select(torch.tensor([user]))) for user in range(40)])
    np.testing.assert_allclose(made.score(asked), alone, atol=1e-5)


@pytest.mark.parametrize("options", [{}, *DRAWN], ids=str)
def test_scores_follow_the_seed_where_they_are_drawn_and_only_there(options):
    made, asked = model(**options), queries(5, WIDE)
    first = made.score(asked)
    assert torch.equal(made.score(asked), first)
    made.scoring_seed = 1
    assert torch.allclose(made.score(asked), first, atol=1e-3) != made.stochastic
    assert made.stochastic == bool(options)


@pytest.mark.parametrize("options", [{}, *DRAWN], ids=str)
def test_the_chain_seen_step_by_step_ends_in_the_scores(options):
    made, asked = model(**options), queries(5, WIDE)
    steps, seen = zip(*made.denoising(asked), strict=True)
    assert steps == (3, 2, 1, 0)
    assert torch.equal(seen[-1], made.score(asked))
    assert not torch.allclose(seen[0], seen[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"clusters": 6}, "clusters"),
        ({"encoder": []}, "encoder"),
        ({"noise_min": 0.02, "noise_max": 0.01}, "noise_min"),
        ({"sampling_steps": 6}, "sampling_steps"),
        ({"nll_target": "noisy"}, "nll_target"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_their_place(options, place):
    with pytest.raises(ValidationError, match=place):
        LDiffRec.Config(**options)


class TestLDiffRec(RecommenderLaws):
    model = "noise2next.models.l_diffrec.LDiffRec"
    options: ClassVar = {
        "steps": 5,
        "encoder": [32],
        "hidden": [32],
        "schedule": "cosine",
        "dropout": 0.0,
        "denoiser_learning_rate": 0.01,
    }
    trainer = TrainerConfig(epochs=60, batch_size=40, patience=60, metric="recall@10", learning_rate=0.01)


class TestLDiffRecWithADecoderForEachTaste(RecommenderLaws):
    model = "noise2next.models.l_diffrec.LDiffRec"
    options: ClassVar = {
        "steps": 3,
        "clusters": 4,
        "encoder": [48, 32],
        "decoder": [32],
        "hidden": [32],
        "schedule": "cosine",
        "dropout": 0.0,
    }
    trainer = TrainerConfig(epochs=40, batch_size=40, patience=40, metric="recall@10", learning_rate=0.01)
    item_clusters = torch.arange(ITEMS) * TASTES // ITEMS
