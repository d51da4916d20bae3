"""Splits: each row of a log gets its part, train, valid or test. One set of expressions for every engine.

A log here is a table with the columns user, item, row (unique), time where there is one, `split` where the files name
the parts, and `draw` (text) where the parts are drawn by lot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import ibis
import ibis.expr.types as ir

from noise2next.config import (
    GlobalTime,
    LeaveOneOut,
    OfficialSplit,
    OfficialTrain,
    PerUserRatio,
    RandomRatio,
    SplitConfig,
)

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Cuts:
    """The first instant of the validation and of the test window, in the log's time."""

    valid: int
    test: int


def event_order(log: ir.Table) -> list[str]:
    """The columns that put events in order: time where there is one, then the row's place in the log."""
    return ["time", "row"] if "time" in log.columns else ["row"]


def with_parts(log: ir.Table, config: SplitConfig, cuts: Cuts | None) -> ir.Table:
    """`log` with a column `part`; every row that the split takes is in exactly one part."""
    match config:
        case OfficialSplit():
            return log.mutate(part=log["split"])
        case OfficialTrain():
            return _held_back(log, config.valid)
        case PerUserRatio():
            return _ratio(log, config.valid, config.test, event_order(log))
        case RandomRatio():
            return _ratio(log, config.valid, config.test, ["draw", "row"])
        case LeaveOneOut():
            return _leave_one_out(log)
        case GlobalTime():
            return _windows(log, cuts)


def time_cuts(log: ir.Table, config: GlobalTime) -> Cuts:
    """The times of the rows at rank floor(n (1 - valid - test)) and floor(n (1 - test)), oldest first, from 0."""
    rows = _count(log)
    valid, test = _fraction(config.valid), _fraction(config.test)
    ranks = int(rows * (1 - valid - test)), int(rows * (1 - test))
    counts = log.group_by("time").aggregate(n=log.count())
    upto = counts.mutate(rows=counts["n"].cumsum(order_by="time"))  # rows at this time or before
    return Cuts(*(int(upto.filter(upto["rows"] > rank)["time"].min().execute()) for rank in ranks))


def _windows(log: ir.Table, cuts: Cuts | None) -> ir.Table:
    """train < cuts.valid <= valid < cuts.test <= test: rows that tie with a cut go to the later window."""
    if cuts is None:
        raise ValueError("windows need their cuts")
    part = ibis.cases((log["time"] >= cuts.test, "test"), (log["time"] >= cuts.valid, "valid"), else_="train")
    return log.mutate(part=part)


def _ratio(log: ir.Table, valid: float, test: float, order: list[str]) -> ir.Table:
    """Of a user's n rows the last max(1, floor(test n)) are test, max(1, floor(valid n)) before them validation.

    Train has the rest, so its share is rounded up. A user for whom nothing would be left to train on stays in train
    as a whole.
    """
    rows = _ranked(log, order)
    tested, validated = _share_of(rows["n"], test), _share_of(rows["n"], valid)
    trained = rows["n"] - tested - validated
    part = ibis.cases(
        ((trained < 1) | (rows["rank"] < trained), "train"), (rows["rank"] < rows["n"] - tested, "valid"), else_="test"
    )
    return rows.mutate(part=part).drop("rank", "n")


def _held_back(log: ir.Table, share: float) -> ir.Table:
    """Of a user's n training rows the last max(1, floor(share n)) are validation, where one or more are left to train.

    Test rows stay test rows; the files' own validation rows are left out.
    """
    named = log.filter(log["split"] != "valid")
    rows = _ranked(named, event_order(named), ["user", "split"])
    trained = rows["n"] - _share_of(rows["n"], share)
    newest = (rows["split"] == "train") & (trained >= 1) & (rows["rank"] >= trained)
    return rows.mutate(part=newest.ifelse("valid", rows["split"])).drop("rank", "n")


