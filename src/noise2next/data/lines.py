"""Text in batches of numbered lines: what cannot be decoded is told by line, and nothing else is lost with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from noise2next.data.pieces import Piece
from noise2next.errors import UserError

_OTHER_ENCODING = 0.05  # share of undecodable lines in a block from which on the file, not the line, is at fault


@dataclass(frozen=True)
class Lines:
    """numbers [n] (from 1), text [n] without line ends, blank lines left out; undecodable [m] of (number, text)."""

    numbers: NDArray[np.int64]
    text: pa.StringArray
    undecodable: list[tuple[int, str]]


def read_lines(piece: Piece, encoding: str) -> Iterator[Lines]:
    """All lines of a piece, some megabytes at a time. Raises UserError for a file of another encoding."""
    number = 1
    for block in piece.blocks(encoding):
        raw = _cut(block)
        numbers = np.arange(number, number + len(raw))
        number += len(raw)
        undecodable: list[tuple[int, str]] = []
        if b"\0" not in block and is_utf8(block):
            text = raw.cast(pa.string())
        else:
            sound, undecodable = _decoded(raw, numbers)
            _blame_encoding(piece, encoding, undecodable, len(raw))
            text, numbers = raw.filter(sound).cast(pa.string()), numbers[sound.to_numpy(zero_copy_only=False)]
        text = pc.utf8_rtrim(text, "\r\n")
        filled = pc.greater(pc.binary_length(pc.utf8_trim(text, " ")), 0)
        if not pc.all(filled, min_count=0).as_py():
            text, numbers = text.filter(filled), numbers[filled.to_numpy(zero_copy_only=False)]
        yield Lines(numbers, text, undecodable)


def _cut(block: bytes) -> pa.BinaryArray:
    """One value a line, its line end included; no byte is copied."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + 1
    if not len(ends) or ends[-1] < len(block):
        ends = np.append(ends, len(block))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)])


def is_utf8(block: bytes) -> bool:
    """Whether all of it decodes; a block that ends with a line is cut through no letter."""
    if block.isascii():
        return True
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decoded(raw: pa.BinaryArray, numbers: NDArray[np.int64]) -> tuple[pa.BooleanArray, list[tuple[int, str]]]:
    """Which lines are text, and the others with their odd bytes spelled out."""
    sound, undecodable = [], []
    for number, line in zip(numbers.tolist(), raw.to_pylist(), strict=True):
        good = b"\0" not in line and is_utf8(line)
        sound.append(good)
        if not good:
            shown = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace").replace("\0", "\\x00")
            undecodable.append((number, shown))
    return pa.array(sound, pa.bool_()), undecodable


def _blame_encoding(piece: Piece, encoding: str, undecodable: list[tuple[int, str]], lines: int) -> None:
    if len(undecodable) > max(2, _OTHER_ENCODING * lines):
        raise UserError(
            f"{piece.name}: line {undecodable[0][0]} and {len(undecodable) - 1} more are not {encoding} text; name the"
            " file's `encoding` in the dataset's entry (latin-1, utf-16), or save it as UTF-8"
        )
