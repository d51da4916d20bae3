"""The one training loop: the only place that calls `zero_grad`, `backward` and `step`."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import Tensor

from noise2next.config import TrainerConfig
from noise2next.data.queries import Queries
from noise2next.errors import Diverged, UserError
from noise2next.models.base import Clock, Recommender, Trainable
from noise2next.training import checkpoint
from noise2next.training.checkpoint import EpochRecord, Progress
from noise2next.training.device import matmul_dtype
from noise2next.training.seeding import epoch_order, generator_states, restore_generators

log = logging.getLogger(__name__)

Validate = Callable[[Recommender], dict[str, float]]
OnEpoch = Callable[[int, dict[str, float]], None]
Ending = Literal["patience", "epochs", "budget"]


class Trainer:
    """One run of one model: epochs until the validation metric stops growing, with checkpoints between batches.

    Killed at whatever instant, a new Trainer with the same arguments ends in the same weights, to the byte.
    """

    def __init__(
        self,
        model: Trainable,
        train: Queries,
        config: TrainerConfig,
        validate: Validate,
        place: Path,
        seed: int,
        identity: str,
        budget_seconds: float | None = None,
    ) -> None:
        """`place` is the checkpoint's folder, `identity` a hash of everything that decides the run.

        `budget_seconds` bounds the time spent over all resumptions and decides nothing but where the run pauses.
        """
        self.model = model
        self.train = train
        self.config = config
        self.validate = validate
        self.place = place
        self.seed = seed
        self.budget_seconds = budget_seconds
        self.device = train.device
        self.dtype = matmul_dtype(config.precision, self.device)
        self.optimisers = {
            phase: torch.optim.AdamW(
                model.trained_in(phase, config.learning_rate), weight_decay=config.weight_decay, fused=True
            )
            for phase in model.phases
        }
        self.first_rates = {
            phase: [group["lr"] for group in one.param_groups] for phase, one in self.optimisers.items()
        }
        self.best_weights: dict[str, Tensor] = {}
        self.at = Progress(identity=identity)
        self._saved = self._began = time.monotonic()

    def run(self, on_epoch: OnEpoch, progress: bool) -> tuple[Progress, Ending]:
        """Train to the end and put the best epoch's weights into the model; returns how it went, and why it ended.

        A run that its budget ends leaves a checkpoint, from which a larger budget goes on as if there had been none.

        `on_epoch` hears of each epoch, also of those that an earlier process has finished. `progress` shows a bar where
        there is a terminal; elsewhere each epoch is a line of the log. Raises UserError for a loss that is not finite
        and for a metric that validation does not know.
        """
        self.model.begin_training(self.train)
        self.samples = self.model.samples(self.train)
        self._resume()
        for known in self.at.curve:
            on_epoch(known.epoch, known.values())
        with _bar(progress) as bar:
            while (ending := self._ending()) is None:
                record = self._epoch(bar)
                if record is not None:
                    on_epoch(record.epoch, record.values())
                    if bar is None:
                        self._log(record)
        if ending == "budget":
            self._save()
            self._judge_last()
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return self.at, ending

    def _ending(self) -> Ending | None:
        """Why training is not to go on, if so."""
        judged = max((record.epoch for record in self.at.curve if record.metrics), default=0)
        if self.at.epoch >= self.config.epochs:
            return "epochs"
        if judged - self.at.best_epoch >= self.config.patience:
            return "patience"
        return "budget" if self._spent() else None

    def _spent(self) -> bool:
        """Whether the budget is used up. It is looked at between batches; one is trained in any case.

        An epoch without a batch left is closed first.
        """
        if self.budget_seconds is None or not self.at.batches or self.at.samples >= self.samples:
            return False
        return sum(record.seconds for record in self.at.curve) + self.at.epoch_seconds >= self.budget_seconds

    def _judge_last(self) -> None:
        """Judge the weights as they are if that was not due: after the checkpoint, so a longer run is none the wiser.

        A budget that ended within an epoch leaves a record of the part of it that was trained.
        """
        if self.at.batch:
            self._began = time.monotonic() - self.at.epoch_seconds
            last = self._record(self._judge(self.at.epoch + 1), self.at.samples / self.samples)
            self._move(curve=(*self.at.curve, last))
        elif not self.at.curve[-1].metrics:
            *before, last = self.at.curve
            began = time.monotonic()
            metrics = self._judge(last.epoch)
            seconds = last.seconds + time.monotonic() - began
            last = last.model_copy(update={"metrics": metrics, "seconds": seconds})
            self._move(curve=(*before, last))
        else:
            return
        self._log(last)

    def _log(self, record: EpochRecord) -> None:
        log.info("%s, best epoch %d", record.told(self.config.metric), self.at.best_epoch)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def _epoch(self, bar: Bar | None) -> EpochRecord | None:
        """The next epoch, or what is left of it; None where the budget ends within it."""
        self._began = time.monotonic() - self.at.epoch_seconds
        self.model.train()
        self._set_rates()
        task = None
        if bar is not None:
            task = bar.add_task(f"epoch {self.at.epoch + 1}", total=self.samples, completed=self.at.samples)
        for batch in self._remaining_batches():
            self._step(batch)
            if bar is not None and task is not None:
                bar.advance(task, len(batch))
            self._save_if_due()
            if self._spent():
                return None
        record = self._close_epoch()
        if bar is not None and task is not None:
            bar.update(task, description=f"{record.told(self.config.metric)}, best epoch {self.at.best_epoch}")
        self._save_if_due()
        return record

    def _set_rates(self) -> None:
        """The learning rates of this epoch: the first ones, times `decay` once every `decay_every` epochs."""
        times = 0 if self.config.decay_every is None else self.at.epoch // self.config.decay_every
        for phase, optimiser in self.optimisers.items():
            for group, first in zip(optimiser.param_groups, self.first_rates[phase], strict=True):
                group["lr"] = first * self.config.decay**times

    def _remaining_batches(self) -> Iterator[Queries]:
        """The epoch's batches without those that are done; passing over those leaves the generators as they are."""
        batches = self.model.batches(self.train, self.config.batch_size, epoch_order(self.seed, self.at.epoch))
        states = generator_states(self.device)
        deque(islice(batches, self.at.batch), maxlen=0)
        restore_generators(states, self.device)
        return batches

    def _step(self, batch: Queries) -> None:
        clock = Clock(self.at.epoch, self.at.batches)
        sums = dict(self.at.sums)
        for phase in self.model.phases:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                terms = self.model.loss(batch, phase, clock)
            losses = torch.stack(list(terms.values()))
            for name, value in zip(terms, losses.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + self._finite(name, value)
            self.model.zero_grad(set_to_none=True)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self.optimisers[phase].step()
        self._move(
            batch=self.at.batch + 1,
            samples=self.at.samples + len(batch),
            batches=self.at.batches + 1,
            sums=sums,
            epoch_seconds=time.monotonic() - self._began,
        )

    def _finite(self, name: str, value: float) -> float:
        if not math.isfinite(value):
            raise Diverged(
                f"training broke down in epoch {self.at.epoch + 1}: the loss {name!r} is {value}; "
                "lower trainer.learning_rate or check the variant's options"
            )
        return value

    def _close_epoch(self) -> EpochRecord:
        """The epoch's mean losses, and validation where it is due; the best weights are kept."""
        epoch = self.at.epoch + 1
        metrics: dict[str, float] = {}
        if epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs:
            metrics = self._judge(epoch)
        record = self._record(metrics)
        self._move(epoch=epoch, batch=0, samples=0, sums={}, curve=(*self.at.curve, record), epoch_seconds=0.0)
        return record

    def _record(self, metrics: Mapping[str, float], share: float = 1.0) -> EpochRecord:
        return EpochRecord(
            epoch=self.at.epoch + 1,
            share=share,
            loss={name: value / self.at.batch for name, value in self.at.sums.items()},
            metrics=metrics,
            seconds=time.monotonic() - self._began,
        )

    def _judge(self, epoch: int) -> dict[str, float]:
        """Validation of the weights as they are after `epoch`, which are kept where they are the best so far."""
        self.model.eval()
        self.model.zero_grad(set_to_none=True)  # their memory serves validation
        metrics = self.validate(self.model)
        if self._main_metric(metrics) > self.at.best.get(self.config.metric, -math.inf):
            self._keep_weights()
            self._move(best_epoch=epoch, best=metrics)
        return metrics

    def _keep_weights(self) -> None:
        for name, value in self.model.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(value)
            else:
                self.best_weights[name] = value.clone()

    def _main_metric(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self.config.metric)
        if value is None:
            raise UserError(f"trainer.metric: {self.config.metric!r} is not among {', '.join(metrics)}")
        if not math.isfinite(value):
            raise UserError(f"validation gives {self.config.metric} {value}: its part has no user to judge")
        return value

    # --- the state of the run -----------------------------------------------------------------------------------------

    def _move(self, **changes: Any) -> None:
        self.at = self.at.model_copy(update=changes)

    def _save_if_due(self) -> None:
        now = time.monotonic()
        if now - self._saved < self.config.checkpoint_seconds:
            return
        self._save()

    def _save(self) -> None:
        self._move(saves=self.at.saves + 1)
        checkpoint.save(self.place, self._tensors(), self.at)
        self._saved = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that the rest of the run depends on, by name."""
        groups: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "best": self.best_weights,
            "generators": generator_states(self.device),
        }
        for phase, optimiser in self.optimisers.items():
            states = optimiser.state_dict()["state"]
            groups[f"optimiser-{phase}"] = {
                f"{index}/{name}": value for index, state in states.items() for name, value in state.items()
            }
        return {f"{group}:{name}": value for group, values in groups.items() for name, value in values.items()}

    def _resume(self) -> None:
        """Take up the checkpoint, if there is one of this run."""
        found = checkpoint.load(self.place, self.at.identity)
        if found is None:
            return
        tensors, self.at = found
        self.model.load_state_dict(_group(tensors, "model"))
        self.best_weights = {name: value.to(self.device) for name, value in _group(tensors, "best").items()}
        for phase, optimiser in self.optimisers.items():
            states: dict[int, dict[str, Tensor]] = {}
            for name, value in _group(tensors, f"optimiser-{phase}").items():
                index, _, key = name.partition("/")
                states.setdefault(int(index), {})[key] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
        restore_generators(_group(tensors, "generators"), self.device)
        log.info("resumed after epoch %d and %d batches", self.at.epoch, self.at.batch)


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    prefix = f"{group}:"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def _bar(wanted: bool) -> Iterator[Bar | None]:
    """A progress bar on the terminal, or None where there is no terminal or no wish for one."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield None
        return
    with Bar(console=console) as bar:
        yield bar
