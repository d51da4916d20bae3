"""The state of an unfinished training run on disk: `state.safetensors` and `progress.json`. No pickle.

Written as every output folder is, whole or not at all, so that a run killed at any instant finds the state before or
the state after. A damaged or foreign checkpoint is left out with a warning; the run then starts from the beginning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from noise2next.config import Frozen
from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, read_json, verify, write_json, writing

log = logging.getLogger(__name__)


class EpochRecord(Frozen):
    """One line of the learning curve."""

    epoch: int  # counted from 1
    loss: Mapping[str, float]  # each term's mean over the epoch's batches
    metrics: Mapping[str, float] = {}  # on validation; empty where the epoch was not judged
    seconds: float

    def values(self) -> dict[str, float]:
        """Everything measured, under names of its own: `loss_denoising`, `valid_recall@20`, `seconds`."""
        loss = {f"loss_{name}": value for name, value in self.loss.items()}
        return {**loss, **{f"valid_{name}": value for name, value in self.metrics.items()}, "seconds": self.seconds}

    def __str__(self) -> str:
        shown = [f"{name} {value:.4g}" for name, value in {**self.loss, **self.metrics}.items()]
        return ", ".join([f"epoch {self.epoch}", *shown, f"{self.seconds:.1f} s"])


class Progress(Frozen):
    """Where a run stands; with the tensors it is all that the rest of the run depends on."""

    identity: str  # hash of everything that decides the run: another run's checkpoint is of no use
    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch after those
    batches: int = 0  # finished batches in all
    sums: Mapping[str, float] = {}  # of the loss terms over the unfinished epoch
    best_epoch: int = 0
    best: Mapping[str, float] = {}  # validation metrics of the best epoch
    curve: tuple[EpochRecord, ...] = ()
    epoch_seconds: float = 0.0  # spent in the unfinished epoch, over all resumptions


def save(place: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Replace the checkpoint at `place`."""
    with writing(place) as folder:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "state.safetensors")
        write_json(folder / "progress.json", progress.model_dump(mode="json"))


def load(place: Path, identity: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The checkpoint at `place`, tensors on the CPU, or None where there is none of this run that can be trusted."""
    if not place.exists():
        return None
    try:
        if not (place / MANIFEST).is_file():
            raise UserError(f"{place / MANIFEST}: missing")
        verify(place)
        progress = Progress.model_validate(read_json(place / "progress.json"))
        tensors = load_file(place / "state.safetensors")
    except (UserError, OSError, KeyError, json.JSONDecodeError, ValidationError, SafetensorError) as error:
        log.warning("%s: the checkpoint is damaged, training starts from the beginning: %s", place, error)
        return None
    if progress.identity != identity:
        log.info("%s: the checkpoint is of another run (data, options or seed differ), training starts anew", place)
        return None
    return tensors, progress
