"""Reports as Dagster shows them: numbers as numbers, mappings and rows as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from noise2next.config import Frozen

LONGEST = 50  # rows of a table; the file beside it has all


def described(report: Frozen, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Every field of a report that holds something, under its own name in words."""
    fields = {name: value for name, value in report.model_dump(mode="json").items() if name not in leave_out}
    return {name.replace("_", " "): _value(value) for name, value in fields.items() if value not in (None, {}, [])}


def table(rows: Mapping[str, Any], first: str, second: str = "") -> dg.MarkdownMetadataValue:
    """A markdown table, one line for each key; mappings spread over columns, other values take the column `second`."""
    lines = {key: value if isinstance(value, Mapping) else {second: value} for key, value in rows.items()}
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    head = [f"| {' | '.join([first, *map(str, columns)])} |", "|---" + "|---:" * len(columns) + "|"]
    body = [
        f"| {' | '.join([str(key), *(_cell(line.get(name, '')) for name in columns)])} |"
        for key, line in list(lines.items())[:LONGEST]
    ]
    cut = [f"\n{len(lines) - LONGEST:,} more rows"] if len(lines) > LONGEST else []
    return dg.MetadataValue.md("\n".join([*head, *body, *cut]))


def by_cutoff(metrics: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    """`recall@20` and its kind as a table, a line for each metric, a column for each cutoff."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        metric, _, cutoff = name.partition("@")
        rows.setdefault(metric, {})[cutoff] = value
    cutoffs = sorted({cutoff for row in rows.values() for cutoff in row}, key=int)
    return table({name: {f"@{cutoff}": row[cutoff] for cutoff in cutoffs} for name, row in rows.items()}, "metric")


def _value(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case Mapping():
            return table(value, "")
        case [Mapping(), *_]:
            return table({str(place): row for place, row in enumerate(value, 1)}, "")
        case [*items]:
            return dg.MetadataValue.md("\n".join(f"- {item}" for item in items[:LONGEST]))
        case _:
            return value


def _cell(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
        case Mapping():
            return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
        case _:
            return str(value).replace("|", r"\|").replace("\n", " ")
