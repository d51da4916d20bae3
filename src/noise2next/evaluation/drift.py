"""Has what comes in moved, by more than chance and by more than it always does?

Two stretches of a log never look alike: they are finite samples, and a shop moves from week to week. So each distance
is held against two things. Chance: were nothing changed, each user's rows of one stretch might as well have been those
of the other, so the two are swapped for every user by the toss of a coin, many times (a randomisation test; Fisher,
1935). Users and not rows are swapped, because one user's rows resemble each other. What is usual: the same distances
between the stretches before. Only what is beyond both, and beyond by a margin that somebody cares about, is alarming.
On a stream that has not changed the first alone keeps false alarms below the level that is asked for.

The distances are scipy's. Evidently, which wraps them, brings a web server and has no notion of users.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from noise2next.config import DriftConfig, Frozen
from noise2next.data.recent import DAY, Recent
from noise2next.evaluation.lists import BANDS

QUESTIONS = ("item_mix", "popularity", "activity", "volume", "new_items", "new_users")
RISES = ("new_items", "new_users")  # shares, of which only more is alarming; the others are distances
PAST_DRAWS = 100  # for the mean of a distance by chance, which needs fewer than its tail
DRAWS_BYTES = 64 << 20


class Finding(Frozen):
    """One question: what was found, what it may be, and what to do about it.

    It is alarming above `limit` (an overlap and an outcome: below). `before` is a share's value in the earlier stretch,
    `chance` the most that chance gives at the level asked for, `usual` the most between earlier stretches beyond
    chance, `past` what was found there, oldest first. Where nothing could be judged `value` is None, and the sentence
    says why.
    """

    name: str
    about: Literal["input", "prediction", "outcome"]
    value: float | None
    before: float | None = None
    chance: float | None = None
    usual: float | None = None
    limit: float | None = None
    past: tuple[float, ...] = ()
    alarmed: bool = False
    sentence: str


def unjudged(name: str, about: Literal["input", "prediction", "outcome"], why: str) -> Finding:
    """A question without an answer."""
    return Finding(name=name, about=about, value=None, sentence=f"{name}: not judged: {why}")


def compare(found: Recent, config: DriftConfig, seed: int) -> list[Finding]:
    """A finding for each of QUESTIONS: the newest stretch against the one before. Both hold enough, see `too_small`.

    Earlier stretches that hold too little are no measure of what is usual, and are left out.
    """
    sums = [_Sums.of(found, stretch, config.least_item_users) for stretch in range(len(found.starts))]
    small = [_too_small(found, stretch, config) for stretch in range(len(found.starts))]
    draw = np.random.default_rng(seed)
    usual = [
        _Pair.of(sums[one], sums[other]).judged(PAST_DRAWS, draw)
        for one, other in itertools.pairwise(range(len(sums) - 1))
        if not (small[one] or small[other])
    ]
    now = _Pair.of(*sums[-2:]).judged(config.draws, draw)
    tail = int((1 - config.level) / len(QUESTIONS) * (config.draws + 1) + 1e-9)
    return [
        _finding(name, now[name], [one[name] for one in usual], tail, getattr(config.margins, name))
        for name in QUESTIONS
    ]


def too_small(found: Recent, config: DriftConfig) -> str | None:
    """Why nothing can be said of the two newest stretches, or None where something can."""
    for stretch, name in ((len(found.starts) - 1, "come since"), (len(found.starts) - 2, "been there before")):
        if _too_small(found, stretch, config):
            return (
                f"only {found.rows[stretch]:,} rows of {found.n_users(stretch):,} users have {name} in "
                f"{found.length / DAY:.1f} days, and drift.least_rows is {config.least_rows:,}, drift.least_users "
                f"{config.least_users:,}"
            )
    return None


def _too_small(found: Recent, stretch: int, config: DriftConfig) -> bool:
    return bool(found.rows[stretch] < config.least_rows) or found.n_users(stretch) < config.least_users


@dataclass(frozen=True)
class _Judged:
    """One question about one pair: its value, that by chance [draws], and a share's levels before and after."""

    value: float
    chance: NDArray[np.float64]
    before: float | None
    after: float | None

    @property
    def beyond_chance(self) -> float:
        """What is left without chance: distances add up in their squares, rises have no bias."""
        if self.before is not None:
            return max(0.0, self.value)
        return float(np.sqrt(max(0.0, self.value**2 - np.square(self.chance).mean())))


