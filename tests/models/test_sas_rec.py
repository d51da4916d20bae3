"""SASRec: packed it is the padded network of the paper's code, it cannot see the future, and it learns an order."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from benchmarks.plain_sequences import PlainSASRec
from pydantic import ValidationError
from tests.models.laws import SequenceLaws
from torch import Tensor

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.models.base import Clock
from noise2next.models.sas_rec import SASRec
from noise2next.nn.packing import Packing

ITEMS, LENGTH = 30, 6
LENGTHS = torch.tensor([4, 1, 9, 2, 6, 7])


def model(loss: str = "bce", heads: int = 2, dropout: float = 0.0) -> SASRec:
    """In float64, with weights that are no longer small and biases that are no longer zero."""
    torch.manual_seed(0)
    config = SASRec.Config(embedding_size=8, heads=heads, max_length=LENGTH, dropout=dropout, loss=loss)
    made = SASRec(config, ITEMS).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def histories(lengths: Tensor = LENGTHS, seed: int = 0) -> Queries:
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    n = int(indptr[-1])
    items = torch.randint(ITEMS, (n,), generator=torch.Generator().manual_seed(seed))
    return Queries(indptr, items, torch.ones(n), None, torch.arange(len(lengths)), ITEMS)


def plain_form(made: SASRec) -> PlainSASRec:
    """The benchmark's peer with the same weights: sequences padded on the left, padding masked."""
    config = made.config
    plain = PlainSASRec(
        ITEMS, config.embedding_size, config.blocks, config.heads, config.max_length, config.dropout
    ).double()
    weights = made.state_dict()
    padding = torch.zeros(1, config.embedding_size, dtype=torch.float64)
    plain.load_state_dict({**weights, "items.weight": torch.cat([padding, weights["items.weight"]])})
    return plain


def padded(sequences: list[list[int]]) -> Tensor:
    """[B, L]: padded on the left, items from 1."""
    return torch.tensor([[0] * (LENGTH - len(one)) + [1 + item for item in one] for one in sequences])


def sequences(asked: Queries) -> list[list[int]]:
    return [one.tolist() for one in torch.tensor_split(asked.items, asked.indptr[1:-1])]


@pytest.mark.parametrize("heads", [1, 2])
def test_packed_states_are_those_of_sequences_padded_on_the_left(heads: int) -> None:
    made, recent = model(heads=heads), histories().last(LENGTH)
    inputs = padded(sequences(recent))
    expected = plain_form(made)(inputs)[inputs > 0]
    found = made.states(recent.items, Packing(recent.indptr))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_scores_are_the_newest_state_times_the_items() -> None:
    made, asked = model(), histories()
    newest = plain_form(made)(padded(sequences(asked.last(LENGTH))))[:, -1]
    torch.testing.assert_close(made.score(asked), newest @ made.items.weight.T, rtol=0, atol=1e-10)


def test_an_empty_history_scores_all_alike_and_leaves_its_mates_alone() -> None:
    made = model()
    found = made.score(histories(torch.tensor([0, 2, 1, 0])))
    assert not found[[0, 3]].any()
    torch.testing.assert_close(found[1:3], made.score(histories(torch.tensor([2, 1]))), rtol=0, atol=1e-10)


def test_a_later_item_changes_no_earlier_state() -> None:
    made, recent = model(), histories(torch.tensor([6, 5]))
    packing, other = Packing(recent.indptr), recent.items.clone()
    other[4] = (other[4] + 1) % ITEMS
    before, after = made.states(recent.items, packing), made.states(other, packing)
    changed = (before != after).any(dim=1)
    assert changed.tolist() == [False] * 4 + [True] * 2 + [False] * 5


def test_the_loss_of_an_earlier_place_has_no_gradient_in_a_later_item() -> None:
    made, packing = model(), Packing(torch.tensor([0, 6]))
    made.states(torch.arange(6), packing)[3].sum().backward()
    reached = made.items.weight.grad.abs().sum(dim=1) > 0
    assert reached.tolist() == [True] * 4 + [False] * (ITEMS - 4)


