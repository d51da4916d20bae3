"""GRU4Rec: packed it is the recurrence one sequence at a time, and it learns an order."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from tests.models.laws import SequenceLaws
from torch import Tensor

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.models.base import Clock
from noise2next.models.gru4rec import GRU4Rec
from noise2next.nn.packing import Packing

ITEMS, LENGTH = 30, 6
LENGTHS = torch.tensor([4, 1, 9, 0, 2, 6, 7])


def model() -> GRU4Rec:
    """In float64, with weights that are no longer small and biases that are no longer zero."""
    torch.manual_seed(0)
    made = GRU4Rec(GRU4Rec.Config(embedding_size=4, hidden=6, max_length=LENGTH, dropout=0.0), ITEMS).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def histories(lengths: Tensor = LENGTHS) -> Queries:
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    n = int(indptr[-1])
    items = torch.randint(ITEMS, (n,), generator=torch.Generator().manual_seed(0))
    return Queries(indptr, items, torch.ones(n), None, torch.arange(len(lengths)), ITEMS)


def sequences(asked: Queries) -> list[list[int]]:
    return [one.tolist() for one in torch.tensor_split(asked.items, asked.indptr[1:-1])]


def states_one_by_one(made: GRU4Rec, sequence: list[int]) -> Tensor:
    """The cell by its formulas: h' = (1 - z) n + z h with n = tanh(W x + b + r (U h + c))."""
    gru, state, found = made.gru, torch.zeros(6, dtype=torch.float64), []
    for item in sequence:
        from_item = F.linear(made.items.weight[item], gru.weight_ih_l0, gru.bias_ih_l0).chunk(3)
        from_state = F.linear(state, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3)
        reset, update = ((a + b).sigmoid() for a, b in zip(from_item[:2], from_state[:2], strict=True))
        new = (from_item[2] + reset * from_state[2]).tanh()
        state = (1 - update) * new + update * state
        found.append(made.dense(state))
    return torch.stack(found)


def test_packed_states_are_those_of_each_sequence_alone() -> None:
    made, recent = model(), histories().last(LENGTH)
    expected = torch.cat([states_one_by_one(made, one) for one in sequences(recent) if one])
    found = made.states(recent.items, Packing(recent.indptr))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_scores_are_the_last_state_times_the_items_and_zero_without_one() -> None:
    made, asked = model(), histories()
    found = made.score(asked)
    for row, sequence in enumerate(sequences(asked)):
        if sequence:
            expected = states_one_by_one(made, sequence[-LENGTH:])[-1] @ made.items.weight.T
            torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-10)
        else:
            assert not found[row].any()


def test_each_place_is_asked_for_its_next_item_and_the_gradient_goes_back_to_the_first() -> None:
    made, batch = model(), histories(torch.tensor([4, 9, 2]))
    windows = [one[-LENGTH - 1 :] for one in sequences(batch)]
    logits = torch.cat([states_one_by_one(made, one[:-1]) for one in windows]) @ made.items.weight.T
    expected = F.cross_entropy(logits, torch.tensor([item for one in windows for item in one[1:]]))
    found = made.loss(batch, "train", Clock())["cross_entropy"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    weights = list(made.parameters())
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_an_epoch_has_every_user_with_a_next_item_once() -> None:
    made, train = model(), histories(torch.tensor([3, 1, 0, 2, 9]))
    batches = list(made.batches(train, 2, torch.Generator().manual_seed(0)))
    assert sorted(key for batch in batches for key in batch.keys.tolist()) == [0, 3, 4]
    assert made.samples(train) == 3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_it_trains_in_either_precision(precision: torch.dtype) -> None:
    made = model().float()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = made.loss(histories(torch.tensor([4, 9, 2])), "train", Clock())["cross_entropy"]
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


class TestGRU4Rec(SequenceLaws):
    model = "noise2next.models.gru4rec.GRU4Rec"
    options: ClassVar = {"embedding_size": 16, "hidden": 32, "max_length": 8, "dropout": 0.1}
    trainer = TrainerConfig(epochs=40, batch_size=40, patience=40, metric="recall@1", learning_rate=0.02)
