"""Rows of many columns of which few are not zero, and the layer that reads them without making them dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class SparseRows:
    """B rows of I columns: indptr [B+1] int64, columns [n] int64 and values [n] float, row by row, no place twice."""

    indptr: Tensor
    columns: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self) -> Tensor:
        """[n], the row of each value"""
        return _rows(self.indptr, len(self.columns))

    def with_values(self, values: Tensor) -> SparseRows:
        """Other values [n] at the same places."""
        return replace(self, values=values)

    def normalised(self) -> SparseRows:
        """Each row at Euclidean length 1; an empty row stays empty."""
        lengths = self.with_values(self.values.square()).sums().sqrt().clamp(min=1e-12)
        return self.with_values(self.values / lengths[self.rows()])

    def between(self, start: int, stop: int) -> SparseRows:
        """The columns from `start` up to `stop`, counted anew from 0."""
        inside = (self.columns >= start) & (self.columns < stop)
        before = F.pad(inside.cumsum(0), (1, 0))
        return SparseRows(before[self.indptr], self.columns[inside] - start, self.values[inside], stop - start)

    def sums(self) -> Tensor:
        """[B]"""
        return self.times(self.values.new_ones(self.width, 1)).squeeze(1)

    def times(self, table: Tensor) -> Tensor:
        """The product with `table` [I, H]: [B, H]. Gradients go to the table alone."""
        found: Tensor = _Product.apply(self.indptr, self.columns, self.values, table)  # type: ignore[no-untyped-call]
        return found


class SparseLinear(nn.Module):
    """A linear layer over SparseRows; weight [I, H], the rows' layout, bias [H]. Its user gives the initial values."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, rows: SparseRows) -> Tensor:
        """[B, H]"""
        return rows.times(self.weight) + self.bias


class _Product(torch.autograd.Function):
    """The gradient X' G is the same gather and sum over the transposed rows: a third faster than that of embedding_bag,
    and without atomic additions on a GPU, whose order changes the sum.
    """

    @staticmethod
    def forward(ctx: Any, indptr: Tensor, columns: Tensor, values: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(indptr, columns, values)
        ctx.width = len(table)
        return _gather_sum(indptr, columns, values, table)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor]:
        indptr, columns, values = ctx.saved_tensors
        order = columns.argsort(stable=True)
        bounds = F.pad(torch.bincount(columns, minlength=ctx.width).cumsum(0), (1, 0))
        rows = _rows(indptr, len(columns))
        return None, None, None, _gather_sum(bounds, rows[order], values[order], gradient.contiguous())


def _rows(indptr: Tensor, n: int) -> Tensor:
    places = torch.arange(len(indptr) - 1, device=indptr.device)
    return torch.repeat_interleave(places, indptr.diff(), output_size=n)


def _gather_sum(indptr: Tensor, columns: Tensor, values: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(
        columns, table, indptr, mode="sum", per_sample_weights=values.to(table.dtype), include_last_offset=True
    )
