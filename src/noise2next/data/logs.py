"""The rows of a log as text, whatever its format: streamed, numbered, and judged in nothing but what cannot be read.

Every reader yields batches of SCHEMA in reading order, in bounded memory, and opens data only: no pickle, no code.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import Dataset
from noise2next.data import delimited
from noise2next.data.lines import Lines, read_lines
from noise2next.data.pieces import Piece, pieces, zip_members
from noise2next.errors import UserError

# piece: place of the file in reading order; line: from 1, a header counts; reason: why the row could not be read;
# values without the blanks around them, raw as it stands
SCHEMA = pa.schema(
    [
        ("piece", pa.int32()),
        ("line", pa.int64()),
        ("user", pa.string()),
        ("item", pa.string()),
        ("time", pa.string()),
        ("rating", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]
)
WRONG_COLUMN_COUNT = "wrong column count"
NOT_JSON = "not valid JSON"
UNDECODABLE = "undecodable text"
PARTS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
LISTS = {"train_list.npy": "train", "valid_list.npy": "valid", "test_list.npy": "test"}

Batches = Iterator[pa.RecordBatch]
Roles = dict[str, str]  # role -> column name


def read(dataset: Dataset, data: Path) -> tuple[list[Piece], Batches]:
    """The pieces of a dataset's log below `data`, in reading order, and its rows in batches of SCHEMA.

    Raises UserError, at once or while the batches are drawn, for what makes a file unreadable as a whole.
    """
    _check_time(dataset)
    found = log_pieces(data / dataset.path, dataset.path, dataset)
    reader = _READERS[dataset.format]
    return found, (batch for place, piece in enumerate(found) for batch in reader(piece, place, dataset))


def _check_time(dataset: Dataset) -> None:
    if dataset.format not in ("delimited", "json", "parquet", "diffurec"):
        return
    if dataset.columns.time is not None and dataset.time_unit is None:
        raise UserError(f"{dataset.path}: columns.time is named without time_unit; say s, ms, us, iso or order")
    if dataset.columns.time is None and dataset.has_clock:
        raise UserError(f"{dataset.path}: time_unit is {dataset.time_unit} and no column is named; say columns.time")


def log_pieces(path: Path, name: str, dataset: Dataset) -> list[Piece]:
    """The streams that a dataset's entry means, in reading order."""
    if dataset.format == "diffrec":
        return list(official_lists(path, name).values())
    return pieces(path, name, dataset.member)


def official_lists(path: Path, name: str) -> dict[str, Piece]:
    """{train, valid, test: the .npy list} of DiffRec's layout, in a folder or a zip."""
    streams = pieces(path, name, None) if path.is_dir() else zip_members(path, name)
    named = {(one.member or one.name).rsplit("/", 1)[-1]: one for one in streams}
    missing = [one for one in LISTS if one not in named]
    if missing:
        raise UserError(f"{name}: holds no {', '.join(missing)}; DiffRec's layout has {', '.join(LISTS)}")
    return {part: named[one] for one, part in LISTS.items()}


def roles_of(dataset: Dataset) -> Roles:
    """The columns that an entry names, and `split` where the format has it."""
    named = {role: getattr(dataset.columns, role) for role in ("user", "item", "time", "rating")}
    if dataset.format == "diffurec":
        named |= {"split": "split"}
    return {role: column for role, column in named.items() if column is not None}


# --- delimited text ---------------------------------------------------------------------------------------------------


def _delimited(piece: Piece, place: int, dataset: Dataset) -> Batches:
    roles = roles_of(dataset)
    for lines, found in records(piece, dataset.encoding, dataset.separator or ",", dataset.header, "columns", roles):
        if found is not None:
            reason = pc.if_else(pa.array(found.right), pa.scalar(None, pa.string()), WRONG_COLUMN_COUNT)
            yield _batch(place, found.lines, found.raw, reason, dict(zip(roles, found.columns, strict=True)))
        yield from _undecodable(place, lines)


def records(
    piece: Piece, encoding: str, separator: str, header: bool, entry: str, roles: Roles
) -> Iterator[tuple[Lines, delimited.Fields | None]]:
    """Delimited text by blocks of lines, with the columns of `roles` in their order; None where a block holds no rows.

    Raises UserError for a column that the file has not; it names `entry`, the key above the roles in params.yaml.
    """
    names, expected = list[str](), 0
    for lines in _whole_records(read_lines(piece, encoding), separator):
        numbers, text = lines.numbers, lines.text
        if not expected and len(text):
            if header:
                names = delimited.header_names(text[0].as_py(), separator)
                numbers, text = numbers[1:], text.slice(1)
            else:
                names = [str(k + 1) for k in range(delimited.width(text, separator))]
            expected = len(names)
            wanted = _places(piece, roles, names, entry)
        found = delimited.fields(numbers, text, separator, expected, list(wanted.values())) if len(text) else None
        yield lines, found


