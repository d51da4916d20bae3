"""What every recommender is, and how one is built from its entry in `params.yaml`."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from noise2next.config import Variant
from noise2next.data.queries import Queries
from noise2next.errors import UserError


class ModelConfig(BaseModel):
    """A model's options: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Clock:
    """Where training stands: finished epochs and finished batches. Survives a resume."""

    epoch: int = 0
    batch: int = 0


class Recommender(nn.Module, ABC):
    """Scores every item for a batch of histories. What is learned is a parameter or a buffer.

    `Config` names the options; a constructor takes it, the number of items, and by name the tensors of `inputs`,
    which it keeps as buffers of those names. It opens no file and trains nothing.
    """

    Config: ClassVar[type[ModelConfig]]
    inputs: ClassVar[tuple[str, ...]] = ()  # besides its options: user_keys [U] int64; item_clusters [I] int64, 0 to
    # below the option `clusters`, for which the variant must stand in `latent_variants`
    reads_order: ClassVar[bool] = False  # whether the order of a history matters, whatever the options
    scoring_seed: int = 0  # with a query's key it decides every draw of a stochastic `score`

    @abstractmethod
    def score(self, queries: Queries) -> Tensor:
        """[B, I] float32, or float64 where float32 would tie what is not equal; higher is better.

        Seen items are not masked here.
        """

    @classmethod
    def bytes_needed(cls, n_items: int) -> int:
        """Memory that learning takes where it grows faster than the items do; 0 where it does not."""
        return 0

    @classmethod
    def needs_order(cls, config: ModelConfig) -> bool:
        """Whether the order of a history matters under these options, so that a log must have one."""
        return cls.reads_order

    @property
    def stochastic(self) -> bool:
        """Whether `score` draws: another `scoring_seed` then gives other scores."""
        return False

    def begin_scoring(self) -> None:
        """Called once before a run of `score` calls on fixed weights: the place to precompute. Default: nothing."""


class ClosedForm(Recommender):
    """Learned in one pass over the training histories."""

    @abstractmethod
    def solve(self, train: Queries) -> None:
        """Set the buffers from all training histories."""


class Trainable(Recommender):
    """Learned by gradient steps. `phases` are the optimisation steps per batch, in order; one for most models."""

    phases: ClassVar[tuple[str, ...]] = ("train",)

    def samples(self, train: Queries) -> int:
        """How many rows the batches of one epoch have in all."""
        return len(train)

    def begin_training(self, train: Queries) -> None:
        """Called once in each process that trains or resumes, before anything else: the place to prepare `train`."""

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        """One epoch: every user once in random order, the last batch may be smaller. `order` lives on the CPU."""
        users = torch.randperm(len(train), generator=order).to(train.device)
        for chosen in torch.split(users, size):
            yield train.select(chosen)

    @abstractmethod
    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the loop minimises their sum."""

    def trained_in(self, phase: str, learning_rate: float) -> Iterator[dict[str, Any]]:
        """The parameters that `phase` moves, as an optimiser's groups: `params`, and the `lr` that each starts with."""
        yield {"params": list(self.parameters()), "lr": learning_rate}


@runtime_checkable
class HasDenoising(Protocol):
    """A model whose reverse chain can be watched: what it would recommend if the chain stopped at each step."""

    def denoising(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """The reverse chain of `score`, step by step: pairs of a step and scores [B, I] float32, without gradients.

        Steps are the process's own, from 0, and fall strictly: the noisiest that the chain visits comes first.
        The scores at step t are those of the clean value that the model predicts from x_t, the state that the chain
        enters step t with, read as scores in the same way as the final one. The draws are those of `score`, from
        (scoring_seed, queries.keys[b]) alone, so the last scores are `score(queries)` to rounding. Seen items are not
        masked. A tensor lies on the device of `queries`, and neither side writes to it after it was yielded.
        """


def model_class(address: str) -> type[Recommender]:
    """The class at `package.module.Class`. Raises UserError for an address that is none."""
    module_name, _, class_name = address.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"params.yaml: model {address!r} cannot be found: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Recommender)):
        raise UserError(f"params.yaml: model {address!r} is not a Recommender")
    return found


def model_config(address: str, options: Mapping[str, Any]) -> ModelConfig:
    """The checked options of the model at `address`. Raises UserError for an unknown key or a wrong value."""
    try:
        return model_class(address).Config.model_validate(dict(options))
    except ValidationError as error:
        faults = "; ".join(f"options.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"params.yaml: {address}: {faults}") from error


def build(variant: Variant, n_items: int, inputs: Mapping[str, Tensor] | None = None) -> Recommender:
    """A fresh model for `variant` over `n_items` items. Initial weights come from torch's global generator.

    `inputs` holds at least what the model's class lists under this name; the rest is left alone.
    """
    kind = model_class(variant.model)
    given = {name: (inputs or {})[name] for name in kind.inputs}
    return kind(model_config(variant.model, variant.options), n_items, **given)  # type: ignore[call-arg]
