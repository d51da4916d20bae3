"""DiffuRec: the approximator against a plain padded form, and what its draws and its steps may depend on."""

import math
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from tests.models.laws import SequenceLaws, scores
from torch import Tensor, nn

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.diffusion.step_sampler import StepSampler
from noise2next.models.diffurec import DiffuRec

ITEMS = 30
SMALL: dict[str, int] = {"embedding_size": 8, "blocks": 2, "heads": 2, "steps": 4, "max_length": 6}


def histories(*lengths: int, seed: int = 0) -> Queries:
    draw = torch.Generator().manual_seed(seed)
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(ITEMS, (sum(lengths),), generator=draw)
    return Queries(indptr, items, torch.ones(sum(lengths)), None, torch.arange(len(lengths)) + 5, ITEMS)


def model(**options: object) -> DiffuRec:
    torch.manual_seed(1)
    return DiffuRec(DiffuRec.Config.model_validate({**SMALL, **options}), ITEMS).eval()


def plainly(net: DiffuRec, items: list[int], noised: Tensor, share: Tensor) -> Tensor:
    """One history, left-padded to the full length: x_0 [H] from x_t plus the step's vector [H], and lambda [L, H]."""
    length, heads = net.config.max_length, net.config.heads
    items = items[-length:]
    ids = torch.tensor([ITEMS] * (length - len(items)) + items)
    real = ids != ITEMS
    x = nn.functional.layer_norm(
        net.items.weight[ids], (net.config.embedding_size,), net.normalise.weight, net.normalise.bias, 1e-12
    )
    x = x + share * noised
    for layer in net.layers:
        normed = layer.before_attention(x)
        q, k, v = (part(normed).view(length, heads, -1) for part in (layer.query, layer.key, layer.value))
        logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        if net.config.mask_keys:
            logits = logits.masked_fill(~real[None, None, :], -torch.inf)
        else:  # the authors put the mask on the rows
            logits = logits.masked_fill(~real[None, :, None], -1e9)
        x = x + layer.mix(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).flatten(1))
        inner = layer.widen(layer.before_feed_forward(x))
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + layer.narrow(inner)
    return net.output_norm(x)[-1]


def test_the_step_is_told_as_published_whatever_their_number():
    wanted = [0.6751467719, -0.9965605216, 0.008296231624, 0.9878177838,
              -0.7376834256, 0.08286812933, 0.9999655857, 0.1556149928]  # fmt: skip
    found = model(steps=32)._waves(torch.tensor([5]))[0]
    assert found.tolist() == pytest.approx(wanted, rel=1e-8)
    (quickest,) = model(steps=12)._waves(torch.tensor([11]))[:, 4].tolist()  # w_0 = 1
    assert quickest == pytest.approx(math.sin(11 * 1000 / 12), abs=1e-12)


class TestDiffuRec(SequenceLaws):
    model = "noise2next.models.diffurec.DiffuRec"
    options: ClassVar = {
        "embedding_size": 16,
        "blocks": 1,
        "heads": 2,
        "steps": 4,
        "max_length": 8,
        "embedding_dropout": 0.1,
    }
    trainer = TrainerConfig(epochs=12, batch_size=64, learning_rate=5e-3, evaluate_every=4, metric="recall@10")
    tolerance = 1e-4


@pytest.mark.parametrize("mask_keys", [False, True])
def test_the_packed_network_is_the_plain_padded_one(mask_keys: bool) -> None:
    net, queries = model(mask_keys=mask_keys).double(), histories(3, 1, 9, 6)
    x_t, t = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 3, 1, 2])
    tokens, packing, padded = net._read(queries)
    share = torch.randn_like(tokens)
    found = net._restore(tokens, packing, padded, x_t, t, share)
    start = 0
    for row, items in enumerate(torch.split(queries.items, queries.lengths.tolist())):
        count = int(packing.lengths[row])
        tau = float(t[row]) * 1000 / 4
        waves = torch.tensor([tau * 10000 ** (-k / 4) for k in range(4)], dtype=torch.float64)
        noised = x_t[row] + net.tell_step(torch.cat([waves.cos(), waves.sin()]))
        mine = torch.zeros(6, 8, dtype=torch.float64)
        mine[6 - count :] = share[start : start + count]
        start += count
        torch.testing.assert_close(found[row], plainly(net, items.tolist(), noised, mine), rtol=1e-9, atol=1e-9)


def test_only_the_newest_items_are_read() -> None:
    net, long = model(mask_keys=True), histories(9, 8)
    assert torch.equal(scores(net, long), scores(net, long.last(6)))
    assert not torch.equal(scores(net, long), scores(net, long.last(5)))