def _whole_records(batches: Iterator[Lines], separator: str) -> Iterator[Lines]:
    """Move a record that may go on in the next block over to it."""
    rest: Lines | None = None
    for lines in batches:
        if rest is not None:
            text = pa.concat_arrays([rest.text, lines.text])
            lines = Lines(np.concatenate([rest.numbers, lines.numbers]), text, lines.undecodable)
        cut = len(lines.text) - (delimited.open_record(lines.text) if len(separator) == 1 else 0)
        yield Lines(lines.numbers[:cut], lines.text.slice(0, cut), lines.undecodable)
        rest = Lines(lines.numbers[cut:], lines.text.slice(cut), []) if cut < len(lines.text) else None
    if rest is not None:
        yield rest


def _places(piece: Piece, roles: Roles, names: Sequence[str], entry: str = "columns") -> dict[str, int]:
    """{role: place of its column}. Raises UserError for a column that the file has not, or has twice."""
    for role, column in roles.items():
        if names.count(column) != 1:
            fact = "no column" if column not in names else "more than one column"
            raise UserError(
                f"{piece.name}: {fact} {column!r} for the {role}; it has {', '.join(names) or 'none'}; correct"
                f" {entry}.{role} in the dataset's entry"
            )
    return {role: names.index(column) for role, column in roles.items()}


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json(piece: Piece, place: int, dataset: Dataset) -> Batches:
    roles = roles_of(dataset)
    met: set[str] = set()
    for lines in read_lines(piece, dataset.encoding):
        objects = [parse_object(line) for line in lines.text.to_pylist()]
        if not met:
            met = {key for one in objects[:1000] if one is not None for key in one}
            if met:
                _places(piece, {role: roles[role] for role in roles}, sorted(met))
        columns = {
            role: pa.array([None if one is None else scalar_text(one.get(key)) for one in objects], pa.string())
            for role, key in roles.items()
        }
        reason = pa.array([NOT_JSON if one is None else None for one in objects], pa.string())
        if len(lines.text):
            yield _batch(place, lines.numbers, lines.text, reason, columns)
        yield from _undecodable(place, lines)


def parse_object(line: str) -> dict[str, Any] | None:
    """One line of JSON, or None where it is no object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def scalar_text(value: Any) -> str | None:
    """A value of JSON as text: whole numbers without a point, anything that is no scalar as its JSON."""
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case _:
            return json.dumps(value)


# --- Parquet, also DiffuRec's -----------------------------------------------------------------------------------------


def _parquet(piece: Piece, place: int, dataset: Dataset) -> Batches:
    roles, line = roles_of(dataset), 1
    with open_parquet(piece) as file:
        _places(piece, roles, file.schema_arrow.names)
        with _told_parquet(piece):
            for read in file.iter_batches(batch_size=1 << 18, columns=sorted(set(roles.values()))):
                columns = {role: column_text(read.column(name)) for role, name in roles.items()}
                if "split" in columns:
                    columns["split"] = _parts(columns["split"], piece)
                raw = pc.binary_join_element_wise(*columns.values(), ",", null_handling="replace", null_replacement="")
                yield _batch(place, np.arange(line, line + len(read)), raw, None, columns)
                line += len(read)


@contextlib.contextmanager
def open_parquet(piece: Piece) -> Iterator[pq.ParquetFile]:
    """A Parquet file; one inside a container is first written to a temporary file, since Parquet is read by jumps."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(piece.open())
        if piece.member is not None or stream.peek(2)[:2] != b"PA":  # type: ignore[attr-defined]
            stream = _unpacked(stream, stack.enter_context(tempfile.TemporaryFile()))
        with _told_parquet(piece):
            file = pq.ParquetFile(stream)
        yield file


def _unpacked(stream: BinaryIO, into: IO[bytes]) -> BinaryIO:
    shutil.copyfileobj(stream, into, 1 << 20)
    into.seek(0)
    return cast(BinaryIO, into)


@contextlib.contextmanager
def _told_parquet(piece: Piece) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{piece.name}: not readable as Parquet ({first}); write or fetch the file again") from error