def _leave_one_out(log: ir.Table) -> ir.Table:
    """A user's newest row is test, the one before validation; a user with fewer than three stays in train."""
    rows = _ranked(log, event_order(log))
    part = ibis.cases(
        ((rows["n"] < 3) | (rows["rank"] < rows["n"] - 2), "train"),
        (rows["rank"] == rows["n"] - 2, "valid"),
        else_="test",
    )
    return rows.mutate(part=part).drop("rank", "n")


def _ranked(log: ir.Table, order: list[str], within: Sequence[str] = ("user",)) -> ir.Table:
    """With each row's `rank` among those that share the columns `within`, from 0, and their number `n`."""
    return log.mutate(
        rank=ibis.row_number().over(group_by=list(within), order_by=order),
        n=log.count().over(ibis.window(group_by=list(within))),
    )


def _share_of(count: ir.IntegerColumn, share: float) -> ir.IntegerValue:
    """max(1, floor(share * count)), in whole numbers: a product of floats may differ between engines."""
    exact = _fraction(share)
    return ibis.greatest(
        1, (count * exact.numerator - (count * exact.numerator) % exact.denominator) // exact.denominator
    )


def _fraction(share: float) -> Fraction:
    """0.1 as a person means it: one tenth, not the nearest binary fraction."""
    return Fraction(str(share)).limit_denominator(1_000_000)


# --- leakage ----------------------------------------------------------------------------------------------------------


def leakage(placed: ir.Table, config: SplitConfig, cuts: Cuts | None) -> list[str]:
    """What of the future has reached the past, one sentence a finding; empty where nothing has.

    placed: user, item (index, -1: not in the vocabulary), row, part, and time where there is one.
    """
    found = [_repeated_rows(placed), _items_from_the_future(placed)]
    if config.kind == "global_time":
        found += _windows_overlap(placed, cuts)
    if config.kind in ("per_user_ratio", "leave_one_out"):
        found.append(_histories_overlap(placed))
    return [finding for finding in found if finding is not None]


def _repeated_rows(placed: ir.Table) -> str | None:
    counted = placed.aggregate(rows=placed.count(), distinct=placed["row"].nunique()).execute().iloc[0]
    more = int(counted["rows"] - counted["distinct"])
    return f"{more} rows are in the split more than once" if more else None


def _items_from_the_future(placed: ir.Table) -> str | None:
    trained = (placed["part"] == "train").cast("int64").sum()
    items = placed.filter(placed["item"] >= 0).group_by("item").aggregate(trained=trained)
    unknown = _count(items.filter(items["trained"] == 0))
    return f"{unknown} items of the vocabulary have no training row" if unknown else None


def _windows_overlap(placed: ir.Table, cuts: Cuts | None) -> list[str | None]:
    if cuts is None:
        return ["the windows have no cuts"]
    time, part = placed["time"], placed["part"]
    late = {
        "training": (part == "train") & (time >= cuts.valid),
        "validation": (part == "valid") & ((time < cuts.valid) | (time >= cuts.test)),
        "test": (part == "test") & (time < cuts.test),
    }
    outside = {name: _count(placed.filter(condition)) for name, condition in late.items()}
    return [f"{rows} {name} rows lie outside their window" for name, rows in outside.items() if rows]


def _histories_overlap(placed: ir.Table) -> str | None:
    time, part = placed["time"], placed["part"]
    users = placed.group_by("user").aggregate(
        train_last=time.max(where=part == "train"),
        valid_first=time.min(where=part == "valid"),
        valid_last=time.max(where=part == "valid"),
        test_first=time.min(where=part == "test"),
    )
    mixed = (
        (users["train_last"] > users["valid_first"])
        | (users["valid_last"] > users["test_first"])
        | (users["train_last"] > users["test_first"])
    )
    rows = _count(users.filter(mixed.fill_null(False)))
    return f"{rows} users have a training or validation row newer than a row of a later part" if rows else None


def _count(table: ir.Table) -> int:
    return int(table.count().execute())
