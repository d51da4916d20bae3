"""False positives: interactions that never happened, among those that a model reads (DiffRec's random noise).

Only what is read is noised. The truth that a model is judged on and what is left out of a ranking stay what happened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noise2next.config import Noise, Weighting
from noise2next.data.interactions import Interactions, Split
from noise2next.data.weighting import weigh


def reading(
    histories: Interactions, split: Split, weighting: Weighting, noise: Noise | None, seed: int
) -> Interactions:
    """What a model reads of `histories`, those of the users of `split`: noised, if it is to be, and then weighed."""
    if noise is not None:
        histories = with_false_positives(histories, split.n_items, split.users.keys, noise.share, seed)
    return weigh(histories, weighting, split.has_clock)


def with_false_positives(
    histories: Interactions, n_items: int, keys: NDArray[np.int64], share: float, seed: int
) -> Interactions:
    """`histories` with round(share n) more items for a user of n, as far as there are others than the user's own.

    keys [U], `Vocabulary.keys`. A user's are drawn evenly from the items outside the history, each once, and put at
    random places, at the time of the interaction before (or after, for the first). With the seed, the key and the
    history they are settled: no other user matters. More history keeps those that it has not made true.
    """
    users, items, bits = _draw(histories, n_items, keys, share, seed)
    gap = _below(bits, histories.lengths[users] + 1)
    follower = histories.indptr[users] + gap  # the flat place of the real interaction that it is put before
    order = np.argsort(np.concatenate([2 * np.arange(len(histories)) + 1, 2 * follower]), kind="stable")
    more = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=histories.n_users))])
    times = histories.times
    if times is not None:
        times = np.concatenate([times, times[np.where(gap > 0, follower - 1, follower)]])[order]
    return Interactions(
        histories.indptr + more,
        np.concatenate([histories.items, items.astype(np.int32)])[order],
        times,
        np.concatenate([histories.weights, np.ones(len(items), dtype=np.float32)])[order],
    )


def _draw(
    histories: Interactions, n_items: int, keys: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """users [F] in order, items [F], and random bits [F] that nothing has used yet.

    Each user has an endless stream of items, and takes the first that are neither of the history nor taken before.
    """
    known = histories.items >= 0
    lengths = np.bincount(histories.users[known], minlength=histories.n_users)
    own = np.unique(histories.users[known] * n_items + histories.items[known])
    left = n_items - np.bincount(own // n_items, minlength=histories.n_users)
    missing = np.minimum(np.rint(share * lengths).astype(np.int64), left)
    streams = _mixed(keys.view(np.uint64) ^ _mixed(np.array([seed], dtype=np.uint64)))
    drawn = np.zeros_like(missing)
    codes, bits = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)  # of what is taken: user * n_items + item
    while missing.any():
        tries = -(-missing * n_items // np.maximum(left, 1))  # as many as will give the missing, on average
        users = np.repeat(np.arange(histories.n_users), tries)
        first = np.cumsum(tries) - tries
        turn = drawn[users] + np.arange(len(users)) - first[users]
        random = _mixed(streams[users] + (turn + 1).astype(np.uint64) * _GOLDEN)
        found = users * n_items + _below(random >> _HALF, np.full(len(users), n_items))
        fresh = np.zeros(len(users), dtype=np.bool_)
        fresh[np.unique(found, return_index=True)[1]] = True
        fresh &= ~(_among(own, found) | _among(np.sort(codes), found))
        count = np.concatenate([[0], np.cumsum(fresh)])
        fresh &= count[1:] - count[first[users]] <= missing[users]
        codes, bits = np.concatenate([codes, found[fresh]]), np.concatenate([bits, random[fresh]])
        taken = np.bincount(users[fresh], minlength=histories.n_users)
        drawn, missing, left = drawn + tries, missing - taken, left - taken
    order = np.argsort(codes // n_items, kind="stable")
    return codes[order] // n_items, codes[order] % n_items, bits[order]


def _among(members: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `asked` are in the sorted `members`."""
    place = np.searchsorted(members, asked)
    inside = place < len(members)
    inside[inside] = members[place[inside]] == asked[inside]
    return inside


# --- random numbers by counting: splitmix64 (Steele, Lea and Flood, 2014) ---------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _below(bits: NDArray[np.uint64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lower half of `bits` as a whole number from 0 to one below `bounds`, which are less than 2^31."""
    found: NDArray[np.int64] = (((bits & np.uint64(0xFFFFFFFF)) * bounds.astype(np.uint64)) >> _HALF).astype(np.int64)
    return found
