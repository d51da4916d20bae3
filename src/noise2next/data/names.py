"""What people call the items, where the data says so: read when a person is to be shown a list."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from noise2next.config import Dataset, ItemNames
from noise2next.data import delimited, logs
from noise2next.data.lines import is_utf8
from noise2next.data.pieces import is_zip, pieces, zip_members

log = logging.getLogger(__name__)

# Publishers' tables by file name, beside the log of that name: separator, header, columns of the item and its name.
_PUBLISHED = {
    ("u.data", "u.item"): ("|", False, "1", "2"),  # MovieLens 100k
    ("ratings.dat", "movies.dat"): ("::", False, "1", "2"),  # MovieLens 1M and 10M
    ("ratings.csv", "movies.csv"): (",", True, "movieId", "title"),  # MovieLens since 2015
}


def item_names(dataset: Dataset, data: Path) -> dict[str, str]:
    """{raw id: name}; empty where the entry names no table, or `data` holds none just now.

    An empty name counts for none. Raises UserError for a table that cannot be read.
    """
    entry = dataset.names
    if entry is None:
        return {}
    path = entry.path or dataset.path
    if not (data / path).exists():
        log.info("%s: not here, so items are shown by their ids", data / path)
        return {}
    roles = {"item": entry.item, "name": entry.name}
    names: dict[str, str] = {}
    for piece in pieces(data / path, path, entry.member):
        for _, found in logs.records(piece, entry.encoding, entry.separator, entry.header, "names", roles):
            if found is not None:
                kept = pa.array(found.right)
                columns = (pc.ascii_trim_whitespace(one.filter(kept)).to_pylist() for one in found.columns)
                names = {item: name for item, name in zip(*columns, strict=True) if name} | names
    return names


def published(path: Path, member: str | None) -> ItemNames | None:
    """The table that a publisher ships in the zip `path` beside its log `member`; None where there is none we know."""
    if member is None or not is_zip(path):
        return None
    folder, _, base = member.rpartition("/")
    beside = {one.member: one for one in zip_members(path, str(path))}
    for (log_name, table), (separator, header, item, name) in _PUBLISHED.items():
        piece = beside.get(f"{folder}/{table}".lstrip("/"))
        if base != log_name or piece is None:
            continue
        start = piece.head()
        encoding = "utf-8" if is_utf8(start[: start.rfind(b"\n") + 1]) else "latin-1"
        first = start.partition(b"\n")[0].decode(encoding)
        columns = delimited.header_names(first, separator) if header else list("12")[: first.count(separator) + 1]
        if {item, name} <= set(columns):
            return ItemNames(
                member=piece.member, separator=separator, header=header, encoding=encoding, item=item, name=name
            )
    return None
