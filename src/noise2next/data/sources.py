"""Recognise a raw log by looking at it: container, format, separator, header, encoding, columns, unit of time.

Looking reads the first megabyte of text, the footer of Parquet, the header of `.npy`; it never opens a pickle.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.compute as pc

from noise2next.config import Columns, Format, TimeUnit
from noise2next.data import delimited, guesses, logs
from noise2next.data.pieces import PickleRefused, Piece, folder_files, is_zip, pieces, utf16, zip_members
from noise2next.errors import UserError

_ROWS = 20_000  # looked at
_ROLES = ("user", "item", "time", "rating")
_COMMON = ("\t", "::", ",", ";", "|", " ")
_ALIKE = 0.9  # share of lines that must agree
_LEGIBLE = 0.95  # share of lines that must be text
_PART = re.compile(r"(^|[^a-z])(u[a0-9]|train|training|valid|validation|val|test|base|dev)([^a-z]|$)")
_KNOWN = ("u.data", "ratings.dat", "ratings.csv", "user_artists.dat", "interactions.csv")


_FOREIGN = {"bzip2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd"}  # and their first bytes


@dataclass(frozen=True)
class Hints:
    """What a person said; None is found by looking."""

    format: Format | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    time_unit: TimeUnit | None = None
    member: str | None = None
    separator: str | None = None
    encoding: str | None = None  # as Python names it


@dataclass(frozen=True)
class Source:
    """A recognised log. `path` is what is to be taken in: the given path, or one file of a given folder."""

    path: Path
    format: Format
    member: str | None = None
    separator: str | None = None
    header: bool = True
    encoding: str = "utf-8"
    columns: Columns = field(default_factory=Columns)
    time_unit: TimeUnit | None = None
    names: tuple[str, ...] = ()  # all columns
    first_time: str | None = None  # as a date, or as written where there is no clock
    unread_time: str | None = None  # a column named like a time whose unit is not told
    unread_rating: tuple[str, str] | None = None  # a column named like a rating, and a value in it that is no number
    rows_peeked: int = 0
    left_out: tuple[str, ...] = ()  # members or files beside the log
    one_each: bool = False  # official split with one validation row a user


@dataclass(frozen=True)
class _Text:
    """The start of a piece of text, decoded, cut into whole lines without blank ones."""

    lines: list[str]
    encoding: str


def recognise(path: Path, hints: Hints = Hints()) -> Source:
    """What the log at `path` (a file, a zip, a folder) is.

    Raises UserError where nothing is there, where it cannot be a log, and where a choice or a column cannot be told.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if _has_official_lists(path, hints):
        return _official(path)
    if path.is_dir():
        return (
            _folder(path, hints)
            if hints.member is None
            else recognise(path / hints.member, replace(hints, member=None))
        )
    if hints.member is not None and not is_zip(path):
        raise UserError(f"{path}: is no zip, so it has no member {hints.member!r}; leave --member out")
    if is_zip(path):
        return _choose(path, zip_members(path, str(path)), hints)
    return replace(_look(Piece(path, str(path)), hints), path=path)


# --- containers -------------------------------------------------------------------------------------------------------


def _has_official_lists(path: Path, hints: Hints) -> bool:
    if hints.format is not None:
        return hints.format == "diffrec"
    if path.is_dir():
        names = {one.name for one in folder_files(path)}
    else:
        names = (
            {(one.member or "").rsplit("/", 1)[-1] for one in zip_members(path, str(path))} if is_zip(path) else set()
        )
    return set(logs.LISTS) <= names


def _official(path: Path) -> Source:
    if not path.is_dir() and not is_zip(path):
        raise UserError(f"{path}: the format diffrec is a folder or zip with {', '.join(logs.LISTS)}; give that")
    lists = logs.official_lists(path, str(path))
    sizes = {part: len(logs.load_pairs(piece)) for part, piece in lists.items()}
    return Source(path, "diffrec", time_unit="order", rows_peeked=sum(sizes.values()))