def column_text(column: pa.Array) -> pa.StringArray:
    """Any column of scalars as text: whole floats without a point, times as ISO text in UTC."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))
    if pa.types.is_floating(kind):
        wide = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.trunc(wide), wide), pc.less(pc.abs(wide), 2.0**53))
        integers = pc.if_else(pc.fill_null(whole, False), wide, None).cast(pa.int64())
        return pc.if_else(pc.fill_null(whole, False), integers.cast(pa.string()), column.cast(pa.string()))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.large_binary()).cast(pa.large_string()).cast(pa.string())
    return column.cast(pa.string())


def is_scalar(kind: pa.DataType) -> bool:
    """Whether `column_text` can spell values of this type."""
    return not pa.types.is_nested(kind) and not pa.types.is_duration(kind) and not pa.types.is_time(kind)


def _parts(split: pa.StringArray, piece: Piece) -> pa.StringArray:
    known = pa.array(list(PARTS))
    places = pc.index_in(split, known)
    if places.null_count:
        odd = split.filter(pc.is_null(places))[0].as_py()
        raise UserError(f"{piece.name}: split {odd!r} is none of train, valid (val) and test; correct the file")
    return pa.array(list(PARTS.values())).take(places)


# --- DiffRec's official lists -----------------------------------------------------------------------------------------


def _diffrec(piece: Piece, place: int, dataset: Dataset) -> Batches:
    part = list(LISTS.values())[place]
    pairs = load_pairs(piece)
    for start in range(0, len(pairs), 1 << 18):
        some = pairs[start : start + (1 << 18)]
        order = np.arange(start, start + len(some))
        columns = {
            "user": pa.array(some[:, 0]).cast(pa.string()),
            "item": pa.array(some[:, 1]).cast(pa.string()),
            "time": pa.array(order).cast(pa.string()),
            "split": pa.array(np.full(len(some), part)).cast(pa.string()),
        }
        raw = pc.binary_join_element_wise(columns["user"], columns["item"], ",")
        yield _batch(place, order + 1, raw, None, columns)


def load_pairs(piece: Piece) -> NDArray[np.int64]:
    """[N, 2] user and item. Raises UserError for another shape, and for an array of objects, which is a pickle."""
    with piece.open() as stream:
        content = stream.read()
    try:
        pairs = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{piece.name}: not readable as .npy without unpickling ({error}); save it as int64 [N, 2]"
        ) from error
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise UserError(f"{piece.name}: is {pairs.dtype} {list(pairs.shape)}, not whole numbers [N, 2]; save it so")
    return cast("NDArray[np.int64]", pairs.astype(np.int64))


# --- lines of `user item item ...` ------------------------------------------------------------------------------------


def _sequences(piece: Piece, place: int, dataset: Dataset) -> Batches:
    for lines in read_lines(piece, dataset.encoding):
        if len(lines.text):
            yield _unrolled(place, lines.numbers, lines.text)
        yield from _undecodable(place, lines)


def _unrolled(place: int, numbers: NDArray[np.int64], text: pa.StringArray) -> pa.RecordBatch:
    """One row an item; a line with no item is one row that cannot be read."""
    words = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(text))
    offsets = words.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    rows = np.maximum(lengths - 1, 1)
    line = np.repeat(np.arange(len(lengths)), rows)
    position = np.arange(len(line)) - np.repeat(np.cumsum(rows) - rows, rows)
    right = (lengths > 1)[line]
    items = words.values.take(pa.array(offsets[:-1][line] + 1 + position, mask=~right))
    users = words.values.take(pa.array(offsets[:-1][line], mask=~right))
    columns = {"user": users, "item": items, "time": pa.array(position).cast(pa.string())}
    reason = pc.if_else(pa.array(right), pa.scalar(None, pa.string()), WRONG_COLUMN_COUNT)
    raw = pc.coalesce(pc.binary_join_element_wise(users, items, " "), text.take(pa.array(line)))
    return _batch(place, numbers[line], raw, reason, columns)


# --- batches ----------------------------------------------------------------------------------------------------------


def _batch(
    place: int, lines: NDArray[np.int64], raw: pa.Array, reason: pa.Array | None, columns: dict[str, pa.Array]
) -> pa.RecordBatch:
    n = len(lines)
    absent = pa.nulls(n, pa.string())
    bare = {role: pc.ascii_trim_whitespace(column) for role, column in columns.items()}
    given = {"raw": raw, "reason": absent if reason is None else reason, **bare}
    texts = [given.get(name, absent) for name in SCHEMA.names[2:]]
    return pa.record_batch([pa.array(np.full(n, place, dtype=np.int32)), pa.array(lines), *texts], schema=SCHEMA)


def _undecodable(place: int, lines: Lines) -> Batches:
    if lines.undecodable:
        numbers, raw = zip(*lines.undecodable, strict=True)
        reason = pa.array([UNDECODABLE] * len(numbers), pa.string())
        yield _batch(place, np.asarray(numbers, dtype=np.int64), pa.array(raw, pa.string()), reason, {})


_READERS: dict[str, Callable[[Piece, int, Dataset], Batches]] = {
    "delimited": _delimited,
    "json": _json,
    "parquet": _parquet,
    "diffurec": _parquet,
    "diffrec": _diffrec,
    "sequences": _sequences,
}
