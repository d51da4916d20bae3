"""The state of an unfinished training run on disk: `state.safetensors` and `progress.json`. No pickle.

Two folders take turns, each written as every output folder is, so that a run killed at any instant finds the last state
or the one before. A damaged checkpoint is left out with a warning; without any, the run starts from the beginning.
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

SLOTS = ("a", "b")


class EpochRecord(Frozen):
    """One line of the learning curve."""

    epoch: int  # counted from 1
    share: float = 1.0  # of the epoch's samples that were trained on; below 1 only where a budget ended within it
    loss: Mapping[str, float]  # each term's mean over the batches
    metrics: Mapping[str, float] = {}  # on validation; empty where the epoch was not judged
    seconds: float

    @property
    def trained(self) -> float:
        """Epochs of training in all when it was written."""
        return self.epoch - 1 + self.share

    def values(self) -> dict[str, float]:
        """Everything measured, under names of its own: `loss_denoising`, `valid_recall@20`, `seconds`."""
        loss = {f"loss_{name}": value for name, value in self.loss.items()}
        return {**loss, **{f"valid_{name}": value for name, value in self.metrics.items()}, "seconds": self.seconds}

    def told(self, metric: str) -> str:
        """One line for a log: the loss and the metric that chooses."""
        chosen = {metric: self.metrics[metric]} if metric in self.metrics else {}
        shown = [f"{name} {value:.4g}" for name, value in {**self.loss, **chosen}.items()]
        return ", ".join([f"epoch {round(self.trained, 2):g}", *shown, f"{self.seconds:.1f} s"])


class Progress(Frozen):
    """Where a run stands; with the tensors it is all that the rest of the run depends on."""

    identity: str  # hash of everything that decides the run: another run's checkpoint is of no use
    saves: int = 0  # checkpoints written so far
    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch after those
    samples: int = 0  # in these
    batches: int = 0  # finished batches in all
    sums: Mapping[str, float] = {}  # of the loss terms over the unfinished epoch
    best_epoch: int = 0
    best: Mapping[str, float] = {}  # validation metrics of the best epoch
    curve: tuple[EpochRecord, ...] = ()
    epoch_seconds: float = 0.0  # spent in the unfinished epoch, over all resumptions


def save(place: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write a checkpoint below `place`. Two take turns, so that at every instant one is whole."""
    with writing(place / SLOTS[progress.saves % 2]) as folder:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "state.safetensors")
        write_json(folder / "progress.json", progress.model_dump(mode="json"))


def load(place: Path, identity: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The newest checkpoint of this run below `place` that can be trusted, tensors on the CPU, or None."""
    found = [one for slot in SLOTS if (one := _read(place / slot, identity)) is not None]
    return max(found, key=lambda one: one[1].saves, default=None)


def _read(place: Path, identity: str) -> tuple[dict[str, Tensor], Progress] | None:
    if not place.exists():
        return None
    try:
        if not (place / MANIFEST).is_file():
            raise UserError(f"{place / MANIFEST}: missing")
        verify(place)
        progress = Progress.model_validate(read_json(place / "progress.json"))
        if progress.identity != identity:
            log.info("%s: a checkpoint of another run (data, options, seed or code differ) is left out", place)
            return None
        return load_file(place / "state.safetensors"), progress
    except (UserError, OSError, KeyError, json.JSONDecodeError, ValidationError, SafetensorError) as error:
        log.warning("%s: the checkpoint is damaged and left out, training starts before it: %s", place, error)
        return None