def test_padding_is_read_by_the_papers_form_alone() -> None:
    queries = histories(2, 3)
    for mask_keys, moves in ((False, True), (True, False)):
        net = model(mask_keys=mask_keys)
        before = scores(net, queries)
        with torch.no_grad():
            net.items.weight[-1] += 1
        assert torch.equal(scores(net, queries), before) != moves


@pytest.mark.parametrize("mask_keys", [False, True])
def test_scores_are_drawn_from_seed_and_user_alone(mask_keys: bool) -> None:
    net, queries = model(mask_keys=mask_keys, uncertainty=0.5), histories(3, 3, 5)
    first = scores(net, queries)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(scores(net, queries.select(order)), first[order], rtol=1e-5, atol=1e-5)
    twin = Queries(queries.indptr, queries.items, queries.weights, None, queries.keys + 1, ITEMS)
    assert not torch.isclose(scores(net, twin), first).all(dim=1).any()
    net.scoring_seed = 9
    assert not torch.isclose(scores(net, queries), first).all(dim=1).any()
    net.scoring_seed = 0
    assert torch.equal(scores(net, queries), first)


def test_the_chain_ends_in_the_scores_and_goes_from_the_noisiest_step_down() -> None:
    net, queries = model(), histories(3, 4)
    told = list(net.denoising(queries))
    assert [step for step, _ in told] == [3, 2, 1, 0]
    assert torch.equal(told[-1][1], scores(net, queries))


def test_fewer_steps_at_inference_are_spread_over_the_chain() -> None:
    queries = histories(3, 4)
    assert [step for step, _ in model(steps_at_inference=2).denoising(queries)] == [3, 0]
    assert [step for step, _ in model(steps_at_inference=1).denoising(queries)] == [3]
    assert torch.equal(scores(model(steps_at_inference=4), queries), scores(model(), queries))


def test_without_uncertainty_nothing_is_drawn() -> None:
    net, queries = model(uncertainty=0), histories(3, 4)
    first = scores(net, queries)
    net.scoring_seed = 5
    torch.testing.assert_close(scores(net, queries), first, rtol=0, atol=0)


def test_padding_is_a_class_of_the_loss_but_no_item_of_the_scores() -> None:
    net, queries = model(), histories(3, 4)
    assert scores(net, queries).shape == (2, ITEMS)
    net.loss(histories(3, 4), "train", None)["cross_entropy"].backward()
    assert net.items.weight.grad is not None
    assert net.items.weight.grad[-1].abs().sum() > 0


def test_item_vectors_begin_as_torch_has_them_or_as_much_smaller_as_asked_and_all_else_as_it_was() -> None:
    torch.manual_seed(1)
    drawn = nn.Embedding(ITEMS + 1, SMALL["embedding_size"]).weight
    usual, small = model().state_dict(), model(embedding_deviation=0.25).state_dict()
    assert torch.equal(usual.pop("items.weight"), drawn)
    assert torch.equal(small.pop("items.weight"), drawn * 0.25)
    assert all(torch.equal(value, small[name]) for name, value in usual.items())


def test_every_prefix_is_a_sample() -> None:
    net, queries = model(), histories(5, 1, 9)
    assert net.samples(queries) == 4 + 8
    batches = list(net.batches(queries, 5, torch.Generator().manual_seed(0)))
    assert [len(one) for one in batches] == [5, 5, 2]
    assert max(int(one.lengths.max()) for one in batches) == 6 + 1


class TestImportanceSampling(SequenceLaws):
    model = TestDiffuRec.model
    options: ClassVar = {**TestDiffuRec.options, "importance_sampling": True}
    trainer = TestDiffuRec.trainer
    tolerance = 1e-4


def test_a_sample_counts_for_less_the_likelier_its_step_was() -> None:
    net, told = model(importance_sampling=True), {}

    class Told(StepSampler):
        def forward(self, size: int) -> tuple[Tensor, Tensor]:
            told["t"], told["divisor"] = torch.arange(size) % 4, torch.arange(1.0, size + 1)
            return told["t"], told["divisor"]

        def record(self, t: Tensor, losses: Tensor) -> None:
            assert torch.equal(t, told["t"])
            told["losses"] = losses

    net.step_sampler = Told(4)
    loss = net.loss(histories(3, 4, 5, 6, 2), "train", None)["cross_entropy"]
    assert loss.item() == pytest.approx((told["losses"] / told["divisor"]).mean().item(), rel=1e-6)
    assert told["losses"].std() > 0


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"embedding_size": 10, "heads": 4}, "multiple of heads"),
        ({"steps": 4, "steps_at_inference": 5}, "above steps 4"),
        ({"schedule": "piecewise-linear", "steps": 8}, "more than 10 steps"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        DiffuRec.Config.model_validate({**SMALL, **options})
