"""Pairs that cannot be: a dataset without a clock and a variant that needs one, a catalogue too large for a model.

Who runs every pair, as `dvc repro` does, wants a stand-in there and not an error: an empty folder, which no reader of
models or evaluations takes for one.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from noise2next.config import Frozen, Params, Variant
from noise2next.data.weighting import refusal
from noise2next.models.base import model_class, model_config
from noise2next.workspace import MANIFEST, Workspace, verify

log = logging.getLogger(__name__)


class LeftOut(Frozen):
    """A variant that this dataset cannot have."""

    dataset: str
    variant: str
    left_out: str  # why


def why_refused(params: Params, space: Workspace, variant: str, prepared: bool = True) -> str | None:
    """Why `space.dataset` cannot have `variant`; None where it can.

    With `prepared` the size of the prepared catalogue counts too, if there is one.
    """
    entry = params.dataset(space.dataset)
    chosen = params.variant(variant, space.dataset)
    reason = refusal(chosen.weighting, entry.has_clock, entry.has_order)
    if reason is None and not entry.has_order and _needs_order(chosen):
        reason = "it reads histories in their order, and this log has no time column"
    if reason is None and prepared and (space.prepared / MANIFEST).is_file():
        verify(space.prepared)
        return _too_large(chosen.model, pq.read_metadata(space.prepared / "items.parquet").num_rows)
    return reason


def _needs_order(variant: Variant) -> bool:
    return model_class(variant.model).needs_order(model_config(variant.model, variant.options))


def _too_large(model: str, n_items: int) -> str | None:
    needed = model_class(model).bytes_needed(n_items)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= there:
        return None
    return (
        f"it needs {needed / 2**30:,.0f} GiB for {n_items:,} items and this machine has {there / 2**30:,.0f}: "
        "raise k_core, or take a larger machine"
    )


def run(params: Params, space: Workspace, variant: str, place: Path) -> LeftOut | None:
    """Leave an empty folder at `place` where `space.dataset` cannot have `variant`; where it can, do nothing: None."""
    reason = why_refused(params, space, variant)
    if reason is None:
        return None
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    log.warning("%s: %s is left out: %s", space.dataset, variant, reason)
    return LeftOut(dataset=space.dataset, variant=variant, left_out=reason)
