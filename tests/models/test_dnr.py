"""DNR: what it noises, what its losses move, what a score is made of; and it learns what was planted."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tests.models.laws import SequenceLaws
from torch import nn

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import betas, embedding_betas
from noise2next.models.base import Clock, HasDenoising
from noise2next.models.dnr import DNR
from noise2next.nn.packing import Packing
from noise2next.nn.time_embedding import interleaved_step_embedding

ITEMS, L = 30, 6
SCHEDULES = ["truncated-linear", "linear", "quadratic", "sqrt", "cosine"]


def queries(lengths: tuple[int, ...] = (4, 0, 1, 9, 2, 6), seed: int = 0) -> Queries:
    draw = torch.Generator().manual_seed(seed)
    indptr = torch.tensor([0, *np.cumsum(lengths)])
    n = int(indptr[-1])
    items = torch.randint(ITEMS, (n,), generator=draw)
    return Queries(indptr, items, torch.ones(n), None, torch.arange(len(lengths)) * 7919 + 5, ITEMS)


def samples(size: int = 8) -> Queries:
    """A batch of training samples."""
    asked = queries((9, 7, 5, 2))
    return next(iter(model().batches(asked, size, torch.Generator().manual_seed(0))))


def model(**options: Any) -> DNR:
    torch.manual_seed(0)
    chosen = {"embedding_size": 8, "max_length": L, "steps": 12, "seeds": 2, "dropout": 0.0, **options}
    return DNR(DNR.Config(**chosen), ITEMS).eval()


def at_step(made: DNR, step: int, monkeypatch: pytest.MonkeyPatch) -> DNR:
    """Every sample of a batch is trained at t = `step`."""
    monkeypatch.setattr(made.step_sampler, "forward", lambda size: (torch.full((size,), step), torch.ones(size)))
    return made


# --- numbers that were computed by hand in float64 --------------------------------------------------------------------


def test_step_vectors_are_the_published_ones() -> None:
    found = interleaved_step_embedding(torch.tensor([3, 0]), 4)
    expected = [[0.1411200081, -0.9899924966, 0.0299955002, 0.9995500337], [0, 1, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(interleaved_step_embedding(torch.tensor([3]), 3)[0, :2], expected[0][:2], atol=1e-9)
    np.testing.assert_allclose(model().step_vectors[2, :2], expected[0][:2], atol=1e-6)  # row 2 is n = 3


def test_the_linear_process_has_the_published_values() -> None:
    made = GaussianDiffusion(betas("linear", 5, 1.0, 1e-4, 0.02))
    for found, expected in [
        (made.signal**2, [0.9999, 0.9948255075, 0.9848275111, 0.9700304778, 0.9506298682]),
        (made.to_clean, [1, 0.9807234707, 0.660667116, 0.4975248158, 0.3989866819]),
        (made.to_noisy, [0, 0.01927646571, 0.3393263337, 0.5024462528, 0.6009364827]),
        (made.variance, [0, 9.807725105e-5, 0.003427496315, 0.007606615928, 0.01214075034]),
        (made.weight_x0[1:] / 2, [4903.372166, 63.67345108, 16.27076644, 6.556035165]),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_the_quadratic_process_has_the_published_values() -> None:
    """201 steps hold the five of the published example, less the factor 1000 / 201."""
    five = embedding_betas("quadratic", 201)[::50] * 201 / 1000
    np.testing.assert_allclose(five, [1e-4, 0.001836580086, 0.005732106781, 0.01178658009, 0.02], rtol=1e-8)
    made = GaussianDiffusion(five)
    for found, expected in [
        (made.signal**2, [0.9999, 0.9980636036, 0.9923425964, 0.9806462709, 0.9610333455]),
        (made.to_clean, [1, 0.9484051035, 0.7478454306, 0.6066720282, 0.5082683485]),
        (made.to_noisy, [0, 0.05159487353, 0.2521531766, 0.3933165794, 0.4916822997]),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [20, 200])
def test_a_term_of_the_bound_weighs_what_the_signal_loses_to_the_noise(schedule: Any, steps: int) -> None:
    """abar_{n-1} beta_n^2 / (var_n (1 - abar_n)^2) = SNR(n-1) - SNR(n)."""
    beta = embedding_betas(schedule, steps)
    made = GaussianDiffusion(beta)
    kept = torch.cumprod(1 - beta, dim=0)
    ratio = kept / (1 - kept)
    weights = kept[:-1] * beta[1:].square() / (made.variance[1:] * (1 - kept[1:]).square())
    np.testing.assert_allclose(weights, ratio[:-1] - ratio[1:], rtol=1e-6)
    np.testing.assert_allclose(made.weight_x0[1:], weights, rtol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_every_interaction_that_has_one_before_it() -> None:
    made, asked = model(), queries()
    batches = list(made.batches(asked, 5, torch.Generator().manual_seed(1)))
    assert sum(len(batch) for batch in batches) == made.samples(asked) == 3 + 0 + 0 + 8 + 1 + 5
    assert max(int(batch.lengths.max()) for batch in batches) == L + 1  # L are read, one is the target


@pytest.mark.parametrize(("chosen", "scale"), [(None, 8**0.5), (1.5, 1.5)])
def test_only_the_target_is_noised(chosen: float | None, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are sqrt(D) E v + y + z_n in the history, and h^n + y + z_n in the target's place."""
    made, batch = at_step(model(history_scale=chosen), 4, monkeypatch), samples()
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(made.dropout, "forward", lambda tokens: seen.append(tokens) or tokens)
    draws = iter([torch.full((len(batch), 8), 2.0), torch.full((len(batch), 8), -3.0)])  # eps_0, eps
    monkeypatch.setattr(torch, "randn_like", lambda _: next(draws))
    made.loss(batch, "train", Clock())
    beta = embedding_betas("truncated-linear", 12)
    kept = torch.cumprod(1 - beta, dim=0)[4].float()
    at = 0
    for row, length in enumerate(batch.lengths.tolist()):
        items = made.items(batch.items[at : at + length])
        vectors = scale * items
        h0 = items[-1] + 2 * beta[0].sqrt().float()
        vectors[-1] = kept.sqrt() * h0 - 3 * (1 - kept).sqrt()
        places = made.positions.weight[:length].flip(0)  # by age: the target is the last place, whatever the length
        expected = vectors + places + interleaved_step_embedding(torch.tensor([5]), 8).float()
        torch.testing.assert_close(seen[0][at : at + length], expected, msg=f"sample {row}")
        at += length


