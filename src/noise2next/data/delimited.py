"""Delimited text to fields, column by column: any separator, quotes where they are meant, no line lost to another."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_LONGEST_RECORD = 100  # lines that one quoted record may span
_TYPED = re.compile(r"(.+):(?:token|float|token_seq|float_seq)")


@dataclass(frozen=True)
class Fields:
    """Records of some lines. columns [C] of [n] text, null in a record of the wrong length; lines [n], raw [n]."""

    lines: NDArray[np.int64]
    raw: pa.StringArray
    right: NDArray[np.bool_]
    columns: list[pa.StringArray]


def header_names(line: str, separator: str) -> list[str]:
    """Column names of a header line; RecBole's `name:type` loses its type."""
    names = [name.strip() for name in split_line(line, separator)]
    typed = [_TYPED.fullmatch(name) for name in names]
    return [match[1] for match in typed if match] if all(typed) else names


def split_line(line: str, separator: str) -> list[str]:
    """The fields of one record; quotes count only where they balance."""
    if '"' in line and len(separator) == 1 and line.count('"') % 2 == 0:
        parsed = _parse([line], separator)[0]
        if parsed is not None:
            return parsed
    return line.split() if separator == " " else line.split(separator)


def width(text: pa.StringArray, separator: str) -> int:
    """The number of fields that most of these lines have."""
    counts: dict[int, int] = {}
    for line in text.slice(0, 10_000).to_pylist():
        n = len(split_line(line, separator))
        counts[n] = counts.get(n, 0) + 1
    return max(counts, key=lambda n: (counts[n], n), default=0)


def fields(
    lines: NDArray[np.int64], text: pa.StringArray, separator: str, expected: int, wanted: Sequence[int]
) -> Fields:
    """The `wanted` columns (from 0) of records that have `expected` fields.

    A quoted field may hold the separator and, where no inner line would be a record by itself, line ends. A stray
    quote is a letter like any other, so it never swallows the lines after it.
    """
    split = (
        pc.ascii_split_whitespace(pc.utf8_trim(text, " ")) if separator == " " else pc.split_pattern(text, separator)
    )
    starts = split.offsets.to_numpy()[:-1]
    counts = np.diff(split.offsets.to_numpy())
    right = counts == expected
    quoted: dict[int, list[str]] = {}
    spans: dict[int, int] = {}
    if len(separator) == 1 and pc.any(marked := pc.match_substring(text, '"')).as_py():
        quoted, spans = _quoted(text, np.flatnonzero(marked.to_numpy(zero_copy_only=False)), separator, expected, right)
        for place, found in quoted.items():
            right[place] = len(found) == expected
    columns = [_column(split.values, starts + k, right, quoted, k) for k in wanted]
    if spans:
        return _folded(Fields(lines, text, right, columns), spans)
    return Fields(lines, text, right, columns)


def open_record(text: pa.StringArray) -> int:
    """Lines at the end of a block that may be the start of a record which goes on in the next block."""
    last = text.slice(max(0, len(text) - _LONGEST_RECORD)).to_pylist()
    odd = [place for place, line in enumerate(last) if line.count('"') % 2]
    return len(last) - odd[-1] if len(odd) % 2 else 0


def _column(
    values: pa.StringArray, at: NDArray[np.int64], right: NDArray[np.bool_], quoted: dict[int, list[str]], k: int
) -> pa.StringArray:
    plain = right.copy()
    plain[list(quoted)] = False
    column = values.take(pa.array(at, mask=~plain))
    if not quoted:
        return column
    fitting = [place for place in sorted(quoted) if right[place]]
    mask = np.zeros(len(right), dtype=bool)
    mask[fitting] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array([quoted[one][k] for one in fitting], pa.string()))


def _quoted(
    text: pa.StringArray, marked: NDArray[np.intp], separator: str, expected: int, right: NDArray[np.bool_]
) -> tuple[dict[int, list[str]], dict[int, int]]:
    """Fields of the lines that hold quotes, and {first line: last line} of records over several lines."""
    words = text.take(pa.array(marked)).to_pylist()
    odd = [place for place, line in zip(marked.tolist(), words, strict=True) if line.count('"') % 2]
    even = [(place, line) for place, line in zip(marked.tolist(), words, strict=True) if line.count('"') % 2 == 0]
    parsed = zip(even, _parse([line for _, line in even], separator), strict=True)
    quoted = {place: found for (place, _), found in parsed if found is not None}
    whole = right.copy()  # a record by itself
    whole[list(quoted)] = [len(found) == expected for found in quoted.values()]
    spans: dict[int, int] = {}
    i = 0
    while i + 1 < len(odd):
        first, last = odd[i], odd[i + 1]
        i += 1
        if last - first >= _LONGEST_RECORD or whole[first + 1 : last].any():
            continue
        joined = _parse(["\n".join(text.slice(first, last - first + 1).to_pylist())], separator)[0]
        if joined is not None and len(joined) == expected:
            quoted[first], spans[first] = joined, last
            i += 1
    return quoted, spans


def _parse(lines: list[str], separator: str) -> list[list[str] | None]:
    """Each line as one quoted record; None where its quotes do not close."""
    try:
        found: list[list[str]] = list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error:
        found = []
    if len(found) == len(lines):  # a record never ends before its line, so equal counts mean one record a line
        return list(found)
    return [_parse_one(line, separator) for line in lines]


def _parse_one(line: str, separator: str) -> list[str] | None:
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return None


def _folded(found: Fields, spans: dict[int, int]) -> Fields:
    """Leave out the inner lines of records over several lines; their text goes to the record's first line."""
    keep = np.ones(len(found.lines), dtype=bool)
    raw = found.raw.to_pylist()
    for first, last in spans.items():
        raw[first] = "\n".join(raw[first : last + 1])
        keep[first + 1 : last + 1] = False
    mask = pa.array(keep)
    return Fields(
        found.lines[keep],
        pa.array(raw, pa.string()).filter(mask),
        found.right[keep],
        [column.filter(mask) for column in found.columns],
    )
