"""The newest of an ingested log beside what came before it: equal stretches of time, and what users took afterwards.

Aggregates are asked of the engine, so memory holds the stretches that are compared and never the whole log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.backends import BaseBackend
from numpy.typing import NDArray

from noise2next.config import OFFICIAL, Dataset
from noise2next.data.preparation import positive_rows

DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Recent:
    """Stretches of `length` microseconds, 0 the oldest, the last but one up to what is known, the last the newest.

    starts [S]: a stretch's rows are later than its start, and at most `length` later. rows [S]: how many. The others
    [P] say of each user and item of each stretch how many rows there are, as numbers from 0: users, items, stretches,
    counts; and whether the log had the user, the item, before the stretch began: new_user, new_item.
    """

    length: int
    starts: NDArray[np.int64]
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    stretches: NDArray[np.int64]
    counts: NDArray[np.int64]
    new_user: NDArray[np.bool_]
    new_item: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.bincount(self.stretches, self.counts, len(self.starts)).astype(np.int64)

    def n_users(self, stretch: int) -> int:
        """Who has a row in it."""
        return len(np.unique(self.users[self.stretches == stretch]))


@dataclass(frozen=True)
class Span:
    """The first and the last instant of a log, and how many of its rows are later than what is known."""

    first: int
    last: int
    later: int


@dataclass(frozen=True)
class Aftermath:
    """What users took after an instant, and what had been taken before it; raw ids.

    later: user, item, each pair once, of some users. before: the same of these. popular: item and how many have it, the
    most popular first.
    """

    later: pa.Table
    before: pa.Table
    popular: pa.Table


@dataclass(frozen=True)
class IngestedLog:
    """The ingested log at `source`, asked of an engine; only its rows that count as liking."""

    backend: BaseBackend
    source: Path
    dataset: Dataset

    def span(self, until: int) -> Span | None:
        """None where there is no row."""
        log = self._rows()
        found = log.aggregate(first=log.time.min(), last=log.time.max(), later=(log.time > until).cast("int64").sum())
        (row,) = found.to_pyarrow().to_pylist()
        return None if row["first"] is None else Span(row["first"], row["last"], row["later"])

    def recent(self, until: int, whole: Span, days: float, most: int) -> Recent:
        """The newest stretch after `until`, and up to `most` stretches of the same length before and up to it.

        The length is `days`, or less where less has come since, or was there before.
        """
        length = min(int(days * DAY), whole.last - until, until - whole.first + 1)
        before = min(most, (until - whole.first + 1) // length)
        log = self._rows()
        newest = whole.last - length
        back = (until - log.time) // length  # 0 for the stretch that ends with what is known
        stretch = ibis.cases((log.time > newest, before), (log.time <= until, before - 1 - back), else_=-1)
        users = log.group_by("user").aggregate(user_since=log.time.min())
        items = log.group_by("item").aggregate(item_since=log.time.min())
        cut = log.mutate(stretch=stretch.cast("int64"))
        cut = cut.filter(cut.stretch >= 0)
        pairs = cut.group_by(["stretch", "user", "item"]).aggregate(n=cut.count())
        found = pairs.join(users, "user").join(items, "item").to_pyarrow()
        starts = np.append(until - length * np.arange(before, 0, -1), newest)
        stretches = found.column("stretch").to_numpy()
        began = starts[stretches]
        return Recent(
            length,
            starts,
            _numbered(found.column("user")),
            _numbered(found.column("item")),
            stretches,
            found.column("n").to_numpy(),
            found.column("user_since").to_numpy() > began,
            found.column("item_since").to_numpy() > began,
        )

    def aftermath(self, until: int, most: int) -> Aftermath:
        """What came after `until`, of at most `most` of the users who were there before, by a hash of their ids.

        A user's return to an item counts only where the dataset keeps repeats, as in preparation.
        """
        log = self._rows()
        later = log.filter(log.time > until).select("user", "item").distinct()
        before = log.filter(log.time <= until).select("user", "item").distinct()
        if self.dataset.repeats != "keep":
            later = later.anti_join(before, ["user", "item"])
        users = later.select("user").distinct().semi_join(before, "user")
        users = users.order_by([users.user.hexdigest("md5"), "user"]).limit(most)
        later = later.semi_join(users, "user")
        popular = before.group_by("item").aggregate(users=before.count())
        return Aftermath(
            later.order_by(["user", "item"]).to_pyarrow(),
            before.semi_join(later, "user").order_by(["user", "item"]).to_pyarrow(),
            popular.order_by([popular.users.desc(), "item"]).to_pyarrow(),
        )

    def _rows(self) -> ir.Table:
        log = self.backend.read_parquet(self.source, table_name=ibis.util.gen_name("ingested"))
        positive = self.dataset.positive if self.dataset.split.kind not in OFFICIAL else None
        return log if positive is None else positive_rows(log, positive)


def _numbered(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number from 0 for each text, in the order of the texts, so that no engine's order matters."""
    coded = ids.combine_chunks().dictionary_encode()
    place = np.argsort(pc.array_sort_indices(coded.dictionary).to_numpy())
    numbers: NDArray[np.int64] = place[coded.indices.to_numpy()].astype(np.int64)
    return numbers
