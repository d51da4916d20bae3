"""From rows of text to interactions and quarantine: every row is accepted or kept aside with its first reason."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noise2next.config import Dataset
from noise2next.data import logs
from noise2next.data.guesses import NOTHING
from noise2next.data.pieces import Piece

MISSING_USER = "missing user"
MISSING_ITEM = "missing item"
UNPARSABLE_TIME = "unparsable time"
IMPOSSIBLE_TIME = "impossible time"
FUTURE_TIME = "time in the future"
UNPARSABLE_RATING = "unparsable rating"
INFINITE_RATING = "rating is not finite"
DUPLICATE = "duplicate"

_PER_UNIT = {"s": 1e6, "ms": 1e3, "us": 1.0}  # microseconds
_ABSURD = 32_503_680_000 * 10**6  # the year 3000 in microseconds
_DAY = 86_400 * 10**6
_LARGEST = 9e18  # fits an int64
_MEMORY = "1200MB"  # for the engine; beyond it, it spills
_MOST_THREADS = 8  # each holds rows in memory


@dataclass(frozen=True)
class Ingested:
    """What was found: counts of rows, distinct ids of accepted rows, times in microseconds (None without a clock)."""

    read: int
    accepted: int
    quarantined: int
    reasons: dict[str, int]
    users: int
    items: int
    first: int | None
    last: int | None


def ingest(dataset: Dataset, data: Path, folder: Path, now: datetime | None = None) -> Ingested:
    """Write `interactions.parquet` and `quarantine.parquet` into `folder`, an empty one, from the log below `data`.

    A row that is equal to an earlier one in user, item, time and rating is a duplicate. `now` bounds the future (plus
    one day). Memory is bounded: rows are staged on disk, and DuckDB spills there. Raises UserError as `logs.read`.
    """
    moment = datetime.now(UTC) if now is None else now
    scratch = folder / "scratch"
    scratch.mkdir()
    found, batches = logs.read(dataset, data)
    _stage(batches, scratch / "staged.parquet")
    with engine_spilling_into(scratch) as engine:
        future = int(moment.timestamp() * 1e6) + _DAY
        engine.to_parquet(
            judged(engine.read_parquet(scratch / "staged.parquet"), dataset, future), scratch / "judged.parquet"
        )
        rows = engine.read_parquet(scratch / "judged.parquet")
        engine.to_parquet(_repeated(rows), scratch / "repeated.parquet")
        repeated = engine.read_parquet(scratch / "repeated.parquet")
        accepted = rows.filter(rows.reason.isnull()).anti_join(repeated, "row").order_by("row")
        engine.to_parquet(accepted.select("user", "item", *_kept(dataset), "row"), folder / "interactions.parquet")
        engine.to_parquet(_quarantine(rows, repeated, found), folder / "quarantine.parquet")
        summary = _summary(engine, folder, rows, dataset)
    shutil.rmtree(scratch)
    return summary


def judged(rows: ir.Table, dataset: Dataset, future: int) -> ir.Table:
    """Rows of text (logs.SCHEMA and `row`) with typed time and rating and the first reason against each, or null.

    future: microseconds since 1970 UTC from which on a time cannot have happened.
    """
    time, time_reason = _time(rows, dataset, future)
    rating, rating_reason = _rating(rows, dataset)
    kept = ("row", "piece", "line", "split", "raw")
    found = rows.select(
        *kept,
        "reason",
        user=_id(rows.user),
        item=_id(rows.item),
        time=time,
        rating=rating,
        time_reason=time_reason,
        rating_reason=rating_reason,
    )
    id_reason = ibis.cases(
        (found.user.isnull(), MISSING_USER), (found.item.isnull(), MISSING_ITEM), else_=ibis.null("string")
    )
    reason = ibis.coalesce(found.reason, id_reason, found.time_reason, found.rating_reason)
    return found.select(*kept, "user", "item", "time", "rating", reason=reason)


def _id(column: ir.StringColumn) -> ir.StringColumn:
    """The text, null where it says that there is none."""
    return ibis.cases((column.isin(NOTHING), ibis.null("string")), else_=column)


def _time(rows: ir.Table, dataset: Dataset, future: int) -> tuple[ir.IntegerValue, ir.StringValue]:
    """Microseconds since 1970 UTC, or the place in the order, and what speaks against it."""
    none, null = ibis.null("string"), ibis.null("int64")
    if dataset.time_unit is None:
        return null, none
    if dataset.time_unit == "order":
        place = rows.row if _order_is_by_row(dataset) else _whole(_number(rows.time), 1.0)
        return place, ibis.cases((place.isnull(), UNPARSABLE_TIME), (place < 0, IMPOSSIBLE_TIME), else_=none)
    if dataset.time_unit == "iso":
        moment = _spelled_out(rows.time).try_cast(
            "timestamp('UTC')"
        )  # without a zone, the engine would drop the offset
        time = moment.delta(ibis.timestamp("1970-01-01 00:00:00"), unit="microsecond")
        readable = time.notnull()
    else:
        number = _number(rows.time)
        time = _whole(number, _PER_UNIT[dataset.time_unit])
        readable = number.notnull()
    reason = ibis.cases(
        (~readable, UNPARSABLE_TIME),
        (time.isnull() | (time < 0) | (time >= _ABSURD), IMPOSSIBLE_TIME),
        (time > future, FUTURE_TIME),
        else_=none,
    )
    return time, reason


def _spelled_out(text: ir.StringColumn) -> ir.StringValue:
    """ISO 8601 as the engine reads it: a date with its dashes, a zone without blanks before it and with its colon."""
    dated = text.re_replace(r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3")
    in_utc = dated.re_replace(r"(:\d{2}(?:\.\d+)?)\s*(?:Z|UTC)$", r"\1Z")
    whole_hours = in_utc.re_replace(r"(:\d{2}(?:\.\d+)?)\s+([+-]\d{2})$", r"\1\2")
    return whole_hours.re_replace(r"(:\d{2}(?:\.\d+)?)\s*([+-]\d{2}):?(\d{2})$", r"\1\2:\3")


def _order_is_by_row(dataset: Dataset) -> bool:
    """A log in the order of events whose places are not written down."""
    return dataset.columns.time is None and dataset.format in ("delimited", "json", "parquet")


def _number(text: ir.StringColumn) -> ir.FloatingValue:
    """A finite number or null."""
    number = _float(text)
    return ibis.cases((number.isnan() | number.isinf(), ibis.null("float64")), else_=number)


def _float(text: ir.StringColumn) -> ir.FloatingValue:
    plain = ibis.cases((text.contains("_"), ibis.null("string")), else_=text)  # the engine would read 1_000 as 1000
    return plain.try_cast("float64")


def _whole(number: ir.FloatingValue, scale: float) -> ir.IntegerValue:
    """number x scale as an integer, null beyond what it can hold."""
    scaled = number * scale
    return ibis.cases((scaled.abs() > _LARGEST, ibis.null("float64")), else_=scaled).round()


def _rating(rows: ir.Table, dataset: Dataset) -> tuple[ir.FloatingValue, ir.StringValue]:
    """The rating, null where none was given, and what speaks against it."""
    if dataset.columns.rating is None:
        return ibis.null("float64"), ibis.null("string")
    text = rows.rating
    number = _float(text)
    given = text.notnull() & ~text.isin([word for word in NOTHING if word.lower() != "nan"])
    reason = ibis.cases(
        (given & number.isnull(), UNPARSABLE_RATING),
        (number.isnan() | number.isinf(), INFINITE_RATING),
        else_=ibis.null("string"),
    )
    return number, reason


def _repeated(rows: ir.Table) -> ir.Table:
    """`row` of each accepted row that is equal to an earlier one."""
    accepted = rows.filter(rows.reason.isnull())
    same = ["user", "item", "time", "rating", "split"]
    groups = accepted.group_by(same).having(accepted.count() > 1).aggregate(kept=accepted.row.min())
    alike = [accepted[name].identical_to(groups[name]) for name in same]
    return accepted.join(groups, alike).filter(lambda pair: pair.row != pair.kept).select("row")


def _quarantine(rows: ir.Table, repeated: ir.Table, found: list[Piece]) -> ir.Table:
    """file, line, reason, raw, in reading order."""
    again = rows.semi_join(repeated, "row").mutate(reason=ibis.literal(DUPLICATE))
    names = ibis.memtable(
        pa.table({"piece": pa.array(range(len(found)), pa.int32()), "file": [one.name for one in found]})
    )
    kept = rows.filter(rows.reason.notnull()).union(again).join(names, "piece")
    return kept.order_by("piece", "line", "row").select("file", "line", "reason", "raw")


def _kept(dataset: Dataset) -> list[str]:
    """The columns that this log has beside user, item and row."""
    present = {
        "time": dataset.time_unit is not None,
        "rating": dataset.columns.rating is not None,
        "split": dataset.format in ("diffrec", "diffurec"),
    }
    return [name for name, there in present.items() if there]


def _summary(engine: ibis.backends.duckdb.Backend, folder: Path, rows: ir.Table, dataset: Dataset) -> Ingested:
    accepted = engine.read_parquet(folder / "interactions.parquet")
    quarantine = engine.read_parquet(folder / "quarantine.parquet")
    counts = engine.to_pyarrow(quarantine.group_by("reason").aggregate(n=quarantine.count()).order_by("reason"))
    bounds = {"first": accepted.time.min(), "last": accepted.time.max()} if dataset.has_clock else {}
    facts = accepted.aggregate(
        accepted=accepted.count(), users=accepted.user.nunique(), items=accepted.item.nunique(), **bounds
    )
    found = engine.to_pyarrow(facts).to_pylist()[0]
    reasons = dict(zip(counts["reason"].to_pylist(), counts["n"].to_pylist(), strict=True))
    return Ingested(
        read=engine.to_pyarrow(rows.count()).as_py(),
        quarantined=sum(reasons.values()),
        reasons=reasons,
        **{"first": None, "last": None, **found},
    )


def _stage(batches: logs.Batches, path: Path) -> None:
    """Write the rows of text to disk, numbered in reading order."""
    schema = logs.SCHEMA.append(pa.field("row", pa.int64()))
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        row = 0
        for batch in batches:
            numbered = batch.append_column("row", pa.array(np.arange(row, row + len(batch))))
            writer.write_batch(numbered.cast(schema), row_group_size=1 << 17)
            row += len(batch)


@contextlib.contextmanager
def engine_spilling_into(scratch: Path) -> Iterator[ibis.backends.duckdb.Backend]:
    """DuckDB in memory that spills into `scratch`."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    engine = ibis.duckdb.connect(
        ":memory:", memory_limit=_MEMORY, temp_directory=str(scratch / "spill"), threads=threads
    )
    try:
        engine.settings["TimeZone"] = "UTC"
        engine.settings["enable_progress_bar"] = False  # it would write between the lines of standard output
        yield engine
    finally:
        engine.disconnect()
