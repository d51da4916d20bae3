"""Tables with one row for each item, keyed by its raw id, so that a row can never belong to another item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError


def write(path: Path, items: Vocabulary, columns: dict[str, NDArray[Any]]) -> None:
    """`item` (raw id) and the columns, each [I] or [I, D] in the order of `items`."""
    table = {"item": pa.array(items.ids, pa.string()), **{name: _column(values) for name, values in columns.items()}}
    pq.write_table(pa.table(table), path)


def read(path: Path, column: str, items: Vocabulary, remedy: str) -> NDArray[Any]:
    """One column, [I] or [I, D], in the order of `items`. Raises UserError, with `remedy`, where an item has no row."""
    table = pq.read_table(path, columns=["item", column])
    row_of = {raw: row for row, raw in enumerate(table.column("item").to_pylist())}
    missing = [raw for raw in items.ids if raw not in row_of]
    if missing:
        raise UserError(f"{path}: it has no row for item {missing[0]!r}; {remedy}")
    values = table.column(column).combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        found = values.flatten().to_numpy().reshape(-1, values.type.list_size)
    else:
        found = values.to_numpy()
    return np.asarray(found[[row_of[raw] for raw in items.ids]])


def clusters_column(count: int) -> str:
    """Where item_clusters.parquet has the labels of `count` clusters."""
    return f"clusters_{count}"


def _column(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
