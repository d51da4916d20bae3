"""Training histories as a sparse matrix: what item-to-item models start from."""

from __future__ import annotations

from scipy import sparse

from noise2next.data.queries import Queries


def sparse_rows(train: Queries) -> sparse.csr_array:
    """[U, I] float64 on the CPU, the same values as `Queries.multi_hot`; the dense matrix never exists."""
    once = train.folded()
    values, columns, indptr = (part.cpu().numpy() for part in (once.weights.double(), once.items.int(), once.indptr))
    return sparse.csr_array((values, columns, indptr), shape=(len(train), train.n_items))
