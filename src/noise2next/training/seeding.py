"""One seed enters; every draw follows from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed torch's global generators, the only ones that models and the loop draw from."""
    torch.manual_seed(seed)


def epoch_order(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator for the order of the users in one epoch, so that no epoch's order hangs on the ones before."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where torch's global generators stand: uint8 tensors, of the CPU and of `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back where `generator_states` found them."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
