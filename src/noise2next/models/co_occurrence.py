"""Training histories as a sparse matrix: what item-to-item models start from."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from noise2next.data.queries import Queries


def sparse_rows(train: Queries) -> sparse.csr_array:
    """[U, I] float64 on the CPU, the same values as `Queries.multi_hot`; the dense matrix never exists."""
    rows = train.csr()
    values, columns, indptr = rows.values(), rows.col_indices(), rows.crow_indices()
    return sparse.csr_array(
        (values.double().cpu().numpy(), columns.cpu().numpy().astype(np.int32), indptr.cpu().numpy()),
        shape=tuple(rows.shape),
    )
