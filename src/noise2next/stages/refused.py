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
from noise2next.data.clustering import LEAST
from noise2next.data.weighting import refusal
from noise2next.errors import UserError
from noise2next.models.base import model_class, model_config
from noise2next.workspace import MANIFEST, Workspace, verify

log = logging.getLogger(__name__)


class LeftOut(Frozen):
    """A variant that this dataset cannot have."""

    dataset: str
    variant: str
    left_out: str  # why


def why_refused(params: Params, space: Workspace, variant: str | Variant, prepared: bool = True) -> str | None:
    """Why `space.dataset` cannot have `variant`, by name or as a changed entry of its name; None where it can.

    With `prepared` the size of the prepared catalogue counts too, if there is one. Raises UserError for an entry that
    stands in the wrong mapping, or that wants more clusters than are made: no dataset could have it.
    """
    entry = params.dataset(space.dataset)
    chosen = variant if isinstance(variant, Variant) else params.variant(variant, space.dataset)
    clusters = _clusters(params, chosen)
    reason = refusal(chosen.weighting, entry.has_clock, entry.has_order)
    if reason is None and not entry.has_order and _needs_order(chosen):
        reason = "it reads histories in their order, and this log has no time column"
    if reason is None and clusters is not None:
        source = params.clustering.embeddings
        without = why_refused(params, space, source, prepared)
        reason = None if without is None else f"it needs the item clusters, and they need {source}: {without}"
    if reason is None and prepared and (space.prepared / MANIFEST).is_file():
        verify(space.prepared)
        n_items = pq.read_metadata(space.prepared / "items.parquet").num_rows
        return _too_small(clusters, n_items) or _too_large(chosen.model, n_items)
    return reason


def _needs_order(variant: Variant) -> bool:
    return model_class(variant.model).needs_order(model_config(variant.model, variant.options))


def _clusters(params: Params, variant: Variant) -> int | None:
    """How many item clusters the variant is built from; None for one that does without."""
    latent = "item_clusters" in model_class(variant.model).inputs
    if latent != (variant.name in params.latent_variants):
        right, wrong = ("latent_variants", "variants") if latent else ("variants", "latent_variants")
        raise UserError(f"params.yaml: {variant.name!r} stands in {wrong}; {variant.model} belongs in {right}")
    if not latent:
        return None
    clusters = int(model_config(variant.model, variant.options).model_dump()["clusters"])
    if clusters > params.clustering.most:
        raise UserError(f"params.yaml: {variant.name!r} wants {clusters} clusters; raise clustering.most to that")
    return clusters


def _too_small(clusters: int | None, n_items: int) -> str | None:
    if clusters is None or n_items >= LEAST * clusters:
        return None
    return f"it needs {LEAST} items for each of its {clusters} clusters, and the catalogue has {n_items} in all"


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
