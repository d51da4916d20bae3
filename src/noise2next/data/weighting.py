"""Time weights: how much each interaction of a history counts. Any variant may ask for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noise2next.config import ExponentialWeights, LinearWeights, UniformWeights, Weighting
from noise2next.data.interactions import Interactions
from noise2next.errors import UserError

DAY = 86_400_000_000  # microseconds


def refusal(weighting: Weighting, has_clock: bool, has_order: bool = True) -> str | None:
    """Why `weighting` cannot be had on such a log, or None where it can."""
    if weighting.kind == "exponential" and not has_clock:
        return "exponential weights need a clock, and this log has none: use linear or uniform weights"
    if weighting.kind == "linear" and not has_order:
        return "linear weights need the order of events, and this log has no time column: use uniform weights"
    return None


def weigh(interactions: Interactions, weighting: Weighting, has_clock: bool) -> Interactions:
    """`interactions` with its weights [N] set; nothing else changes.

    Raises UserError for exponential weights where the times are not a clock.
    """
    match weighting:
        case UniformWeights():
            weights = np.ones(len(interactions), dtype=np.float32)
        case LinearWeights():
            weights = time_weights(interactions.lengths, weighting.low, weighting.high)
        case ExponentialWeights():
            reason = refusal(weighting, has_clock and interactions.times is not None)
            if reason is not None or interactions.times is None:
                raise UserError(f"weighting: {reason}")
            weights = decay_weights(interactions.times, weighting.half_life_days)
    return interactions.weighted(weights)


def time_weights(lengths: NDArray[np.int64], low: float, high: float) -> NDArray[np.float32]:
    """Weight each interaction by its place in the user's history, oldest `low`, newest `high`.

    lengths [U] -> weights [N], N = lengths.sum(). A history of one gets `low`, as in the authors' code
    (T-DiffRec; Wang et al., 2023).
    """
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    last = np.repeat(lengths - 1, lengths)
    share = np.divide(place, last, out=np.zeros(len(place)), where=last > 0)
    weights: NDArray[np.float32] = (low + (high - low) * share).astype(np.float32)
    return weights


def decay_weights(times: NDArray[np.int64], half_life_days: float) -> NDArray[np.float32]:
    """times [N], microseconds -> 0.5 ** (age / half life) [N]; age is counted from the newest of `times`."""
    if not len(times):
        return np.ones(0, dtype=np.float32)
    age = (times.max() - times) / (half_life_days * DAY)
    weights: NDArray[np.float32] = np.exp2(-age).astype(np.float32)
    return weights