@pytest.mark.parametrize(("chosen", "deviation"), [(None, 0.125), (0.5, 0.5)])
def test_items_classes_and_estimates_begin_at_one_length(chosen: float | None, deviation: float) -> None:
    made = DNR(DNR.Config(embedding_size=64, embedding_deviation=chosen), 2000)
    for table in (made.items.weight, made.classes):
        assert float(table.detach().std()) == pytest.approx(deviation, rel=0.02)
    estimates = made.eval().restore(queries(), range(2))
    np.testing.assert_allclose(estimates.norm(dim=2), 8 * deviation, rtol=1e-3)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("deviation", [None, 64**-0.25, 1.0])
def test_logits_begin_alike_wherever_vectors_begin(deviation: float | None, tie: bool) -> None:
    """With deviation 1, as the notes have it: estimates of length D^(1/4), classes N(0, 1 / sqrt(D))."""
    torch.manual_seed(0)
    made = DNR(DNR.Config(embedding_size=64, embedding_deviation=deviation, tie=tie, seeds=1), 2000).eval()
    assert float(made.score(queries((9, 7, 5, 2))).std()) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("residual", [False, True])
def test_an_estimate_is_what_the_blocks_add_unless_what_they_add_it_to_is_asked_for(residual: bool) -> None:
    """Blocks that add nothing make nothing of any noise; with the residual the noise is all that there is."""
    made, batch = model(slot_residual=residual, dropout=0.0 if residual else 0.5).train(), samples()
    for block in made.blocks:
        for layer in (block.mix, block.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    packing = Packing(batch.indptr)
    noised, t = torch.randn(len(batch), 8), torch.full((len(batch),), 4)
    found = made._denoise(made.items(batch.items), noised, t, packing)
    stands = noised + made.positions.weight[0] + made.step_vectors[4]
    torch.testing.assert_close(found, made.norm(stands if residual else torch.zeros_like(stands)))


@pytest.mark.parametrize(("step", "towards"), [(0, "item"), (1, "h0")])
def test_the_first_step_is_judged_by_the_item_and_the_others_by_its_noised_vector(
    step: int, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, batch = at_step(model(added_variance=4.0), step, monkeypatch), samples()
    estimates: list[torch.Tensor] = []
    denoise = made._denoise
    monkeypatch.setattr(made, "_denoise", lambda *given: estimates.append(denoise(*given)) or estimates[-1])
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    loss = made.loss(batch, "train", Clock())["denoising"]
    item = made.items(batch.items[batch.indptr[1:] - 1])
    wanted = item if towards == "item" else item + 2
    expected = (estimates[0] - wanted).square().sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("chosen", "deviation"), [(None, 0.0), (0.0, None), (0.25, 0.5)])
def test_the_added_transition_has_the_first_beta_or_the_variance_that_is_said(
    chosen: float | None, deviation: float | None
) -> None:
    expected = float(embedding_betas("truncated-linear", 12)[0]) ** 0.5 if chosen is None else deviation or 0.0
    assert model(added_variance=chosen).added_deviation == pytest.approx(expected)


@pytest.mark.parametrize(("deviation", "scale"), [(None, 8**0.5), (8**-0.25, 1.0)])
@pytest.mark.parametrize("ce_on", ["clean", "pred"])
def test_an_item_is_told_by_its_scaled_product(
    ce_on: Any, deviation: float | None, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-log softmax over items of scale <x, E v> + b, with x the clean vector or its estimate; in scores alike."""
    made, batch = model(ce_on=ce_on, tie=True, embedding_deviation=deviation, added_variance=0.0), samples()
    nn.init.normal_(made.bias)
    told = torch.randn(len(batch), 8)
    monkeypatch.setattr(made, "_denoise", lambda *_: told)
    wanted = batch.items[batch.indptr[1:] - 1]
    x = told if ce_on == "pred" else made.items(wanted)
    logits = scale * x @ made.items.weight.T + made.bias
    expected = (logits.logsumexp(dim=1) - logits[torch.arange(len(batch)), wanted]).mean()
    torch.testing.assert_close(made.loss(batch, "train", Clock())["cross_entropy"], expected)
    torch.testing.assert_close(made._logits(told[:, None]), scale * told @ made.items.weight.T + made.bias)


@pytest.mark.parametrize(("ce_on", "moves"), [("clean", False), ("pred", True)])
def test_the_cross_entropy_moves_the_encoder_only_where_it_is_taken_of_its_estimate(ce_on: Any, moves: bool) -> None:
    made = model(ce_on=ce_on)
    made.loss(samples(), "train", Clock())["cross_entropy"].backward()
    assert (made.blocks[0].query.weight.grad is not None) is moves
    assert made.classes.grad.abs().sum() > 0
    assert made.bias.grad.abs().sum() > 0
    assert made.items.weight.grad.abs().sum() > 0


def test_the_squared_error_moves_the_encoder_and_both_ends_of_the_target_but_no_softmax_layer() -> None:
    made, batch = model(), samples()
    made.loss(batch, "train", Clock())["denoising"].backward()
    assert made.blocks[0].query.weight.grad.abs().sum() > 0
    assert made.items.weight.grad[batch.items[batch.indptr[1:] - 1]].abs().sum(1).gt(0).all()
    assert made.classes.grad is None


def test_a_squared_error_of_the_whole_vector_is_remembered_before_it_is_weighted() -> None:
    losses, remembered = [], []
    for weight in (1.0, 0.25):
        made = model(mse_weight=weight)
        torch.manual_seed(3)
        losses.append(float(made.loss(samples(), "train", Clock())["denoising"].detach()))
        remembered.append(made.step_sampler.losses.clone())
    assert losses[1] == pytest.approx(losses[0] / 4)
    assert torch.equal(*remembered)
    assert float(remembered[0].sum()) / 8 == pytest.approx(losses[0])  # eight samples, all steps alike at the start


def test_the_prior_term_is_what_the_last_step_leaves_of_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    made, batch = model(prior_weight=2.0, added_variance=0.0), samples()
    kept = torch.cumprod(1 - embedding_betas("truncated-linear", 12), dim=0)[-1].float()
    item = made.items(batch.items[batch.indptr[1:] - 1])
    expected = 2 * (kept.sqrt() * item).square().sum(1).mean()
    torch.testing.assert_close(made.loss(batch, "train", Clock())["prior"], expected)
    assert "prior" not in model().loss(batch, "train", Clock())


def test_tied_classes_are_the_items_themselves() -> None:
    tied, own = model(tie=True), model()
    names = [set(dict(one.named_parameters())) for one in (own, tied)]
    assert names[0] - names[1] == {"classes"}
    vectors = tied.restore(queries(), range(2)).mean(dim=1)
    expected = F.linear(8**0.5 * vectors, tied.items.weight, tied.bias)
    torch.testing.assert_close(tied.score(queries()), expected)


def test_losses_are_float32_where_products_are_bfloat16() -> None:
    made = model(ce_on="pred").train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = made.loss(samples(), "train", Clock())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    torch.stack(list(terms.values())).sum().backward()
    assert all(one.grad.dtype == torch.float32 for one in made.parameters() if one.grad is not None)


# --- scoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [False, True])
def test_scores_depend_on_the_seed_and_the_user_alone(chain: bool) -> None:
    made, asked = model(chain=chain), queries()
    assert made.stochastic
    together = made.score(asked)
    alone = torch.cat([made.score(asked.select(torch.tensor([user]))) for user in reversed(range(len(asked)))]).flip(0)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    made.scoring_seed = 1
    assert (made.score(asked) - together).abs().amax(dim=1).gt(1e-4).all()
    same = Queries(asked.indptr, asked.items, asked.weights, None, torch.full_like(asked.keys, 5), ITEMS)
    made.scoring_seed = 0
    changed = (made.score(same) - together).abs().amax(dim=1)
    assert changed[0] < 1e-5 < changed[1:].min()  # the first user had this key before


def test_many_seeds_are_the_mean_of_the_logits_of_each() -> None:
    made, asked = model(seeds=5), queries()
    vectors = [8**0.5 * made.restore(asked, [draw])[:, 0] for draw in range(5)]
    each = [F.linear(one, made.classes, made.bias).detach() for one in vectors]
    assert (each[0] - each[1]).abs().max() > 1e-3
    np.testing.assert_allclose(made.score(asked), torch.stack(each).mean(0), atol=1e-5)


def test_blocks_of_scoring_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = model(seeds=3), queries()
    whole = made.score(asked)
    monkeypatch.setattr("noise2next.models.dnr._MOST_SEQUENCES", 4)
    np.testing.assert_allclose(made.score(asked), whole, atol=1e-5)


def test_the_oldest_makes_room_for_the_place_of_the_next() -> None:
    made = model()
    long = queries((L,))
    short = long.last(L - 1)
    assert torch.equal(made.score(long), made.score(short))
    assert not torch.allclose(made.score(short), made.score(long.last(L - 2)), atol=1e-4)


def test_order_matters() -> None:
    made, asked = model(), queries((4,))
    turned = Queries(asked.indptr, asked.items.flip(0), asked.weights, None, asked.keys, ITEMS)
    assert not torch.allclose(made.score(asked), made.score(turned), atol=1e-4)


def test_one_step_is_the_beginning_of_the_chain_and_the_chain_ends_in_its_last() -> None:
    made, asked = model(), queries()
    assert isinstance(made, HasDenoising)
    ((first, alone),) = made.denoising(asked)
    whole = model(chain=True)
    chain = list(whole.denoising(asked))
    assert [step for step, _ in chain] == list(reversed(range(12)))
    assert first == 11
    np.testing.assert_allclose(made.score(asked), alone, atol=1e-6)
    np.testing.assert_allclose(made.score(asked), chain[0][1], atol=1e-6)
    np.testing.assert_allclose(whole.score(asked), chain[-1][1], atol=1e-6)
    assert not torch.allclose(chain[-1][1], chain[0][1], atol=1e-3)


def test_the_chain_of_a_perfect_estimate_ends_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state on the way has the marginal of its step: mean sqrt(abar_n) h^0, variance 1 - abar_n."""
    made = model(chain=True, steps=5, embedding_size=400, schedule="cosine")
    asked = queries((3, 3, 3))
    states = []

    def perfect(vectors: Any, noised: torch.Tensor, t: torch.Tensor, packing: Any) -> torch.Tensor:
        states.append(noised)
        return torch.full_like(noised, 2.0)

    monkeypatch.setattr(made, "_denoise", perfect)
    assert torch.equal(made.restore(asked, range(4)), torch.full((3, 4, 400), 2.0))
    for state, step in zip(states[1:], (3, 2, 1, 0), strict=True):
        assert float(state.mean()) == pytest.approx(2 * float(made.process.signal[step]), abs=0.06)
        assert float(state.std()) == pytest.approx(float(made.process.noise[step]), abs=0.06)


SMALL = {"embedding_size": 32, "max_length": 8, "blocks": 1, "heads": 1, "seeds": 2}


class TestDNR(SequenceLaws):
    model = "noise2next.models.dnr.DNR"
    options: ClassVar = {**SMALL, "steps": 50}
    trainer = TrainerConfig(
        epochs=36, batch_size=64, evaluate_every=4, patience=36, metric="recall@1", learning_rate=0.01
    )


class TestDNRWithItemsToldFromTheEstimate(SequenceLaws):
    model = "noise2next.models.dnr.DNR"
    options: ClassVar = {**SMALL, "steps": 5, "schedule": "cosine", "ce_on": "pred", "tie": True, "mse_weight": 0.1}
    trainer = TrainerConfig(
        epochs=28, batch_size=64, evaluate_every=4, patience=28, metric="recall@1", learning_rate=0.01
    )


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"embedding_size": 9, "heads": 2}, "heads"),
        ({"steps": 1}, "steps"),
        ({"max_length": 1}, "max_length"),
        ({"added_variance": -0.1}, "added_variance"),
        ({"ce_on": "both"}, "ce_on"),
        ({"schedule": "sharp"}, "schedule"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_their_place(options: Any, place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        DNR.Config(**options)
