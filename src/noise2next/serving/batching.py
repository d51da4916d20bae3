"""What waits is scored together: a bounded queue, and a few threads that take their fill of it.

Nobody waits for company. A free thread takes what is there, one query or many, and while it is busy the next ones
gather. A large request is scored piece by piece and in turn with the others, so a single query waits for a piece of it
at most. One request is answered by one version throughout: it names its champion when it comes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from noise2next.registry.packaging import SCORES_BYTES, Asked, Package, Reply

MOST_TOGETHER = 64  # queries of one call: more gain little speed and let a single one wait longer
MOST_WAITING = 8_000  # queries; more would be answered too late to be of use


class Busy(Exception):
    """The queue is full."""


@dataclass(eq=False)
class _Request:
    """Queries of one caller, the package that is to answer all of them, and where the replies go."""

    asked: Sequence[Asked]
    package: Package
    k: int
    exclude_seen: bool
    replies: list[Reply | None]
    begun: int = 0  # queries that a thread has taken
    left: int = 0  # queries without a reply
    done: Future[list[Reply]] = field(default_factory=Future)

    def goes_with(self, other: _Request) -> bool:
        """Whether one call can answer both."""
        return (self.k, self.exclude_seen) == (other.k, other.exclude_seen) and self.package is other.package

    def wanted(self) -> bool:
        """Whether its caller still waits; from the first yes on the caller can no longer leave."""
        return not self.done.cancelled() and (self.done.running() or self.done.set_running_or_notify_cancel())


_Piece = tuple[_Request, slice]


class Batcher:
    """Scores queries on `threads` threads. `scored` is told how many queries each call had."""

    def __init__(self, threads: int, scored: Callable[[int], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scoring")
        self._threads = self._free = threads
        self._scored = scored
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._queue: deque[_Request] = deque()
        self.waiting = 0  # queries that no thread has taken yet

    def ask(self, package: Package, asked: Sequence[Asked], k: int, exclude_seen: bool) -> Future[list[Reply]]:
        """The replies to `asked` (at least one), in order, when they are there. Raises Busy where the queue is full."""
        request = _Request(asked, package, k, exclude_seen, [None] * len(asked), left=len(asked))
        with self._lock:
            if self.waiting + len(asked) > MOST_WAITING:
                raise Busy
            self._queue.append(request)
            self.waiting += len(asked)
        self._begin()
        return request.done

    def close(self) -> None:
        """Answer what waits, then end the threads. Nobody may ask from then on."""
        with self._idle:
            self._idle.wait_for(lambda: not self._queue and self._free == self._threads)
        self._pool.shutdown()

    def _begin(self) -> None:
        """Give each free thread its next call."""
        while pieces := self._next():
            call = self._pool.submit(_score, pieces)
            call.add_done_callback(partial(self._end, pieces))

    def _next(self) -> list[_Piece]:
        """The pieces of the next call; none where nothing waits or no thread is free."""
        with self._lock:
            while self._free and self._queue and not self._queue[0].wanted():
                self.waiting -= len(self._queue.popleft().asked)
            if not (self._queue and self._free):
                return []
            self._free -= 1
            first = self._queue[0]
            room = max(1, min(MOST_TOGETHER, SCORES_BYTES // (4 * max(1, len(first.package.artifact.items)))))
            pieces: list[_Piece] = []
            for request in [one for one in self._queue if one.goes_with(first)]:
                if not request.wanted():
                    continue  # it leaves when it comes to the head
                piece = slice(request.begun, min(len(request.asked), request.begun + room))
                request.begun = piece.stop
                room -= piece.stop - piece.start
                pieces.append((request, piece))
                self._queue.remove(request)
                if request.begun < len(request.asked):
                    self._queue.append(request)  # behind those that came meanwhile
                if not room:
                    break
            self.waiting -= sum(piece.stop - piece.start for _, piece in pieces)
            return pieces

    def _end(self, pieces: Sequence[_Piece], call: Future[list[Reply]]) -> None:
        """Hand out what a call found, or what went wrong in it, and give its thread the next."""
        error = call.exception()
        with self._lock:
            if error is None:
                self._hand_out(pieces, call.result())
            else:
                self._give_up(pieces, error)
            self._free += 1
            self._idle.notify_all()
        self._begin()

    def _hand_out(self, pieces: Sequence[_Piece], found: Sequence[Reply]) -> None:
        self._scored(len(found))
        at = 0
        for request, piece in pieces:
            count = piece.stop - piece.start
            request.replies[piece] = found[at : at + count]
            request.left -= count
            at += count
            if not request.left and not request.done.done():
                request.done.set_result([reply for reply in request.replies if reply is not None])

    def _give_up(self, pieces: Sequence[_Piece], error: BaseException) -> None:
        """Tell the callers, and score nothing more of theirs."""
        for request, _ in pieces:
            if request in self._queue:
                self._queue.remove(request)
                self.waiting -= len(request.asked) - request.begun
            if not request.done.done():
                request.done.set_exception(error)


def _score(pieces: Sequence[_Piece]) -> list[Reply]:
    first = pieces[0][0]
    asked = [one for request, piece in pieces for one in request.asked[piece]]
    return first.package.reply(asked, first.k, first.exclude_seen)