def _finding(name: str, now: _Judged, past: list[_Judged], tail: int, margin: float) -> Finding:
    most_by_chance = float(np.sort(now.chance)[-tail])
    usual = max((one.beyond_chance for one in past), default=0.0)
    if now.before is None:
        moved = float(np.sqrt(np.square(now.chance).mean() + (usual + margin) ** 2))
        value, limit = now.value, max(most_by_chance, moved)
    else:
        assert now.after is not None
        value, limit = now.after, now.before + max(most_by_chance, usual + margin)
    alarmed = value > limit
    said = _SAID[name].format(value=value, limit=limit, before=now.before)
    return Finding(
        name=name,
        about="input",
        value=value,
        before=now.before,
        chance=most_by_chance,
        usual=usual if past else None,
        limit=limit,
        past=tuple(one.value if one.after is None else one.after for one in past),
        alarmed=alarmed,
        sentence=f"{name}: {said}" + (f"; {_REMEDIES[name]}" if alarmed else ""),
    )


_SAID = {
    "item_mix": "Jensen-Shannon distance {value:.3f}, limit {limit:.3f}",
    "popularity": "Jensen-Shannon distance {value:.3f} between the tenths of the catalogue, limit {limit:.3f}",
    "activity": "rows of a user differ by {value:.2f} doublings, limit {limit:.2f}",
    "volume": "rows differ by {value:.2f} doublings, limit {limit:.2f}",
    "new_items": "{value:.1%} of the rows are of new items, before {before:.1%}, limit {limit:.1%}",
    "new_users": "{value:.1%} of the users are new, before {before:.1%}, limit {limit:.1%}",
}
_REMEDIES = {
    "item_mix": "other items are taken than when the champion was made; see whether the log is in order, then retrain",
    "popularity": "the popular are taken more or less than they were; see whether the log is in order, then retrain",
    "activity": "users take more or less than they did; see whether rows are lost or doubled, then retrain",
    "volume": "the log has grown or shrunk; see whether rows are lost or doubled, then retrain",
    "new_items": "the champion cannot recommend what it never saw; retrain",
    "new_users": "the champion knows nothing of them; retrain, or ask it with their bare histories",
}


# --- everything that is compared is a sum over users -----------------------------------------------------------------

_ROWS, _NEW_ROWS, _NEW_USERS, _USERS = range(4)


@dataclass(frozen=True)
class _Sums:
    """What a stretch adds up to: rows of each item [U, I], and of each user the four plain sums [U, 4]."""

    items: sparse.csr_array
    plain: NDArray[np.float64]

    @classmethod
    def of(cls, found: Recent, stretch: int, least_item_users: int) -> _Sums:
        """An item is new only where so many users took it: one user's stray ids are no catalogue."""
        here = found.stretches == stretch
        users, items, counts = found.users[here], found.items[here], found.counts[here]
        n_users, n_items = found.users.max() + 1, found.items.max() + 1
        table = sparse.csr_array((counts.astype(np.float64), (users, items)), shape=(n_users, n_items))
        taken = np.bincount(items, minlength=n_items) >= least_item_users
        new = found.new_item[here] & taken[items]
        plain = np.zeros((n_users, 4))
        plain[:, _ROWS] = np.bincount(users, counts, n_users)
        plain[:, _NEW_ROWS] = np.bincount(users, counts * new, n_users)
        plain[users, _NEW_USERS] = found.new_user[here]
        plain[users, _USERS] = 1
        return cls(table, plain)