def _folder(path: Path, hints: Hints) -> Source:
    """Files of one make are one log; among different ones the log is chosen as in a zip."""
    files = folder_files(path)
    if not files:
        raise UserError(f"{path}: the folder holds no file; give the log itself")
    if any(is_zip(one) for one in files):
        raise UserError(f"{path}: the folder holds zips; give one zip, or a folder of their contents")
    streams = [Piece(one, str(one), one.relative_to(path).as_posix(), one.stat().st_size) for one in files]
    plain = [replace(stream, member=None) for stream in streams]
    found = [_attempt(piece, hints) for piece in plain]
    makes = {_make(one) if isinstance(one, Source) else None for one in found}
    first = found[0]
    if len(makes) == 1 and isinstance(first, Source):
        return replace(first, path=path)
    chosen = _chosen(path, streams, found, hints)
    return replace(chosen, path=path / (chosen.member or ""), member=None)


def _make(source: Source) -> tuple[object, ...]:
    return (source.format, source.separator, source.header, source.columns, source.time_unit)


def _choose(path: Path, members: list[Piece], hints: Hints) -> Source:
    if hints.member is not None:
        piece = pieces(path, str(path), hints.member)[0]
        return replace(_look(piece, hints), path=path, member=hints.member)
    if not members:
        raise UserError(f"{path}: the zip is empty; give the log itself")
    if len(members) == 1:
        return replace(_look(members[0], hints), path=path, member=members[0].member)
    return replace(_chosen(path, members, [_attempt(one, hints) for one in members], hints), path=path)


def _attempt(piece: Piece, hints: Hints) -> Source | UserError:
    try:
        return _look(piece, hints)
    except UserError as error:
        return error


def _chosen(path: Path, streams: Sequence[Piece], found: Sequence[Source | UserError], hints: Hints) -> Source:
    """The interaction log among files of a publisher: users, items and, best, times and ratings; no mere part of it."""
    ranks = {
        stream.member or "": _rank(stream.member or "", source)
        for stream, source in zip(streams, found, strict=True)
        if isinstance(source, Source)
    }
    if not ranks:
        raise _nothing_found(path, streams, found)
    best = max(ranks.values())
    leaders = [name for name, rank in ranks.items() if rank == best]
    if len(leaders) > 1:
        raise UserError(f"{path}: {', '.join(leaders)} may each be the log; choose one with --member")
    looked = {stream.member: source for stream, source in zip(streams, found, strict=True)}
    source = looked[leaders[0]]
    assert isinstance(source, Source)
    others = tuple(name for name in (stream.member or "" for stream in streams) if name != leaders[0])
    return replace(source, member=leaders[0], left_out=others)


def _rank(name: str, source: Source) -> tuple[bool, bool, int]:
    """Higher is likelier: known by name, no part of a split, times and ratings present."""
    base = name.rsplit("/", 1)[-1].lower()
    facts = 2 * (source.time_unit is not None) + (source.columns.rating is not None)
    return base in _KNOWN, _PART.search(base) is None, facts


def _nothing_found(path: Path, streams: Sequence[Piece], found: Sequence[Source | UserError]) -> UserError:
    pickled = [error for error in found if isinstance(error, PickleRefused)]
    if len(pickled) == len(found):
        return pickled[0]
    listed = ", ".join(stream.member or "" for stream in streams)
    return UserError(
        f"{path}: no interaction log told among {listed}; name it with --member and its columns with --user and --item"
    )


# --- one piece --------------------------------------------------------------------------------------------------------


