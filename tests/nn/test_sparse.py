"""Sparse rows against the dense ones that they stand for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noise2next.nn.mlp import Perceptron
from noise2next.nn.sparse import SparseLinear, SparseRows


def drawn(rows=9, width=12, seed=0):
    """Sparse rows with values, among them an empty one and columns that nobody has, and the same as a dense matrix."""
    draw = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, width, generator=draw) * (torch.rand(rows, width, generator=draw) < 0.3)
    dense[3] = 0
    dense[:, [2, width - 1]] = 0
    return of(dense), dense


def of(dense):
    places = dense.nonzero()
    indptr = F.pad(torch.bincount(places[:, 0], minlength=len(dense)).cumsum(0), (1, 0))
    return SparseRows(indptr, places[:, 1], dense[places[:, 0], places[:, 1]], dense.shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_a_product_and_its_gradient_are_those_of_the_dense_matrix(seed):
    rows, dense = drawn(seed=seed)
    table, other = (torch.randn(12, 5, generator=torch.Generator().manual_seed(9)).requires_grad_() for _ in range(2))
    slope = torch.randn(9, 5)
    (rows.times(table) * slope).sum().backward()
    (dense @ other * slope).sum().backward()
    np.testing.assert_allclose(rows.times(table).detach(), (dense @ other).detach(), atol=1e-6)
    np.testing.assert_allclose(table.grad, other.grad, atol=1e-6)


def test_the_gradient_is_right_to_float64():
    rows, _ = drawn()
    rows = rows.with_values(rows.values.double())
    table = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rows.times, (table,))


def test_rows_without_anything_give_zeros():
    nothing = of(torch.zeros(3, 4))
    table = torch.randn(4, 2, requires_grad=True)
    nothing.times(table).sum().backward()
    assert not nothing.times(table).any()
    assert not table.grad.any()


def test_sums_and_lengths_are_those_of_the_dense_rows():
    rows, dense = drawn()
    np.testing.assert_allclose(rows.sums(), dense.sum(dim=1), rtol=1e-6)
    np.testing.assert_allclose(rows.normalised().values, of(F.normalize(dense)).values, rtol=1e-6)


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (0, 5), (5, 12), (2, 3)])
def test_a_part_of_the_columns_is_that_part_of_the_matrix(start, stop):
    rows, dense = drawn()
    part, expected = rows.between(start, stop), of(dense[:, start:stop])
    assert part.width == stop - start
    assert torch.equal(part.indptr, expected.indptr)
    assert torch.equal(part.columns, expected.columns)
    assert torch.equal(part.values, expected.values)


def test_a_sparse_perceptron_is_the_dense_one():
    sparse, plain = Perceptron([12, 7, 5, 3], sparse=True), Perceptron([12, 7, 5, 3])
    rows, dense = drawn()
    with torch.no_grad():
        sparse.first.weight.copy_(plain.first.weight.T)
        sparse.first.bias.copy_(plain.first.bias)
    sparse.others.load_state_dict(plain.others.state_dict())
    assert isinstance(sparse.first, SparseLinear)
    layers = [plain.first, *plain.others]
    assert all(isinstance(layer, nn.Linear) for layer in layers)
    chain = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    np.testing.assert_allclose(sparse(rows).detach(), chain(dense).detach(), atol=1e-6)
    np.testing.assert_allclose(plain(dense).detach(), chain(dense).detach(), atol=1e-6)