@dataclass(frozen=True)
class _Pair:
    """Two stretches, their users in the same rows: before and after [U, C], C = items, lengths, and four plain sums."""

    before: sparse.csr_array
    after: sparse.csr_array
    n_items: int
    bands: NDArray[np.float64]  # [I, 10]: the tenth of the items, by the rows of both stretches, that an item is in
    doublings: NDArray[np.float64]  # of the lengths

    @classmethod
    def of(cls, one: _Sums, other: _Sums) -> _Pair:
        """Of the users and items that either has."""
        users = np.flatnonzero(one.plain[:, _USERS] + other.plain[:, _USERS])
        items = np.flatnonzero(one.items.sum(axis=0) + other.items.sum(axis=0))
        lengths = np.unique(np.concatenate([side.plain[users, _ROWS] for side in (one, other)]))
        lengths = lengths[lengths > 0]
        before, after = (
            sparse.hstack(
                [
                    side.items[users][:, items],
                    sparse.csr_array(side.plain[users, _ROWS][:, None] == lengths).astype(np.float64),
                    sparse.csr_array(side.plain[users]),
                ],
                format="csr",
            )
            for side in (one, other)
        )
        popular = np.argsort(-(before + after).sum(axis=0)[: len(items)], kind="stable")
        bands = np.zeros((len(items), BANDS))
        for band, members in enumerate(np.array_split(popular, BANDS)):
            bands[members, band] = 1
        return cls(before, after, len(items), bands, np.log2(lengths))

    def judged(self, draws: int, draw: np.random.Generator) -> dict[str, _Judged]:
        """Each question, with what swapping users gives."""
        before, after = (side.sum(axis=0)[None] for side in (self.before, self.after))
        now, by_chance = self._measure(before, after), self._by_chance(before, after, draws, draw)
        levels = [self._shares(side) for side in (before, after)]
        return {
            name: _Judged(
                float(now[name][0]),
                by_chance[name],
                *(float(one[name][0]) if name in RISES else None for one in levels),
            )
            for name in QUESTIONS
        }

    def _by_chance(
        self, before: NDArray[np.float64], after: NDArray[np.float64], draws: int, draw: np.random.Generator
    ) -> dict[str, NDArray[np.float64]]:
        gained = (self.before - self.after).T.tocsr()  # [C, U]: what the later stretch gains when a user is swapped
        n_sums, n_users = gained.shape
        found = []
        for start in range(0, draws, block := max(1, DRAWS_BYTES // (8 * (n_users + 4 * n_sums)))):
            swaps = draw.integers(0, 2, (n_users, min(block, draws - start))).astype(np.float64)
            moved = (gained @ swaps).T
            found.append(self._measure(before - moved, after + moved))
        return {name: np.concatenate([one[name] for one in found]) for name in QUESTIONS}

    def _measure(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """before, after [S, C] -> [S] each."""
        mixes = before[:, : self.n_items], after[:, : self.n_items]
        lengths = slice(self.n_items, self.n_items + len(self.doublings))
        rows = [side[:, self._plain(_ROWS)] for side in (before, after)]
        earlier, later = self._shares(before), self._shares(after)
        return {
            # equal mixes may give the root of minus one rounding error
            "item_mix": np.nan_to_num(jensenshannon(*mixes, base=2, axis=1)),
            "popularity": np.nan_to_num(jensenshannon(*(mix @ self.bands for mix in mixes), base=2, axis=1)),
            "activity": np.array(
                [
                    wasserstein_distance(self.doublings, self.doublings, one, other)
                    for one, other in zip(before[:, lengths], after[:, lengths], strict=True)
                ]
            ),
            "volume": np.abs(np.log2(rows[1] / rows[0])),
            **{name: later[name] - earlier[name] for name in RISES},
        }

    def _shares(self, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {
            "new_items": sums[:, self._plain(_NEW_ROWS)] / sums[:, self._plain(_ROWS)],
            "new_users": sums[:, self._plain(_NEW_USERS)] / sums[:, self._plain(_USERS)],
        }

    def _plain(self, column: int) -> int:
        return self.n_items + len(self.doublings) + column