def _look(piece: Piece, hints: Hints) -> Source:
    start = piece.head()
    if hints.format in ("parquet", "diffurec") or (hints.format is None and start[:4] == b"PAR1"):
        return _parquet(piece, hints)
    if start[:6] == b"\x93NUMPY":
        raise UserError(
            f"{piece.name}: a single .npy; the format diffrec is a folder or zip of {', '.join(logs.LISTS)}"
        )
    packing = next((name for name, magic in _FOREIGN.items() if start.startswith(magic)), None)
    if packing is not None and not start[:200].isascii():
        raise UserError(f"{piece.name}: compressed with {packing}; give gzip or zip")
    text = _text(piece, start, hints.encoding)
    kind = hints.format or ("delimited" if hints.separator is not None else _kind(piece, text))
    if kind == "json":
        return _json(piece, text, hints)
    if kind == "sequences":
        return Source(piece.path, "sequences", encoding=text.encoding, time_unit="order", rows_peeked=len(text.lines))
    return _delimited(piece, text, hints)


def _text(piece: Piece, start: bytes, said: str | None) -> _Text:
    encoding = said or _encoding(start)
    if said is not None and said != "utf-8":
        decoded = _decoded(piece, start, said)
    elif encoding == "utf-8":
        decoded = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        _refuse_other_encoding(piece, decoded)
    else:
        decoded = start[: len(start) // 2 * 2].decode(encoding, "replace").removeprefix("\ufeff")
    odd = sum(decoded.count(chr(code)) for code in (*range(0, 9), *range(14, 32)) if chr(code) != "\x01")
    if odd > 0.02 * len(decoded):
        raise UserError(
            f"{piece.name}: neither text nor Parquet; give the log as delimited text, JSON lines or Parquet"
        )
    if "\n" not in decoded and "\r" in decoded.strip("\r"):
        raise UserError(
            f"{piece.name}: its lines end with carriage returns alone; save it with line feeds (`tr '\\r' '\\n'`)"
        )
    lines = decoded.split("\n")
    if len(start) >= (1 << 20) and len(lines) > 1:
        lines.pop()  # cut off in its middle
    lines = [bare for line in lines[:_ROWS] if (bare := line.rstrip("\r")).strip(" ")]
    if not lines:
        raise UserError(f"{piece.name}: the file holds only blank lines; give the interaction log itself")
    return _Text(lines, encoding)


def _decoded(piece: Piece, start: bytes, encoding: str) -> str:
    """The start of a file in the encoding that was said; a letter cut off at its end is left out."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(start).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(f"{piece.name}: not {encoding} text ({error}); correct --encoding") from error


def known_encoding(name: str) -> str:
    """An encoding of text that Python knows. Raises UserError for any other."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name)
    except (LookupError, ValueError) as error:
        raise UserError(f"--encoding {name!r} is no encoding of text; say utf-8, latin-1, cp1252 or utf-16") from error
    return "utf-8" if codecs.lookup(name).name == "utf-8" else name


def _refuse_other_encoding(piece: Piece, decoded: str) -> None:
    lines = decoded.split("\n")[:-1]
    odd = [number for number, line in enumerate(lines, 1) if "\ufffd" in line]
    if len(odd) > max(2, (1 - _LEGIBLE) * len(lines)):
        raise UserError(
            f"{piece.name}: line {odd[0]} and {len(odd) - 1} more are neither UTF-8, UTF-16 nor Latin-1; say"
            " --encoding, as cp1252, or save the file as UTF-8"
        )


def _encoding(start: bytes) -> str:
    """UTF-16 by its zeros; Latin-1 where bytes above 127 stand as letters and never form UTF-8; else UTF-8."""
    if utf16(start):
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        return "utf-16-le" if start[:200][1::2].count(0) >= start[:200][::2].count(0) else "utf-16-be"
    try:
        start[: max(start.rfind(b"\n"), 0) or len(start)].decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    letters = re.search(rb"[A-Za-z][\xc0-\xff]|[\xc0-\xff][A-Za-z]", start)
    controls = re.search(rb"[\x80-\x9f]", start)
    return "latin-1" if letters and not controls else "utf-8"


def _kind(piece: Piece, text: _Text) -> Format:
    first = text.lines[0].lstrip()
    if first.startswith("["):
        raise UserError(f"{piece.name}: line 1 opens a JSON array; write one object a line (JSON lines)")
    if first.startswith("{"):
        return "json"
    sample = text.lines[:1000]
    lengths = Counter(len(line.split()) for line in sample)
    words = all(re.fullmatch(r"\s*\S+(\s+\S+)*\s*", line) and not re.search(r"[,;|:\"]", line) for line in sample)
    ragged = lengths.most_common(1)[0][1] < _ALIKE * len(sample) and max(lengths) > 2
    return "sequences" if words and ragged else "delimited"


# --- delimited text ---------------------------------------------------------------------------------------------------


def _delimited(piece: Piece, text: _Text, hints: Hints) -> Source:
    separator = hints.separator or _separator(text.lines[:2000])
    if hints.separator is not None and hints.separator not in text.lines[0]:
        raise UserError(f"{piece.name}: line 1 holds no {hints.separator!r}; correct --separator")
    if separator is None:
        raise UserError(
            f"{piece.name}: line 1 has no separator that the other lines share; give delimited text with user and item"
        )
    records = [delimited.split_line(line, separator) for line in text.lines]
    header = _has_header(records, hints)
    width = Counter(len(record) for record in records).most_common(1)[0][0]
    names = delimited.header_names(text.lines[0], separator) if header else [str(k + 1) for k in range(width)]
    body = [record for record in records[header:] if len(record) == len(names)]
    if not body:
        raise UserError(
            f"{piece.name}: line 1 has {len(names)} names and no line below has as many fields; correct the header or"
            " give a log with rows"
        )
    values = {name: [record[k].strip() for record in body] for k, name in enumerate(names)}
    source = Source(piece.path, "delimited", None, separator, header, text.encoding, rows_peeked=len(body))
    found = _with_columns(piece, source, values, hints, by_content=not header)
    _refuse_twins(piece, names, found.columns)
    return found


def _separator(lines: Sequence[str]) -> str | None:
    """The one that cuts most lines into equally many fields, and into the most."""
    odd = {char for char in lines[0] if not char.isalnum() and char not in " ._-+\"'/:@,;|\t#(){}[]!?&=%$*\\"}
    candidates = (*_COMMON, *sorted(odd))
    best: tuple[int, int] | None = None
    chosen = None
    for rank, separator in enumerate(candidates):
        counts = Counter(len(delimited.split_line(line, separator)) for line in lines)
        fields, agreeing = counts.most_common(1)[0]
        score = (fields, -rank)
        if fields > 1 and agreeing >= _ALIKE * len(lines) and (best is None or score > best):
            best, chosen = score, separator
    return chosen


def _has_header(records: list[list[str]], hints: Hints) -> bool:
    """Names of columns stand where numbers or digits stand below, or are ones that logs have."""
    first, body = records[0], records[1:1000]
    said = [one for one in (hints.user, hints.item, hints.time, hints.rating) if one is not None]
    names = [name.strip() for name in first]
    numbered = [one.isdigit() for one in said]
    if said and all(one in names for one in said) and not all(numbered):
        return True
    if said and all(numbered) and not any(one in names for one in said):
        return False  # said by place
    if any(guesses.share_numeric([cell]) for cell in first):
        return False
    if any(guesses.named(role, [cell.split(":")[0] for cell in first]) for role in ("user", "item")):
        return True
    if any(re.search(r"\d", cell) for cell in first):
        return any(guesses.share_numeric(column) > _ALIKE for column in _columns(body, len(first)))
    return any(
        sum(re.search(r"\d", cell) is not None for cell in column) > _ALIKE * len(column)
        for name, column in zip(names, _columns(body, len(first)), strict=False)
        if guesses.given_of([name])
    )


def _columns(records: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """By column, the cells of records of that width; none where there are no such records."""
    return [list(column) for column in zip(*(one for one in records if len(one) == width), strict=True)]


# --- JSON lines and Parquet -------------------------------------------------------------------------------------------


def _json(piece: Piece, text: _Text, hints: Hints) -> Source:
    objects = [logs.parse_object(line) for line in text.lines]
    good = [one for one in objects if one is not None]
    if len(good) < len(objects) / 2:
        place = next(number for number, one in enumerate(objects, 1) if one is None)
        raise UserError(f"{piece.name}: line {place} is not a JSON object; write one valid object a line")
    names = list(dict.fromkeys(key for one in good for key in one))
    values = {name: [logs.scalar_text(one.get(name)) for one in good] for name in names}
    source = Source(piece.path, "json", encoding=text.encoding, rows_peeked=len(good))
    found = _with_columns(piece, source, values, hints)
    for role in ("user", "item"):
        column = getattr(found.columns, role)
        nested = [one[column] for one in good if isinstance(one.get(column), dict | list)]
        if len(nested) > (1 - _ALIKE) * len(good):
            raise UserError(
                f"{piece.name}: column {column!r}, told as the {role}, holds {logs.scalar_text(nested[0])} and no"
                f" single value; write that value under a name of its own, or name another column with --{role}"
            )
    return found


def _parquet(piece: Piece, hints: Hints) -> Source:
    with logs.open_parquet(piece) as file:
        names = file.schema_arrow.names
        if not file.metadata.num_rows:
            raise UserError(f"{piece.name}: holds no row; give the interaction log itself")
        batch = next(file.iter_batches(batch_size=_ROWS))
        values = {
            name: logs.column_text(batch.column(k)).to_pylist()
            for k, name in enumerate(names)
            if logs.is_scalar(file.schema_arrow.field(k).type)
        }
        parts = Counter[str]()
        if "split" in values:
            for one in file.iter_batches(columns=["split"]):
                found = pc.value_counts(logs.column_text(one.column("split"))).to_pylist()
                parts.update({str(count["values"]): count["counts"] for count in found})
    official = {logs.PARTS.get(part) for part in parts} == set(logs.PARTS.values())
    if hints.format == "diffurec" and not official:
        raise UserError(f"{piece.name}: the format diffurec needs a column split with train, val and test; correct it")
    kind: Format = "diffurec" if official and hints.format != "parquet" else "parquet"
    source = _with_columns(piece, Source(piece.path, kind, rows_peeked=len(batch)), values, hints)
    _refuse_twins(piece, names, source.columns)
    if kind == "parquet":
        return source
    with logs.open_parquet(piece) as file:
        users = pc.count_distinct(file.read(columns=[source.columns.user]).column(0)).as_py()
    return replace(source, one_each=sum(n for part, n in parts.items() if logs.PARTS[part] == "valid") <= users)


# --- columns and time -------------------------------------------------------------------------------------------------


def _with_columns(
    piece: Piece, source: Source, values: Mapping[str, guesses.Values], hints: Hints, by_content: bool = False
) -> Source:
    """Fill in columns, unit of time and the first time: what was said first, then names, or contents without names."""
    said = {role: name for role in _ROLES if (name := getattr(hints, role)) is not None}
    _refuse_shared(piece, said)
    for role, name in said.items():
        if name not in values:
            raise UserError(
                f"{piece.name}: no column {name!r} for the {role}; it has {', '.join(values)}; correct --{role}"
            )
    free = [name for name in values if name not in said.values()]
    wanted = [role for role in _ROLES if role not in said]
    if by_content:
        places = guesses.roles_by_content([values[name] for name in free], wanted)
        guessed = {role: [free[place]] for role, place in places.items()}
    else:
        guessed = {role: guesses.named(role, free) for role in wanted}
    chosen = said | {role: found[0] for role, found in guessed.items() if found and role in ("user", "item")}
    for role in ("user", "item"):
        if role not in chosen:
            raise UserError(
                f"{piece.name}: no column told as the {role} among {', '.join(values)}; name it with --{role}"
            )
    rating, unread_rating = _rating(piece, values, said.get("rating"), guessed.get("rating", []))
    time, unit = _clock(piece, values, guessed.get("time", []), hints)
    clocks = guessed.get("time", [])
    columns = Columns(user=chosen["user"], item=chosen["item"], time=time, rating=rating)
    return replace(
        source,
        columns=columns,
        time_unit=unit,
        names=tuple(values),
        first_time=None if time is None or unit is None else _first_time(values[time], unit),
        unread_time=clocks[0] if time is None and clocks else None,
        unread_rating=unread_rating,
    )


def _rating(
    piece: Piece, values: Mapping[str, guesses.Values], said: str | None, guessed: Sequence[str]
) -> tuple[str | None, tuple[str, str] | None]:
    """The column of ratings; without one, a column named like one and what in it is no number."""
    given = {name: guesses.given_of(values[name]) for name in ([said] if said is not None else guessed)}
    odd = {
        name: next(value for value in some if not guesses.share_numeric([value]))
        for name, some in given.items()
        if some and guesses.share_numeric(some) < _ALIKE
    }
    if said in odd:
        raise UserError(
            f"{piece.name}: column {said!r} holds {odd[said]!r}, which is no number; write ratings with a decimal point"
            " and without a unit, or leave --rating out"
        )
    rating = said or next((name for name in guessed if given[name] and name not in odd), None)
    return rating, next(iter(odd.items())) if rating is None and odd else None


def _refuse_shared(piece: Piece, said: Mapping[str, str]) -> None:
    for column, times in Counter(said.values()).items():
        if times > 1:
            roles = " and ".join(f"--{role}" for role, name in said.items() if name == column)
            raise UserError(f"{piece.name}: column {column!r} is said for {roles}; name a column for each")


def _refuse_twins(piece: Piece, names: Sequence[str], columns: Columns) -> None:
    """A role's column must be the only one of its name."""
    for role, column in columns.model_dump().items():
        if column is not None and names.count(column) > 1:
            raise UserError(
                f"{piece.name}: more than one column {column!r} for the {role}; rename all but one of them, or name"
                f" another with --{role}"
            )


def _clock(
    piece: Piece, values: Mapping[str, guesses.Values], guessed: Sequence[str], hints: Hints
) -> tuple[str | None, TimeUnit | None]:
    """The column of times and its unit; a guessed column whose unit cannot be told is passed over."""
    if hints.time is not None:
        unit = _unit(values[hints.time], hints)
        example = next((value for value in values[hints.time] if value), "")
        if unit is None and hints.time_unit is not None:
            raise UserError(
                f"{piece.name}: column {hints.time!r} holds {example!r}, which is no time in {hints.time_unit}; correct"
                " --time-unit"
            )
        if unit is None:
            raise UserError(
                f"{piece.name}: column {hints.time!r} holds {example!r}, a time of no known unit; say --time-unit"
            )
        return hints.time, unit
    for name in guessed:
        unit = _unit(values[name], hints)
        if unit is not None:
            return name, unit
    if guessed and hints.time_unit is not None:
        example = next((value for value in values[guessed[0]] if value), "")
        raise UserError(
            f"{piece.name}: column {guessed[0]!r} holds {example!r}, which is no time in {hints.time_unit}; correct"
            " --time-unit, or name another column with --time"
        )
    if hints.time_unit not in (None, "order"):
        raise UserError(f"{piece.name}: no column told as the time among {', '.join(values)}; name it with --time")
    return None, hints.time_unit


def _unit(values: guesses.Values, hints: Hints) -> TimeUnit | None:
    """The said unit where it reads any of these times, else the one that they show; None where there is none."""
    if hints.time_unit is not None:
        return hints.time_unit if _first_time(values, hints.time_unit) is not None else None
    return "iso" if guesses.compact_dates(values) else guesses.time_unit(values)


def _first_time(values: guesses.Values, unit: TimeUnit) -> str | None:
    return next((found for value in values if value and (found := guesses.date(value, unit)) is not None), None)
