"""What came of lists that were recommended: the users' later events, with popularity on the same users as a control.

A season in which everybody takes other things, or fewer, lowers the recall of any list. Popularity's lists, of what was
known on the same day, go through the same season; so what is judged is the champion's lead over them.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from noise2next.config import Frozen
from noise2next.data.interactions import Interactions
from noise2next.data.recent import Aftermath
from noise2next.evaluation.metrics import Truth, accuracy, hits
from noise2next.evaluation.significance import Interval, intervals, resampled_means

BLOCK_BYTES = 64 << 20


class OutcomeReport(Frozen):
    """One table of recommendations against what its users took later."""

    model_version: str
    data_version: str
    variant: str
    made: datetime
    serving: bool  # by the model that is champion now
    k: int
    users: int  # of the table, with later events
    recall: Interval
    hit_rate: Interval
    popularity: Interval  # recall of popularity's lists on the same users
    offline_recall: float | None  # on the test window, before it was promoted
    offline_popularity: float | None
    asked: float  # of popularity's recall: the champion's is to be this many times as large
    lead: Interval  # recall less `asked` times popularity's, paired by user, the upper end one-sided at drift.level


def judge(lists: pa.Table, came: Aftermath, k: int, mask_seen: bool) -> dict[str, NDArray[np.float32]] | None:
    """recall, hit_rate and popularity (recall of popularity's lists) [M] of the M users of `lists` with later events.

    lists: user, rank from 1, item. None where no user has any. An item that nobody had taken before counts as missed.
    """
    users = pc.unique(came.later.column("user").combine_chunks())
    users = users.filter(pc.is_in(users, pc.unique(lists.column("user").combine_chunks())))
    if not len(users):
        return None
    ranked = came.popular.column("item").combine_chunks()
    others = pc.unique(lists.column("item").combine_chunks())
    items = pa.concat_arrays([ranked, others.filter(pc.invert(pc.is_in(others, ranked)))])
    truth = _truth(came.later, users, items)
    seen = _truth(came.before, users, items) if mask_seen else None
    whole = np.arange(len(users))
    found = accuracy(hits(_top(lists, users, items, k), whole, truth), truth.sizes, [k])
    popular = accuracy(hits(_popular(len(ranked), len(users), seen, k), whole, truth), truth.sizes, [k])
    return {
        "recall": found[f"recall@{k}"],
        "hit_rate": found[f"hit_rate@{k}"],
        "popularity": popular[f"recall@{k}"],
    }


def interval_ends(
    found: dict[str, NDArray[np.float32]], asked: float, samples: int, confidence: float, level: float, seed: int
) -> tuple[dict[str, Interval], float]:
    """Of recall, hit_rate, popularity and lead an interval each, and the upper end of recall at `level`, one-sided.

    The lead's upper end is one-sided at `level` too, for it alone is asked.
    """
    lead = found["recall"].astype(np.float64) - asked * found["popularity"]
    values = np.stack([*found.values(), lead], axis=1)
    resampled = resampled_means(values, samples, seed)
    named = dict(zip([*found, "lead"], intervals(values, resampled, confidence), strict=True))
    ends = dict(zip(named, np.quantile(resampled, level, axis=0).tolist(), strict=True))
    named["lead"] = Interval(mean=named["lead"].mean, low=named["lead"].low, high=ends["lead"])
    return named, ends["recall"]


def _truth(taken: pa.Table, users: pa.Array, items: pa.Array) -> Truth:
    """Of the rows of `users`; an item that is not among `items` is unknown."""
    who = pc.index_in(taken.column("user").combine_chunks(), users)
    what = pc.fill_null(pc.index_in(taken.column("item").combine_chunks(), items), -1)
    kept = pc.is_valid(who).to_numpy(zero_copy_only=False)
    who, what = who.drop_null().to_numpy(), what.to_numpy()[kept]
    order = np.argsort(who, kind="stable")
    return Truth.of(Interactions.of(who[order], what[order], None, len(users)), len(items))


def _top(lists: pa.Table, users: pa.Array, items: pa.Array, k: int) -> NDArray[np.int32]:
    """[M, k], -1 where a list is shorter."""
    rows = lists.filter(pc.is_in(lists.column("user"), users))
    top = np.full((len(users), k), -1, dtype=np.int32)
    place = pc.index_in(rows.column("user").combine_chunks(), users).to_numpy()
    top[place, rows.column("rank").to_numpy() - 1] = pc.index_in(rows.column("item").combine_chunks(), items).to_numpy()
    return top


def _popular(n_known: int, n_users: int, seen: Truth | None, k: int) -> NDArray[np.int32]:
    """[M, k]: for each user the first k of the items 0 to n_known - 1, most popular first, that are not seen."""
    most_seen = 0 if seen is None else int(seen.sizes.max(initial=0))
    width = min(n_known, k + most_seen)
    top = np.full((n_users, k), -1, dtype=np.int32)
    block = max(1, BLOCK_BYTES // (32 * max(1, width)))
    for start in range(0, n_users, block):
        users = np.arange(start, min(start + block, n_users))
        candidates = np.broadcast_to(np.arange(width, dtype=np.int32), (len(users), width))
        free = np.ones(candidates.shape, dtype=np.bool_) if seen is None else ~hits(candidates, users, seen)
        place = free.cumsum(axis=1)
        rows, columns = np.nonzero(free & (place <= k))
        top[start + rows, place[rows, columns] - 1] = columns
    return top
