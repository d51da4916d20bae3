"""The embedded default log: a small shop in which tastes wander and items come and go.

Every number is drawn from the raw words of PCG64 and used only in exact integer steps or in single IEEE operations
(+, -, *, /), never through a library's exp, log, matrix product or random distribution, all of which differ between
machines and versions. So equal seeds give equal bytes everywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noise2next.workspace import write_atomically

USERS, ITEMS, ROWS = 1_000, 600, 60_000
WEEKS = 104
TASTES, STYLES = 10, 3  # an item has one of each
START, WEEK = 1_672_531_200, 7 * 86_400  # seconds; 2023-01-01 UTC

Whole = NDArray[np.int64]


class Dice:
    """Numbers from a seed by way of PCG64's raw 64-bit words, whose sequence numpy promises to keep."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def shares(self, *shape: int) -> NDArray[np.float64]:
        """Uniform in [0, 1), multiples of 2**-53."""
        words = self._bits.random_raw(int(np.prod(shape)))
        return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64).reshape(shape)

    def below(self, bound: int | Whole, *shape: int) -> Whole:
        """Uniform whole numbers in [0, bound)."""
        drawn: Whole = (self.shares(*shape) * bound).astype(np.int64)
        return drawn.clip(max=np.asarray(bound) - 1)

    def order(self, count: int) -> Whole:
        """A permutation of 0 .. count - 1."""
        return np.argsort(self.shares(count), kind="stable")


def write(path: Path, seed: int) -> None:
    """Write the log as CSV: user_id, item_id, timestamp (seconds), oldest first; byte-identical for a seed.

    1,000 users with 15 or more rows each, 600 items, 60,000 rows over two years; no pair of user and item twice.
    """
    users, items, times = events(seed)
    lines = [
        f"u{u + 1:04d},i{i + 1:04d},{t}\n"
        for u, i, t in zip(users.tolist(), items.tolist(), times.tolist(), strict=True)
    ]
    write_atomically(path, ("user_id,item_id,timestamp\n" + "".join(lines)).encode("ascii"))


def events(seed: int) -> tuple[Whole, Whole, Whole]:
    """users [N], items [N], times [N] in seconds, sorted by (time, user, item)."""
    dice = Dice(seed)
    appeal, style = _item_appeal(dice), dice.below(STYLES, ITEMS)
    kind = dice.below(TASTES, ITEMS)
    visits, taste = _visits(dice), _taste(dice)
    fits = np.where(style == dice.below(STYLES, USERS)[:, None], 4, 1)  # [U, I]
    free = np.ones((USERS, ITEMS), dtype=np.int64)
    users, items, weeks = [], [], []
    for week in range(WEEKS):
        for nth in range(int(visits[:, week].max())):
            here = np.flatnonzero(visits[:, week] > nth)
            weights = taste[here, week][:, kind] * fits[here] * appeal[week] * free[here]
            chosen = _draw(dice, weights)
            free[here, chosen] = 0
            users.append(here)
            items.append(chosen)
            weeks.append(np.full(len(here), week))
    user, item = np.concatenate(users), np.concatenate(items)
    time = START + np.concatenate(weeks) * WEEK + dice.below(WEEK, len(user))
    order = np.lexsort((item, user, time))
    return user[order], item[order], time[order]


def _draw(dice: Dice, weights: Whole) -> Whole:
    """One column a row, in proportion to `weights` [n, I]."""
    reach = weights.cumsum(axis=1)
    passed: Whole = (reach <= dice.below(reach[:, -1], len(reach))[:, None]).sum(axis=1)
    return passed


def _item_appeal(dice: Dice) -> Whole:
    """[weeks, I]: Zipf-like by rank; an item appears, rises and fades within months; a few are evergreens."""
    rank = dice.order(ITEMS)
    base = 400_000 / ((rank + 9.0) * np.sqrt(rank + 9.0))
    born = np.sort(dice.shares(ITEMS)) * 2.26 * WEEKS - 1.4 * WEEKS  # ids count up with the day of release
    rise, evergreen = 3 + 8 * dice.shares(ITEMS), dice.shares(ITEMS) * dice.shares(ITEMS)
    age = np.arange(WEEKS)[:, None] - born
    ratio = np.maximum(age, 0) / (rise * 4)
    bump = 4 * ratio / ((1 + ratio) * (1 + ratio))  # 1 at its height
    return np.where(age >= 0, base * (0.3 * evergreen + bump) + 1, 0).astype(np.int64)


def _visits(dice: Dice) -> Whole:
    """[U, weeks] rows a user leaves in a week; totals are long-tailed, and their sum is ROWS."""
    reach = dice.order(USERS) + 150.0
    eager = (1e12 / (reach * reach)).astype(np.int64)
    spare = ROWS - 15 * USERS
    total = 15 + eager * spare // eager.sum()
    total[: ROWS - total.sum()] += 1
    first = np.where(dice.shares(USERS) < 0.7, dice.below(20, USERS), dice.below(70, USERS))
    last = np.where(dice.shares(USERS) < 0.85, WEEKS - 1, first + 20 + dice.below(WEEKS, USERS)).clip(max=WEEKS - 1)
    user = np.repeat(np.arange(USERS), total)
    week = first[user] + dice.below((last - first + 1)[user], ROWS)
    return np.bincount(user * WEEKS + week, minlength=USERS * WEEKS).reshape(USERS, WEEKS)


def _taste(dice: Dice) -> Whole:
    """[U, weeks, tastes]: a little of everything, a lasting side interest, and a main taste that moves on.

    After some 20 to 60 weeks a main taste fades into another within two months, mostly into the same neighbour.
    """
    weeks, everyone = np.arange(WEEKS), np.arange(USERS)
    taste = np.full((USERS, WEEKS, TASTES), 1, dtype=np.int64)
    taste[everyone, :, dice.below(TASTES, USERS)] += 12
    main, since = dice.below(TASTES, USERS), -dice.below(40, USERS)
    for _ in range(6):
        until = since + 20 + dice.below(40, USERS)
        rising = (weeks - since[:, None]).clip(0, 8)
        falling = (until[:, None] + 8 - weeks).clip(0, 8)
        taste[everyone, :, main] += 10 * np.minimum(rising, falling)
        step = np.where(dice.shares(USERS) < 0.7, 1, dice.below(TASTES, USERS))
        main, since = (main + step) % TASTES, until
    return taste
