"""Keyed normals: the law, and that nothing but seed, key, step and place decides a draw."""

import math

import torch

from noise2next.diffusion.noise import NormalTable, normals

KEYS = torch.tensor([5, -(2**62), 12345, 0, 2**63 - 1])


def test_a_row_is_the_same_alone_and_in_any_company():
    together = normals(1, KEYS, 3, 1001)
    for row, key in enumerate(KEYS):
        assert torch.equal(normals(1, key[None], 3, 1001)[0], together[row])
    assert torch.equal(normals(1, KEYS.flip(0), 3, 1001), together.flip(0))


def test_seed_key_and_step_each_give_other_draws():
    base = normals(1, KEYS, 3, 64)
    assert not torch.isclose(base, normals(2, KEYS, 3, 64)).any(dim=1).all()
    assert not torch.isclose(base, normals(1, KEYS, 4, 64)).any(dim=1).all()
    assert not torch.isclose(base, normals(1, KEYS + 1, 3, 64)).any(dim=1).all()


def test_the_draws_are_standard_normal():
    draws = normals(7, torch.arange(100), 0, 2001).double()
    n = draws.numel()
    assert abs(float(draws.mean())) < 4 / math.sqrt(n)
    assert abs(float(draws.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((draws**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    grid = torch.linspace(-3, 3, 31, dtype=torch.float64)
    empirical = torch.stack([(draws <= one).double().mean() for one in grid])
    assert float((empirical - torch.special.ndtr(grid)).abs().max()) < 2 / math.sqrt(n)


def test_rows_steps_and_places_are_uncorrelated():
    draws = normals(0, torch.arange(100), 0, 4000).double()
    between_rows = torch.corrcoef(draws) - torch.eye(100)
    assert float(between_rows.abs().max()) < 6 / math.sqrt(4000)
    assert abs(float((draws[:, 1:] * draws[:, :-1]).mean())) < 4 / math.sqrt(draws.numel())
    assert abs(float((draws[:, :2000] * draws[:, 2000:]).mean())) < 4 / math.sqrt(draws.numel() / 2)
    later = normals(0, torch.arange(100), 1, 4000).double()
    assert abs(float((draws * later).mean())) < 4 / math.sqrt(draws.numel())


def test_rows_of_the_table_depend_on_seed_key_step_and_number_alone():
    table, numbers = NormalTable(1, 8, torch.device("cpu"), rows=256), torch.arange(5)
    together = table.rows(KEYS, 3, numbers)
    for row, key in enumerate(KEYS):
        assert torch.equal(table.rows(key[None], 3, numbers[row : row + 1])[0], together[row])
    assert not torch.equal(table.rows(KEYS, 4, numbers), together)
    assert not torch.equal(NormalTable(2, 8, torch.device("cpu"), rows=256).rows(KEYS, 3, numbers), together)


def test_one_draw_of_the_table_is_standard_normal_and_never_repeats_a_row():
    table = NormalTable(3, 16, torch.device("cpu"), rows=2048)
    draw = table.rows(torch.full((2048,), 9), 1, torch.arange(2048)).double()
    assert len(draw.unique(dim=0)) == 2048
    assert abs(float(draw.mean())) < 4 / math.sqrt(draw.numel())
    assert abs(float(draw.var()) - 1) < 4 * math.sqrt(2 / draw.numel())
    assert float((torch.corrcoef(draw.T) - torch.eye(16)).abs().max()) < 5 / math.sqrt(2048)


def test_keys_and_steps_start_all_over_the_table():
    table = NormalTable(3, 2, torch.device("cpu"), rows=64)
    first = table.rows(torch.arange(4000), 0, torch.zeros(4000, dtype=torch.int64))
    assert len(first.unique(dim=0)) == 64
