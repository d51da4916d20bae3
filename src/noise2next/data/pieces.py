"""A log as streams of bytes: the files of a folder, the members of a zip, gunzipped on the way, never unpickled."""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from noise2next.errors import UserError

BLOCK = 8 << 20  # bytes read at once
HEAD = 1 << 20  # bytes looked at when a log is recognised
_LONGEST_LINE = 64 << 20
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")  # after \x80: how a pickle begins
_UNFINISHED = {".part", ".tmp", ".partial", ".filepart", ".crdownload"}  # as programs call what they still write
_PICKLED = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt"}


class PickleRefused(UserError):
    """What only unpickling could open, and unpickling runs whatever code the file brings."""


@dataclass(frozen=True)
class Piece:
    """One stream of bytes of a log: a file, or a member of a zip."""

    path: Path
    name: str  # how quarantine and errors call it: the path below data/, and the member after '!'
    member: str | None = None
    size: int = 0  # as stored (a member: unpacked)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, without gzip. Raises UserError for a damaged container, whenever it shows, and for a pickle."""
        with self.told(), contextlib.ExitStack() as stack:
            refuse_pickle(self.member or self.path.name, self.name)
            stream: IO[bytes]
            if self.member is None:
                stream = stack.enter_context(self.path.open("rb"))
            else:
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.member))
            opened: io.BufferedReader | gzip.GzipFile = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
            if opened.peek(2)[:2] == _GZIP:
                opened = stack.enter_context(gzip.GzipFile(fileobj=opened))
            start = opened.peek(2)
            if start[:1] == b"\x80" and start[1:2] in _PROTOCOLS:
                raise _pickled(self.name)
            yield cast(BinaryIO, opened)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn a fault of the container into one sentence."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"{self.name}: no such file; check the path") from error
        except EOFError as error:
            raise UserError(
                f"{self.name}: the compressed file ends too early; it was cut off on its way, get it again"
            ) from error
        except (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise UserError(f"{self.name}: the compressed file is damaged ({error}); get it again") from error
        except (NotImplementedError, RuntimeError) as error:  # zipfile's words for unknown methods and passwords
            if self.member is None:
                raise
            raise UserError(f"{self.name}: this member cannot be unpacked ({error}); unpack it yourself") from error
        except PermissionError as error:
            raise UserError(f"{self.name}: may not be read; change its permissions") from error

    def check_whole(self) -> None:
        """Read a compressed piece to its end. Raises UserError for one that is cut off or damaged."""
        with self.open() as stream:
            if self.member is not None or isinstance(stream, gzip.GzipFile):
                while stream.read(BLOCK):
                    pass

    def head(self, size: int = HEAD) -> bytes:
        """The first bytes. Raises UserError for an empty piece."""
        with self.open() as stream:
            start = stream.read(size)
        if not start:
            raise UserError(f"{self.name}: the file is empty; give the interaction log itself")
        return start

    def blocks(self, encoding: str) -> Iterator[bytes]:
        """The text as UTF-8 in blocks that end with a line (the last may not), without a byte order mark.

        Undecodable bytes of a UTF-8 log stay as they are, for the reader to tell by line.
        """
        with self.open() as stream:
            rest, first = b"", True
            for chunk in _recoded(stream, encoding, self.name):
                if first:
                    self._check_start(chunk, encoding)
                    chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    yield rest + chunk[:cut]
                    rest = chunk[cut:]
                elif len(rest := rest + chunk) > _LONGEST_LINE:
                    raise UserError(f"{self.name}: a line of more than {_LONGEST_LINE >> 20} MB; this is no text log")
            if rest:
                yield rest

    def _check_start(self, start: bytes, encoding: str) -> None:
        if encoding.lower().replace("-", "") == "utf8" and utf16(start):
            raise UserError(
                f"{self.name}: line 1 is UTF-16, not UTF-8; say `encoding: utf-16` in the dataset's entry, or save it"
                " as UTF-8"
            )


def pieces(path: Path, name: str, member: str | None) -> list[Piece]:
    """The streams of a log in reading order: a file is one, a folder its files by name, a zip its chosen member.

    Names that begin with '.' or '_' are left out of folders. Raises UserError where there is none.
    """
    if path.is_dir():
        found = [Piece(one, f"{name}/{one.relative_to(path).as_posix()}") for one in folder_files(path)]
        if not found:
            raise UserError(f"{name}: the folder holds no file; put the log there")
        return [piece for one in found for piece in pieces(one.path, one.name, member)]
    if not path.is_file():
        raise UserError(f"{name}: no such file; put the log there, or fetch its version with `dvc pull`")
    if not is_zip(path):
        return [Piece(path, name, size=path.stat().st_size)]
    members = zip_members(path, name)
    if member is None and len(members) == 1:
        return members
    chosen = [piece for piece in members if piece.member == member]
    if not chosen:
        fact = "holds several files" if member is None else f"holds no {member!r}"
        raise UserError(f"{name}: {fact}; name as member one of {', '.join(piece.member or '' for piece in members)}")
    return chosen


def folder_files(path: Path) -> list[Path]:
    """Files below a folder in name order, without hidden ones and without markers such as _SUCCESS."""
    return sorted(
        one
        for one in path.rglob("*")
        if one.is_file() and not any(part.startswith((".", "_")) for part in one.relative_to(path).parts)
    )


def delivered(folder: Path) -> list[Path]:
    """The files right in a folder that others write into, less what is hidden or by its name still being written."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(one for one in found if one.is_file() and one.name[0] != "." and one.suffix not in _UNFINISHED)


def zip_members(path: Path, name: str) -> list[Piece]:
    """The files inside a zip in its own order."""
    refuse_pickle(path.name, name)
    with Piece(path, name).told(), zipfile.ZipFile(path) as archive:
        return [
            Piece(path, f"{name}!{info.filename}", info.filename, info.file_size)
            for info in archive.infolist()
            if not info.is_dir() and not info.filename.startswith("__MACOSX/")
        ]


def is_zip(path: Path) -> bool:
    """By its first bytes; nothing is unpacked."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _ZIP


def refuse_pickle(file_name: str, name: str) -> None:
    """Raise PickleRefused for a file that is a pickle by its name."""
    if Path(file_name).suffix.lower() in _PICKLED:
        raise _pickled(name)


def _pickled(name: str) -> PickleRefused:
    return PickleRefused(f"{name}: a pickle, which may run any code when opened; export the log as CSV or Parquet")


def utf16(start: bytes) -> bool:
    """Whether text begins like UTF-16: a byte order mark, or every other byte of its first line zero."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    line = start[:200]
    return len(line) >= 4 and max(line[::2].count(0), line[1::2].count(0)) > 0.4 * (len(line) // 2)


def _recoded(stream: BinaryIO, encoding: str, name: str) -> Iterator[bytes]:
    """Blocks of `stream` as UTF-8."""
    if encoding.lower().replace("-", "") in ("utf8", "utf8sig"):
        while chunk := stream.read(BLOCK):
            yield chunk
        return
    try:
        text = io.TextIOWrapper(stream, encoding=encoding, newline="")
        while part := text.read(BLOCK):
            yield part.encode("utf-8")
        text.detach()
    except LookupError as error:
        raise UserError(f"{name}: there is no encoding {encoding!r}; say utf-8, latin-1 or utf-16") from error
    except UnicodeError as error:
        raise UserError(
            f"{name}: not {encoding} text near byte {getattr(error, 'start', 0)} of a block; correct `encoding` in the"
            " dataset's entry"
        ) from error
