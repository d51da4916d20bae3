"""Losses equal what they stand for, and so do their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noise2next.nn import losses
from noise2next.nn.losses import gaussian_kl, multinomial_nll, softmax_cross_entropy, weighted_softmax_cross_entropy
from noise2next.nn.sparse import SparseRows

ROWS, ITEMS, SIZE = 150, 40, 6


def drawn(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, table, targets, bias"""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, SIZE, generator=draw, dtype=torch.float64) * scale
    table = torch.randn(ITEMS, SIZE, generator=draw, dtype=torch.float64)
    bias = torch.randn(ITEMS, generator=draw, dtype=torch.float64)
    targets = torch.randint(ITEMS, (ROWS,), generator=draw)
    return hidden.to(dtype), table.to(dtype), targets, bias.to(dtype)


def with_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


@pytest.fixture(params=[1, 100, 10**9], ids=["blocks of 64", "blocks of 100", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_LOGITS_ON_CPU", request.param * ITEMS)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("biased", [False, True])
def test_softmax_cross_entropy_and_its_gradients_are_those_of_torch(biased: bool) -> None:
    hidden, table, targets, bias = drawn()
    leaves = [x.requires_grad_() for x in ((hidden, table, bias) if biased else (hidden, table))]
    found = softmax_cross_entropy(hidden, table, targets, bias if biased else None)
    expected = F.cross_entropy(F.linear(hidden, table, bias if biased else None), targets)
    for one, other in zip(with_gradients(found, *leaves), with_gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("_blocks")
def test_rows_count_as_their_weights_say_and_their_losses_are_told_without_them() -> None:
    hidden, table, targets, bias = drawn()
    leaves = [x.requires_grad_() for x in (hidden, table, bias)]
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, losses = weighted_softmax_cross_entropy(hidden, table, targets, weights, bias)
    each = F.cross_entropy(F.linear(hidden, table, bias), targets, reduction="none")
    assert not losses.requires_grad
    torch.testing.assert_close(losses, each.detach(), rtol=1e-12, atol=1e-14)
    expected = (weights * each).mean()
    for one, other in zip(with_gradients(found, *leaves), with_gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_softmax_cross_entropy_gives_gradients_only_where_they_are_wanted() -> None:
    hidden, table, targets, bias = drawn()
    bias.requires_grad_()
    softmax_cross_entropy(hidden, table, targets, bias).backward()
    expected = (F.linear(hidden, table, bias).softmax(1) - F.one_hot(targets, ITEMS)).mean(0)
    torch.testing.assert_close(bias.grad, expected.detach())
    assert hidden.grad is None
    assert table.grad is None


def test_softmax_cross_entropy_stands_logits_that_no_exponential_could() -> None:
    hidden, table, targets, bias = drawn(torch.float32, scale=1e3)
    leaves = [x.requires_grad_() for x in (hidden, table, bias)]
    found = with_gradients(softmax_cross_entropy(hidden, table, targets, bias), *leaves)
    expected = with_gradients(F.cross_entropy(F.linear(hidden, table, bias), targets), *leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.usefixtures("_blocks")
def test_under_autocast_products_are_bfloat16_and_the_rest_float32() -> None:
    hidden, table, targets, bias = drawn(torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, table, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_cross_entropy(hidden, table, targets, bias)
    assert loss.dtype == torch.float32
    found = with_gradients(loss, *leaves)
    exact = with_gradients(F.cross_entropy(F.linear(hidden, table, bias), targets), *leaves)
    rough = torch.mm(hidden.bfloat16(), table.bfloat16().T).float() + bias
    torch.testing.assert_close(found[0], F.cross_entropy(rough, targets), rtol=1e-5, atol=0)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 0.02 * other.abs().max()


def test_softmax_cross_entropy_of_a_bfloat16_state_gives_it_a_bfloat16_gradient() -> None:
    hidden, table, targets, _ = drawn(torch.float32)
    state = hidden.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        softmax_cross_entropy(state, table, targets).backward()
    assert state.grad is not None
    assert state.grad.dtype == torch.bfloat16


def test_the_smoothest_guess_costs_the_logarithm_of_the_items() -> None:
    loss = softmax_cross_entropy(torch.zeros(3, SIZE), torch.randn(ITEMS, SIZE), torch.tensor([0, 5, 39]))
    assert float(loss) == pytest.approx(torch.tensor(float(ITEMS)).log().item(), rel=1e-6)


def sparse(dense: Tensor) -> SparseRows:
    places = dense.nonzero()
    indptr = F.pad(torch.bincount(places[:, 0], minlength=len(dense)).cumsum(0), (1, 0))
    return SparseRows(indptr, places[:, 1], dense[places[:, 0], places[:, 1]], dense.shape[1])


def test_the_multinomial_likelihood_of_a_row_is_the_published_one() -> None:
    target = sparse(torch.tensor([[1.0, 1, 0, 0]]))
    found = multinomial_nll(torch.tensor([[1.0, 2, 0, -1]]), target)
    assert float(found) == pytest.approx(1.8803793971, abs=1e-6)


def test_the_multinomial_likelihood_and_its_gradient_are_those_of_dense_targets() -> None:
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(9, ITEMS, generator=draw) * (torch.rand(9, ITEMS, generator=draw) < 0.3)
    dense[4] = 0
    logits = (3 * torch.randn(9, ITEMS, generator=draw)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    found = multinomial_nll(logits, sparse(dense))
    expected = -(exact.log_softmax(dim=1) * dense).sum(dim=1).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for one, other in zip(with_gradients(found, logits), with_gradients(expected, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-7)


def test_the_multinomial_likelihood_of_bfloat16_logits_is_summed_in_float32() -> None:
    target, logits = sparse(torch.eye(4, ITEMS)), torch.randn(4, ITEMS).bfloat16().requires_grad_()
    found = multinomial_nll(logits, target)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(multinomial_nll(logits.detach().float(), target)), abs=1e-6)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_the_divergence_of_a_gaussian_is_the_published_one() -> None:
    found = gaussian_kl(torch.tensor([[0.5, -0.2]]), torch.tensor([[-0.1, 0.3]]))
    assert float(found) == pytest.approx(0.1723481128, abs=1e-6)


def test_the_divergence_is_that_of_torch_summed_over_the_latent() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
