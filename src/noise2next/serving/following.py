"""The champion that is served, and a thread that asks the registry for a newer one.

A new version is fetched, hashed, loaded and asked its golden questions beside the one that serves; then one reference
changes. A version that fails any of it stays out, the old one goes on, and `kept_out` says why. It is tried again, each
time after twice the wait, since what was wrong may have been the way to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from noise2next.errors import UserError
from noise2next.registry.packaging import Asked, Package, check_golden
from noise2next.serving.lists import KnownLists
from noise2next.serving.metrics import Metrics

log = logging.getLogger(__name__)

_LOGGED = "see the server's log"
LONGEST_WAIT = timedelta(minutes=10)  # until a version that failed is tried again
MOST_DOUBLINGS = 16  # of the wait, which is the longest long before


class Registry(Protocol):
    """What is asked of `ModelRegistry`."""

    name: str

    def at(self, alias: str) -> Any | None:
        """The version that an alias points to (`version`, `tags`), or None."""

    def fetch(self, version: Any) -> Path:
        """Its package on this machine, each file hashed."""


@dataclass(frozen=True, eq=False)
class Champion:
    """A loaded version."""

    package: Package
    lists: KnownLists
    name: str
    version: str
    variant: str
    data_version: str
    digest: str
    since: datetime


@dataclass(frozen=True)
class KeptOut:
    """A version that the alias points to and that is not served."""

    version: str
    error: str
    failures: int
    again: datetime


class Follower:
    """Keeps `champion` what the alias points to. `connect` gives the registry anew for each look.

    `exclude_seen`: whether lists leave out what somebody has already where a request does not say.
    """

    def __init__(self, connect: Callable[[], Registry], seconds: float, metrics: Metrics, exclude_seen: bool) -> None:
        self.exclude_seen = exclude_seen
        self.champion: Champion | None = None
        self.kept_out: KeptOut | None = None
        self.looked: datetime | None = None  # when the registry last answered
        self._trouble: str | None = None  # why it did not, or has no champion
        self._connect = connect
        self._seconds = seconds
        self._metrics = metrics
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def start(self) -> None:
        """Look at once, then every so many seconds."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. What is being loaded is not waited for."""
        self._ended.set()

    @property
    def trouble(self) -> str | None:
        """What keeps the newest champion from being served, for people; None where nothing does."""
        kept_out = self.kept_out
        if self._trouble is None and kept_out is not None:
            return f"version {kept_out.version} stays out: {kept_out.error}"
        return self._trouble

    def look(self) -> None:
        """Ask the registry once, and load what is new. Nothing that goes wrong there is raised."""
        try:
            registry = self._connect()
            version = registry.at("champion")
        except Exception as error:  # noqa: BLE001  (whatever it was: what serves goes on, and the next look asks again)
            self._note(f"the registry does not answer, {_LOGGED}", error)
            self._metrics.registry_reached.set(0)
            return
        self.looked = _now()
        self._metrics.registry_reached.set(1)
        if version is None:
            self._note(f"{registry.name}: there is no champion; `noise2next run` or `noise2next register` makes one")
            return
        self._note(None)
        number = str(version.version)
        if self.champion is not None and number == self.champion.version:
            self.kept_out = None
        elif self.kept_out is None or number != self.kept_out.version or _now() >= self.kept_out.again:
            self._take(registry, version)

    def _take(self, registry: Registry, version: Any) -> None:
        """Serve `version`, or keep it out and say why."""
        number = str(version.version)
        try:
            champion = _load(registry, version, self.exclude_seen)
        except Exception as error:
            before = self.kept_out.failures if self.kept_out and self.kept_out.version == number else 0
            doubled = timedelta(seconds=self._seconds) * 2 ** min(before, MOST_DOUBLINGS)
            wait = min(doubled, LONGEST_WAIT)
            self.kept_out = KeptOut(number, _sentence(error), before + 1, _now() + wait)
            self._metrics.versions_kept_out.inc()
            still = f"version {self.champion.version} goes on" if self.champion else "nothing is served"
            known = isinstance(error, UserError)
            log.error(
                "%s version %s stays out, %s: %s",
                registry.name,
                number,
                still,
                error,
                exc_info=None if known else error,
            )
            return
        self.champion, self.kept_out = champion, None
        champion.lists.begin(lambda: self.champion is champion and not self._ended.is_set())
        self._metrics.serves(champion.version, champion.variant, champion.data_version)
        log.info("%s version %s (%s) is served", champion.name, champion.version, champion.variant)

    def _note(self, trouble: str | None, error: BaseException | None = None) -> None:
        """Log what is new in `trouble` with the error behind it, one that nobody foresaw whole, and remember it."""
        if trouble is not None and trouble != self._trouble:
            known = isinstance(error, UserError)
            log.warning("%s%s", trouble, f": {error}" if known else "", exc_info=None if known else error)
        self._trouble = trouble

    def _follow(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(self._seconds)


def _load(registry: Registry, version: Any, exclude_seen: bool) -> Champion:
    """Hash, load and ask the golden questions. Raises where any of it fails."""
    package = check_golden(registry.fetch(version))
    package.reply([Asked()], 1)  # so that nobody waits while recent popularity is counted
    card = package.artifact.card
    return Champion(
        package=package,
        lists=KnownLists(package, exclude_seen),
        name=registry.name,
        version=str(version.version),
        variant=card.variant.name,
        data_version=card.data_version,
        digest=version.tags["digest"],
        since=_now(),
    )


def _sentence(error: BaseException) -> str:
    """What a stranger may read of an error: no address and no path, those are for the log."""
    return "it is not what was registered, see the server's log" if isinstance(error, UserError) else _LOGGED


def _now() -> datetime:
    return datetime.now(UTC)