def test_places_are_counted_from_the_newest() -> None:
    """Items that a window leaves out, and users of other lengths beside, move no position."""
    made = model()
    with torch.no_grad():
        made.positions.weight[: LENGTH - 2] = torch.nan
    found = made.states(torch.tensor([1, 2, 5]), Packing(torch.tensor([0, 2, 3])))
    assert found.isfinite().all()


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_loss_and_gradients_are_those_of_the_plain_form(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, batch = model(loss), histories(LENGTHS[LENGTHS > 1])
    windows = sequences(batch.last(LENGTH + 1))
    inputs, targets = padded([one[:-1] for one in windows]), padded([one[1:] for one in windows])
    wrong = torch.arange(int((targets > 0).sum())) % ITEMS
    monkeypatch.setattr("noise2next.models.sas_rec.Unseen.draw", lambda self, rows: wrong)
    (found,) = made.loss(batch, "train", Clock()).values()
    plain = plain_form(made)
    if loss == "ce":
        expected = plain.cross_entropy(inputs, targets)
    else:
        negatives = torch.zeros_like(targets).masked_scatter(targets > 0, wrong + 1)
        expected = plain.binary_cross_entropy(inputs, targets, negatives)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    found.backward()
    expected.backward()
    for (name, one), other in zip(made.named_parameters(), plain.parameters(), strict=True):
        right = other.grad[1:] if name == "items.weight" else other.grad
        torch.testing.assert_close(one.grad, right, rtol=0, atol=1e-10)


def test_the_wrong_item_is_nowhere_in_the_whole_history(monkeypatch: pytest.MonkeyPatch) -> None:
    made, batch, asked = model(), histories(torch.tensor([25, 3])), []
    monkeypatch.setattr(made.items, "forward", lambda ids: asked.append(ids) or F.embedding(ids, made.items.weight))
    for _ in range(30):
        made.loss(batch, "train", Clock())
    rows = torch.tensor([0] * LENGTH + [1] * 2)
    drawn = torch.stack([ids[1] for ids in asked if ids.ndim == 2])
    for row, history in enumerate(sequences(batch)):
        assert set(drawn[:, rows == row].flatten().tolist()).isdisjoint(history)


def test_an_epoch_has_every_user_with_a_next_item_once() -> None:
    made, train = model(), histories(torch.tensor([3, 1, 0, 2, 9]))
    batches = list(made.batches(train, 2, torch.Generator().manual_seed(0)))
    assert sorted(key for batch in batches for key in batch.keys.tolist()) == [0, 3, 4]
    assert made.samples(train) == 3
    assert max(batch.lengths.max() for batch in batches) == 9


@pytest.mark.parametrize(
    ("options", "place"),
    [({"embedding_size": 9, "heads": 2}, "heads"), ({"dropout": 1.0}, "dropout"), ({"loss": "bpr"}, "loss")],
)
def test_options_that_cannot_be_meant_are_refused_with_their_place(options: dict, place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        SASRec.Config(**options)


class TestSASRec(SequenceLaws):
    model = "noise2next.models.sas_rec.SASRec"
    options: ClassVar = {"embedding_size": 16, "blocks": 2, "max_length": 8, "dropout": 0.1, "loss": "bce"}
    trainer = TrainerConfig(epochs=40, batch_size=40, patience=40, metric="recall@1", learning_rate=0.01)


class TestSASRecAgainstAllItems(SequenceLaws):
    model = "noise2next.models.sas_rec.SASRec"
    options: ClassVar = {"embedding_size": 16, "blocks": 1, "heads": 2, "max_length": 4, "dropout": 0.1, "loss": "ce"}
    trainer = TrainerConfig(epochs=40, batch_size=40, patience=40, metric="recall@1", learning_rate=0.01)
