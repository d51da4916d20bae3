"""From an ingested log to a split over dense indices: threshold, repeats, k-core, parts, vocabularies.

Written once in Ibis; DuckDB and Spark give the same bytes. Raw ids become whole numbers first, ordered as the
vocabularies are, and everything after that is arithmetic on numbers.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend

from noise2next.config import OFFICIAL, Dataset, parse_threshold
from noise2next.data.splitting import PARTS, Cuts, event_order, leakage, time_cuts, with_parts
from noise2next.data.tables import rows_in, stored, write_ordered
from noise2next.errors import UserError

COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` counted. rows: left after each filter, and in each part."""

    rows: dict[str, int]
    users: int
    items: int  # that the filters leave
    items_in_train: int  # of these, the vocabulary of every model
    cuts: Cuts | None
    unlearnable: dict[str, int]  # rows of an item that train has not
    cold_users: dict[str, int]  # users to judge who have no training row
    leakage: list[str]


def prepare(
    backend: BaseBackend, source: Path, dataset: Dataset, name: str, seed: int, folder: Path, scratch: Path
) -> Prepared:
    """Write train, valid, test, users and items (.parquet) of the log at `source` into `folder`.

    Users are all that the filters leave; items are those of train. Parts are sorted by (user, time, row).
    Raises UserError where a filter or the split leaves nothing.
    """
    raw = backend.read_parquet(source, table_name="ingested")
    filtered = dataset.split.kind not in OFFICIAL
    chosen = positive_rows(raw, dataset.positive) if filtered and dataset.positive else raw
    rows = {"ingested": rows_in(source)}
    rows["positive"] = rows["ingested"] if chosen is raw else _count(chosen)
    _refuse_nothing(rows["positive"], f"datasets.{name}.positive: no row has {dataset.positive}")

    users = stored(_coded(chosen, "user"), scratch / "user_codes.parquet")
    items = stored(_coded(chosen, "item"), scratch / "item_codes.parquet")
    log = _in_codes(chosen, users, items, seed if dataset.split.kind == "random" else None)
    log = stored(_folded(log, dataset.repeats) if filtered else log, scratch / "log.parquet")
    rows["after_repeats"] = rows["after_k_core"] = rows_in(scratch / "log.parquet")

    if filtered and dataset.k_core > 1:
        log = stored(_core(log, dataset.k_core, scratch), scratch / "core.parquet")
        rows["after_k_core"] = rows_in(scratch / "core.parquet")
    _refuse_nothing(
        rows["after_k_core"],
        f"datasets.{name}.k_core: no users and items have {dataset.k_core} rows each among {rows['after_repeats']}",
    )

    cuts = time_cuts(log, dataset.split) if dataset.split.kind == "global_time" else None
    parts = stored(with_parts(log, dataset.split, cuts), scratch / "parts.parquet")
    users = stored(_indexed(users, parts, "user"), scratch / "users.parquet")
    items = stored(_indexed(items, parts.filter(parts["part"] == "train"), "item"), scratch / "items.parquet")
    placed = stored(_placed(parts, users, items), scratch / "placed.parquet")

    for part in PARTS:
        rows[part] = _write_part(placed, part, folder / f"{part}.parquet", scratch / "ordered.parquet")
        _refuse_nothing(
            rows[part], f"datasets.{name}.split: {dataset.split.kind} leaves no row of {rows['after_k_core']} in {part}"
        )
    return Prepared(
        rows,
        _write_ids(users, folder / "users.parquet", scratch / "ordered.parquet"),
        int(parts["item"].nunique().execute()),
        _write_ids(items, folder / "items.parquet", scratch / "ordered.parquet"),
        cuts,
        _unlearnable(placed),
        _cold_users(placed),
        leakage(placed, dataset.split, cuts),
    )


def positive_rows(log: ir.Table, condition: str) -> ir.Table:
    """Those that count as liking, by `rating >= 4` and its kind."""
    sign, threshold = parse_threshold(condition)
    return log.filter(COMPARISONS[sign](log["rating"], threshold))


def _coded(log: ir.Table, column: str) -> ir.Table:
    """id, code: the distinct raw ids numbered in the vocabularies' order, shorter first, then by text."""
    ids = log.select(id=log[column]).distinct()
    return ids.mutate(code=ibis.row_number().over(order_by=[ids["id"].length(), ids["id"]]))


