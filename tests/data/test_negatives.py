"""Items outside a history, each as likely as the other."""

import torch

from noise2next.data.negatives import Unseen
from noise2next.data.queries import Queries

HISTORIES = [[3, 1, 3, 0], [], [6], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]]
ITEMS = 7


def histories() -> Queries:
    """With a repeat, without items, with all but one, and with all."""
    lengths = torch.tensor([len(one) for one in HISTORIES])
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    items = torch.tensor([item for one in HISTORIES for item in one])
    return Queries(indptr, items, torch.ones(len(items)), None, torch.arange(len(HISTORIES)), ITEMS)


def drawn(count: int) -> list[list[int]]:
    torch.manual_seed(0)
    rows = torch.arange(len(HISTORIES)).repeat(count)
    found = Unseen(histories()).draw(rows)
    return [found[rows == row].tolist() for row in range(len(HISTORIES))]


def test_no_item_of_the_history_is_drawn_and_every_other_is() -> None:
    for history, found in zip(HISTORIES[:4], drawn(500), strict=False):
        assert set(found) == set(range(ITEMS)) - set(history)


def test_the_items_outside_are_equally_likely() -> None:
    counts = torch.bincount(torch.tensor(drawn(20_000)[0]), minlength=ITEMS)[[2, 4, 5, 6]]
    assert (counts - 5000).abs().max() < 5 * (20_000 * 0.25 * 0.75) ** 0.5


def test_a_history_of_all_items_gets_one_that_exists() -> None:
    assert set(drawn(5)[4]) == {ITEMS - 1}


def test_equal_seeds_draw_alike() -> None:
    assert drawn(20) == drawn(20)
