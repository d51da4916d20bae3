"""A trained model on disk: `config.json`, `weights.safetensors`, `vocabulary.parquet`, `report.json`, `manifest.json`.

No pickle anywhere. `load` hashes every file again before it believes one.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

import noise2next
from noise2next.config import Frozen, Variant
from noise2next.data.vocabulary import Vocabulary
from noise2next.models.base import Recommender, build
from noise2next.workspace import read_json, require, verify, write_json, writing


@functools.cache
def code_version() -> str:
    """The release and a hash of the sources that decide about weights and the best epoch: `0.1.0+1f2e3d4c5b6a`."""
    package = Path(noise2next.__file__).parent
    told = hashlib.sha256()
    for folder in ("data", "diffusion", "nn", "models", "training", "evaluation"):
        for path in sorted((package / folder).glob("*.py")):
            told.update(path.read_bytes())
    return f"{noise2next.__version__}+{told.hexdigest()[:12]}"


class ModelCard(Frozen):
    """`config.json`: what was trained, on what, by what."""

    dataset: str
    variant: Variant
    n_items: int
    seed: int
    data_version: str  # sha256 over the prepared split
    code_version: str = Field(default_factory=code_version)
    fingerprint: str  # hash of everything the weights depend on: equal fingerprints mean equal weights


@dataclass(frozen=True)
class Artifact:
    """A model with its items and its card."""

    model: Recommender
    items: Vocabulary
    card: ModelCard

    def save(self, place: Path, report: Any) -> None:
        """Write the folder whole; `report` (JSON-ready) says how training went."""
        with writing(place) as folder:
            write_json(folder / "config.json", self.card.model_dump(mode="json"))
            write_json(folder / "report.json", report)
            save_file(
                {name: value.contiguous() for name, value in self.model.state_dict().items()},
                folder / "weights.safetensors",
            )
            self.items.save(folder / "vocabulary.parquet")

    @classmethod
    def load(cls, place: Path, device: torch.device | str = "cpu") -> Artifact:
        """Verify the manifest, rebuild the model from its card, and put it on `device` in evaluation mode."""
        verify(require(place, "train"))
        card = ModelCard.model_validate(read_json(place / "config.json"))
        weights = load_file(place / "weights.safetensors")
        model = build(card.variant, card.n_items, weights)  # what a model is built from is among its buffers
        model.load_state_dict(weights)
        model.scoring_seed = card.seed
        return cls(model.to(device).eval(), Vocabulary.load(place / "vocabulary.parquet"), card)


def read_card(place: Path) -> ModelCard:
    """The card alone, without reading the weights."""
    return ModelCard.model_validate(read_json(require(place, "train") / "config.json"))
