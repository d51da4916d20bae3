"""Histories as sparse rows of items: what row models read without ever making them dense."""

from __future__ import annotations

from noise2next.data.queries import Queries
from noise2next.nn.sparse import SparseRows


def item_rows(queries: Queries) -> SparseRows:
    """[B, I], the same values as `Queries.multi_hot`."""
    once = queries.folded()
    return SparseRows(once.indptr, once.items, once.weights, queries.n_items)
