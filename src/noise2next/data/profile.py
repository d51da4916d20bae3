"""One row of facts about all accepted interactions: what the contract is held against, whatever the size of the log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noise2next.config import OFFICIAL, Dataset, parse_threshold
from noise2next.data.tables import connect

DAY = 86_400_000_000  # microseconds
PARTS = ("train", "valid", "test")
Profile = dict[str, int | float]

TYPES = {"user": "string", "item": "string", "row": "int64", "time": "int64", "rating": "double", "split": "string"}
COMPARE = {
    ">=": ir.NumericColumn.__ge__,
    ">": ir.NumericColumn.__gt__,
    "<=": ir.NumericColumn.__le__,
    "<": ir.NumericColumn.__lt__,
    "==": ir.NumericColumn.__eq__,
}


def wrong_columns(interactions: Path, dataset: Dataset) -> list[str]:
    """What the dataset promises and the file lacks or holds as another type, as `time: not there`."""
    promised = ["user", "item", "row"]
    promised += ["time"] * dataset.has_order + ["rating"] * (dataset.columns.rating is not None)
    promised += ["split"] * (dataset.split.kind in OFFICIAL)
    schema: pa.Schema = pq.read_schema(interactions)
    wrong = [f"{name}: not there" for name in promised if name not in schema.names]
    for name, kind in TYPES.items():
        if name in schema.names and str(schema.field(name).type) != kind:
            wrong.append(f"{name}: {schema.field(name).type} in place of {kind}")
    return wrong


def measure(interactions: Path, ingested: Mapping[str, Any], dataset: Dataset, scratch: Path) -> Profile:
    """Counts and shares over every row, none of them missing: an empty log has zeros.

    `ingested` is the report of the step `ingest`; DuckDB spills below `scratch`, so memory does not grow with the log.
    """
    with connect("duckdb", scratch) as backend:
        table = backend.read_parquet(interactions)
        facts = {**_rows(table, dataset), **_owners(table, "user", dataset), **_owners(table, "item", dataset)}
    read = ingested["read"]
    facts |= {name: ingested[name] for name in ("read", "accepted", "quarantined", "bad_share")}
    facts["duplicate_share"] = max(0.0, ingested["quarantined"] / read - ingested["bad_share"]) if read else 0.0
    facts["unaccounted"] = read - ingested["accepted"] - ingested["quarantined"]
    facts["largest_item_share"] = facts.pop("largest_item") / max(facts["rows"], 1)
    facts["out_of_order"] = _out_of_order(interactions)
    return facts


def _rows(table: ir.Table, dataset: Dataset) -> Profile:
    """Facts that one pass over the rows gives."""
    facts: dict[str, ir.Scalar] = {"rows": table.count()}
    for name in ("user", "item"):
        facts[f"empty_{name}s"] = (table[name].isnull() | (table[name] == "")).sum()
    if "time" in table.columns:
        facts["empty_times"] = table.time.isnull().sum()
        facts["early_times"] = (table.time < 0).sum()
    if dataset.has_clock:
        facts["days"] = (table.time.max() - table.time.min()) / DAY
        facts["future_times"] = (table.time > time.time_ns() // 1000 + DAY).sum()
    if "rating" in table.columns:
        facts["endless_ratings"] = (table.rating.isnan() | table.rating.isinf()).sum()
    if dataset.positive is not None:
        sign, bound = parse_threshold(dataset.positive)
        facts["positive_rows"] = COMPARE[sign](table.rating, bound).sum()
    if "split" in table.columns:
        facts |= {f"{part}_rows": (table.split == part).sum() for part in PARTS}
        facts["unknown_parts"] = (table.split.isnull() | table.split.notin(PARTS)).sum()
    return _one(table.aggregate(**facts))


def _owners(table: ir.Table, name: str, dataset: Dataset) -> Profile:
    """How many users (or items) there are, and how many rows they have."""
    counts = table.group_by(name).aggregate(n=table.count())
    return _one(
        counts.aggregate(
            **{
                f"{name}s": counts.count(),
                f"largest_{name}": counts.n.max(),
                f"{name}s_of_core": (counts.n >= dataset.k_core).sum(),
                f"{name}s_of_three": (counts.n >= 3).sum(),
            }
        )
    )


def _one(facts: ir.Table) -> Profile:
    row: dict[str, Any] = facts.to_pyarrow().to_pylist()[0]
    return {name: 0 if value is None else value for name, value in row.items()}


def _out_of_order(interactions: Path) -> int:
    """Rows whose `row` is not above that of the row before."""
    last, found = np.zeros(0, dtype=np.int64), 0
    with pq.ParquetFile(interactions) as file:
        for batch in file.iter_batches(columns=["row"]):
            numbers = np.concatenate([last, batch.column("row").to_numpy(zero_copy_only=False)])
            found += int((numbers[1:] <= numbers[:-1]).sum())
            last = numbers[-1:]
    return found