def _in_codes(log: ir.Table, users: ir.Table, items: ir.Table, seed: int | None) -> ir.Table:
    """The log with codes for raw ids; with a `seed` also `draw`, text that is random but for the seed and the ids."""
    drawn = {} if seed is None else {"draw": (f"{seed}|" + log["user"] + "|" + log["item"]).hexdigest("md5")[:12]}
    kept = [column for column in ("time", "split") if column in log.columns]
    coded = log.select("user", "item", "row", *kept, **drawn)
    coded = coded.join(users.select(user="id", user_code="code"), "user")
    coded = coded.join(items.select(item="id", item_code="code"), "item")
    return coded.select(user="user_code", item="item_code", **{one: coded[one] for one in ("row", *kept, *drawn)})


def _folded(log: ir.Table, repeats: str) -> ir.Table:
    """Of a user's returns to an item all, the first, or the last."""
    if repeats == "keep":
        return log
    order = [log[column] if repeats == "first" else log[column].desc() for column in event_order(log)]
    return log.filter(ibis.row_number().over(group_by=["user", "item"], order_by=order) == 0)


def _core(log: ir.Table, k: int, scratch: Path) -> ir.Table:
    """The rows left when users and items with fewer than `k` rows are taken out again and again until none is left.

    The largest such set is one and the same in whatever order they go. Only who survives is stored in each round.
    """
    left, before, turn = log, None, 0
    while True:
        turn += 1
        paths = scratch / f"core_users_{turn}.parquet", scratch / f"core_items_{turn}.parquet"
        users = stored(_frequent(left, "user", k), paths[0])
        items = stored(_frequent(left.semi_join(users, "user"), "item", k), paths[1])
        left = log.semi_join(users, "user").semi_join(items, "item")
        survivors = rows_in(paths[0]), rows_in(paths[1])
        if survivors == before:
            return left
        before = survivors


def _frequent(log: ir.Table, column: str, k: int) -> ir.Table:
    counts = log.group_by(column).aggregate(n=log.count())
    return counts.filter(counts["n"] >= k).select(column)


def _indexed(ids: ir.Table, log: ir.Table, column: str) -> ir.Table:
    """id, code, index: those of `ids` that occur in `log`, numbered from 0 in the same order."""
    present = ids.semi_join(log.select(code=log[column]).distinct(), "code")
    return present.mutate(index=ibis.row_number().over(order_by="code"))


def _placed(parts: ir.Table, users: ir.Table, items: ir.Table) -> ir.Table:
    """Codes replaced by indices; an item that train has not is -1."""
    kept = [column for column in ("time", "row", "part") if column in parts.columns]
    joined = parts.join(users.select(user="code", user_index="index"), "user")
    joined = joined.left_join(items.select(item="code", item_index="index"), "item")
    return joined.select(
        user="user_index", item=joined["item_index"].fill_null(-1), **{one: joined[one] for one in kept}
    )


def _write_part(placed: ir.Table, part: str, path: Path, scratch: Path) -> int:
    order = ["user", *event_order(placed)]
    fields = [("user", pa.int32()), ("item", pa.int32()), *([("time", pa.int64())] if "time" in placed.columns else [])]
    schema = pa.schema(fields)
    return write_ordered(
        placed.filter(placed["part"] == part).order_by(order).select(schema.names), schema, path, scratch
    )


def _write_ids(ids: ir.Table, path: Path, scratch: Path) -> int:
    return write_ordered(ids.order_by("index").select("id"), pa.schema([("id", pa.string())]), path, scratch)


def _unlearnable(placed: ir.Table) -> dict[str, int]:
    """Rows to judge whose item train has not."""
    unknown = placed.filter(placed["item"] < 0)
    counts = unknown.group_by("part").aggregate(n=unknown.count()).execute()
    found = dict(zip(counts["part"], counts["n"], strict=True))
    return {part: int(found.get(part, 0)) for part in PARTS[1:]}


def _cold_users(placed: ir.Table) -> dict[str, int]:
    """Users to judge who have no row in train."""
    users = placed.group_by("user").aggregate(**{part: (placed["part"] == part).any() for part in PARTS})
    cold = {part: (users[part] & ~users["train"]).cast("int64").sum().fill_null(0) for part in PARTS[1:]}
    counts = users.aggregate(**cold).execute().iloc[0]
    return {part: int(counts[part]) for part in PARTS[1:]}


def _count(table: ir.Table) -> int:
    return int(table.count().execute())


def _refuse_nothing(rows: int, fact: str) -> None:
    if not rows:
        raise UserError(f"{fact}; loosen it in params.yaml")
