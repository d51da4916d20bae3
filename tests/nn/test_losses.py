"""Losses equal what they stand for, and so do their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noise2next.nn import losses
from noise2next.nn.losses import softmax_cross_entropy

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
