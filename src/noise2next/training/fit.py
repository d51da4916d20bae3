"""Learn a model, in one pass or in many: the same call for every kind."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from noise2next import __version__
from noise2next.config import Frozen, TrainerConfig
from noise2next.data.queries import Queries
from noise2next.models.base import ClosedForm, Recommender, Trainable
from noise2next.training.checkpoint import EpochRecord
from noise2next.training.device import forget_peak_memory, keep_freed_memory, matmul_dtype, peak_memory_mb
from noise2next.training.seeding import seed_everything
from noise2next.training.trainer import OnEpoch, Trainer, Validate


class FitReport(Frozen):
    """How learning went."""

    epochs: int  # finished; 0 for a closed form, and where a budget ended within the first
    best_epoch: int  # whose weights the model has, be it an unfinished one; 0 for a closed form
    stopped: Literal["patience", "epochs", "budget", "solved"]  # why learning ended; after `budget` it may go on
    metrics: Mapping[str, float]  # on validation, of the weights that were kept
    seconds: float  # learning and validating, over all resumptions; so, too, judging what a budget ended
    curve: tuple[EpochRecord, ...]
    device: str
    precision: str  # of the matrix products in training
    peak_memory_mb: float

    @property
    def trained(self) -> float:
        """Epochs, with the part of one in which a budget ended."""
        return self.curve[-1].trained if self.curve else 0.0

    def within(self, budget_seconds: float | None) -> bool:
        """Whether `budget_seconds` would add nothing: learning came to its own end, or has spent that much."""
        return self.stopped != "budget" or (budget_seconds is not None and budget_seconds <= self.seconds)


def fit(
    model: Recommender,
    train: Queries,
    config: TrainerConfig,
    validate: Validate,
    checkpoint: Path,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch,
    progress: bool,
    identity: str = "",
    budget_seconds: float | None = None,
) -> FitReport:
    """Learn `model` (on `device`, as `train` is) from all training histories, and leave it in evaluation mode.

    A Trainable stops early on the validation metric `config.metric` and takes up an unfinished run of the same
    identity at `checkpoint`; `identity` names what the run depends on beyond the arguments (the validation data). The
    folder `checkpoint` is the caller's to remove once the model is safe. After `budget_seconds` of learning, over all
    resumptions, a Trainable ends with its batch and is judged as it is; the checkpoint then serves to go on.
    """
    keep_freed_memory(device)
    forget_peak_memory(device)
    seed_everything(seed)
    model.scoring_seed = seed
    precision = str(matmul_dtype(config.precision, device)).removeprefix("torch.")
    if isinstance(model, ClosedForm):
        return _solve(model, train, validate, device)
    if not isinstance(model, Trainable):
        raise TypeError(f"{type(model).__name__} is neither ClosedForm nor Trainable")
    identity = _identity(model, train, config, seed, precision, identity)
    trainer = Trainer(model, train, config, validate, checkpoint, seed, identity, budget_seconds)
    end, ending = trainer.run(on_epoch, progress)
    return FitReport(
        epochs=end.epoch,
        best_epoch=end.best_epoch,
        stopped=ending,
        metrics=end.best,
        seconds=sum(record.seconds for record in end.curve),
        curve=end.curve,
        device=str(device),
        precision=precision,
        peak_memory_mb=peak_memory_mb(device),
    )


def _solve(model: ClosedForm, train: Queries, validate: Validate, device: torch.device) -> FitReport:
    began = time.monotonic()
    model.solve(train)
    model.eval()
    metrics = validate(model)
    return FitReport(
        epochs=0,
        best_epoch=0,
        stopped="solved",
        metrics=metrics,
        seconds=time.monotonic() - began,
        curve=(),
        device=str(device),
        precision="float32",
        peak_memory_mb=peak_memory_mb(device),
    )


def _identity(model: Trainable, train: Queries, config: TrainerConfig, seed: int, precision: str, more: str) -> str:
    """Hash of everything that decides a run: two runs that agree in it may continue each other."""
    choices = config.model_dump(mode="json", exclude={"checkpoint_seconds"})
    told = [__version__, type(model).__qualname__, repr(model), choices, seed, train.device.type, precision, more]
    found = hashlib.sha256(json.dumps(told).encode())
    tensors = [train.indptr, train.items, train.weights, train.keys, *model.state_dict().values()]
    for tensor in tensors:  # the initial weights stand for the model's options and its seed
        found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()
