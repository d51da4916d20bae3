"""MovieLens logs from their publisher, for a person who accepts the licence: nothing of them is shipped here."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from noise2next.errors import UserError
from noise2next.workspace import sha256, write_atomically

log = logging.getLogger(__name__)

PUBLISHER = "https://files.grouplens.org/datasets/movielens"
ADDRESS = "NOISE2NEXT_MOVIELENS_URL"  # the environment may name a mirror
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

LICENCE = """\
MovieLens is published by GroupLens Research, University of Minnesota, for research. You may not redistribute it, nor
use it commercially, without their permission; publications cite F. M. Harper and J. A. Konstan, "The MovieLens
Datasets: History and Context", ACM TiiS 5(4), 2015, https://doi.org/10.1145/2827872. The full terms are in the README
inside the archive; downloading it accepts them."""


@dataclass(frozen=True)
class Published:
    """What is known of an archive before it arrives: the file with its ratings, and that file's digest or first line.

    digest: the md5 of u.data was taken from copies in two unrelated public repositories and agrees with the counts in
    the publisher's README; that of ratings.dat is its git blob id, again from two unrelated repositories. The archive
    ml-latest-small is renewed by its publisher, so only the md5 that is served beside it can tell.
    """

    ratings: str
    digest: Callable[[Path, str], str] | None = None
    value: str = ""
    first_line: bytes = b""


def _md5(file: IO[bytes]) -> str:
    hashed = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(CHUNK):
        hashed.update(chunk)
    return hashed.hexdigest()


def _md5_of(archive: Path, member: str) -> str:
    with zipfile.ZipFile(archive) as zipped, zipped.open(member) as file:
        return _md5(file)


def _git_blob_of(archive: Path, member: str) -> str:
    """The sha1 that `git hash-object` gives the member."""
    with zipfile.ZipFile(archive) as zipped, zipped.open(member) as file:
        hashed = hashlib.sha1(b"blob %d\0" % zipped.getinfo(member).file_size, usedforsecurity=False)
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


PUBLISHED = {
    "ml-100k": Published("ml-100k/u.data", _md5_of, "6e47046882bad158b0efbb84cd5cb987"),
    "ml-1m": Published("ml-1m/ratings.dat", _git_blob_of, "77a7c4b150f588c23bb9e1f068aa996c0b413695"),
    "ml-latest-small": Published("ml-latest-small/ratings.csv", first_line=b"userId,movieId,rating,timestamp"),
}


def fetch(name: str, cache: Path, base_url: str | None = None, announce: Callable[[str], None] = log.info) -> Path:
    """The publisher's archive `name`.zip in the folder `cache`, downloaded only where a sound copy is not there yet.

    base_url: another server, before the environment's NOISE2NEXT_MOVIELENS_URL; announce: is given LICENCE before any
    byte is asked for. A broken download is resumed by the next call. Raises UserError for an unknown name, a server
    that does not answer or has no such file, and content that is not the published one, which is then removed.
    """
    if name not in PUBLISHED:
        raise UserError(f"datasets fetch: {name!r} is not known; there are {', '.join(PUBLISHED)}")
    announce(LICENCE)
    url = f"{(base_url or os.environ.get(ADDRESS) or PUBLISHER).rstrip('/')}/{name}.zip"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: only http:// and https:// addresses are fetched; mend {ADDRESS}")
    target, seal = cache / f"{name}.zip", cache / f"{name}.zip.sha256"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{name}.lock"):
        if target.is_file() and seal.is_file() and seal.read_text(encoding="ascii").strip() == sha256(target):
            log.info("%s: kept from an earlier download", target)
            return target
        part = cache / f"{name}.zip.part"
        resumed = part.is_file()
        promised = _md5_beside(url, needed=PUBLISHED[name].digest is None)
        _download(url, part)
        fault = _fault(part, name, promised)
        if fault and resumed:  # the piece may be of an older edition
            part.unlink()
            _download(url, part)
            fault = _fault(part, name, promised)
        if fault:
            part.unlink()
            raise UserError(
                f"{url}: {fault}; nothing was kept: try again, or get the archive by hand and add it by path"
            )
        write_atomically(seal, f"{sha256(part)}\n".encode("ascii"))
        os.replace(part, target)
    return target


def _download(url: str, part: Path) -> None:
    """Bring `part` to the whole of `url`, going on from the bytes that it has where the server can."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _told(url):
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            return  # `part` was whole already; its digest will tell
        with response, part.open("ab" if _goes_on(response, have) else "wb") as file:
            length = response.headers.get("Content-Length")
            due = file.tell() + int(length) if length else None
            while chunk := response.read(CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            got = file.tell()
    if due is not None and got < due:
        raise UserError(f"{url}: the connection broke after {got:,} of {due:,} bytes; run it again to go on from there")


def _goes_on(response: Any, have: int) -> bool:
    ranged = str(response.headers.get("Content-Range", ""))
    return bool(response.status == http.client.PARTIAL_CONTENT and ranged.startswith(f"bytes {have}-"))


def _md5_beside(url: str, needed: bool) -> str | None:
    """The digest that the publisher serves beside the archive, or None where there is none and none is `needed`."""
    with _told(f"{url}.md5"):
        try:
            with urllib.request.urlopen(f"{url}.md5", timeout=TIMEOUT) as response:
                found = re.search(rb"\b[0-9a-f]{32}\b", response.read(1024))
        except urllib.error.HTTPError as error:
            if needed or error.code != http.client.NOT_FOUND:
                raise
            return None
    if found is None:
        raise UserError(f"{url}.md5: holds no md5, so the archive could not be checked; nothing was downloaded")
    return found[0].decode("ascii")


def _fault(part: Path, name: str, promised: str | None) -> str | None:
    """What is wrong with the archive, as a clause."""
    known = PUBLISHED[name]
    if promised is not None:
        with part.open("rb") as file:
            got = _md5(file)
        if got != promised:
            return f"the archive's md5 is {got} and the publisher names {promised}"
    try:
        with zipfile.ZipFile(part) as zipped:
            broken = zipped.testzip()
            if broken:
                return f"the file {broken} inside is damaged"
            if known.ratings not in zipped.namelist():
                return f"the archive holds no {known.ratings}"
            with zipped.open(known.ratings) as file:
                first = file.readline().strip()
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return "what came is not a sound zip archive"
    if known.first_line and first != known.first_line:
        return f"{known.ratings} does not begin with {known.first_line.decode()}"
    if known.digest and (got := known.digest(part, known.ratings)) != known.value:
        return f"{known.ratings} is not the published one (its digest is {got}, not {known.value})"
    return None


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Failures of the network as sentences."""
    by_hand = "get the archive by hand and add it by path"
    try:
        yield
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; try later, or {by_hand}") from error
    except TimeoutError as error:
        raise UserError(f"{url}: no answer for {TIMEOUT:g} s; run it again to go on, or {by_hand}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: not reached ({reason}); look at the connection, or {by_hand}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One download of a name at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
