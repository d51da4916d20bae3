"""Pairs that cannot be: a dataset without a clock and a variant that needs one.

Who runs every pair, as `dvc repro` does, wants a stand-in there and not an error: an empty folder, which no reader of
models or evaluations takes for one.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from noise2next.config import Frozen, Params
from noise2next.data.weighting import refusal
from noise2next.workspace import Workspace

log = logging.getLogger(__name__)


class LeftOut(Frozen):
    """A variant that this dataset cannot have."""

    dataset: str
    variant: str
    left_out: str  # why


def why_refused(params: Params, dataset: str, variant: str) -> str | None:
    """Why `dataset` cannot have `variant`; None where it can."""
    entry = params.dataset(dataset)
    return refusal(params.variant(variant, dataset).weighting, entry.has_clock, entry.has_order)


def run(params: Params, space: Workspace, variant: str, place: Path) -> LeftOut | None:
    """Leave an empty folder at `place` where `space.dataset` cannot have `variant`; where it can, do nothing: None."""
    reason = why_refused(params, space.dataset, variant)
    if reason is None:
        return None
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    log.warning("%s: %s is left out: %s", space.dataset, variant, reason)
    return LeftOut(dataset=space.dataset, variant=variant, left_out=reason)
