"""Histories cut and turned into training samples, all by index ranges."""

import torch

from noise2next.data.queries import Prefixes, Queries, ranges

HISTORIES = [[5, 1, 4, 2], [], [3], [0, 6]]


def queries() -> Queries:
    lengths = torch.tensor([len(one) for one in HISTORIES])
    items = torch.tensor([item for one in HISTORIES for item in one])
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Queries(indptr, items, torch.arange(len(items)).float(), items * 10, torch.arange(4) + 70, 7)


def lists(found: Queries) -> list[list[int]]:
    return [part.tolist() for part in torch.split(found.items, found.lengths.tolist())]


def test_ranges_are_laid_end_to_end() -> None:
    indptr, flat = ranges(torch.tensor([7, 3, 0]), torch.tensor([2, 0, 3]))
    assert indptr.tolist() == [0, 2, 2, 5]
    assert flat.tolist() == [7, 8, 0, 1, 2]


def test_the_newest_of_each_history() -> None:
    found = queries().last(2)
    assert lists(found) == [[4, 2], [], [3], [0, 6]]
    assert found.times is not None
    assert found.times.tolist() == [40, 20, 30, 0, 60]


def test_a_history_and_what_came_next() -> None:
    before, target = queries().select(torch.tensor([0, 2, 3])).before_last()
    assert lists(before) == [[5, 1, 4], [], [0]]
    assert target.tolist() == [2, 3, 6]


def test_every_interaction_with_one_before_it_is_a_sample() -> None:
    samples = Prefixes.of(queries(), max_length=2)
    assert len(samples) == 4
    batch = samples.batch(torch.tensor([3, 0, 1, 2]))
    assert lists(batch) == [[0, 6], [5, 1], [5, 1, 4], [1, 4, 2]]
    assert batch.keys.tolist() == [73, 70, 70, 70]


def test_an_epoch_has_every_sample_once() -> None:
    samples = Prefixes.of(queries(), max_length=50)
    order = torch.Generator().manual_seed(1)
    found = [one for batch in samples.batches(3, order) for one in lists(batch)]
    assert sorted(found) == [[0, 6], [5, 1], [5, 1, 4], [5, 1, 4, 2]]
