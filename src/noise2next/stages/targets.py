"""The names by which DVC knows what makes a dataset's variants: for who wants some of them and not every one."""

from __future__ import annotations

from collections.abc import Sequence

from noise2next.config import Frozen, Params
from noise2next.stages import pipeline
from noise2next.workspace import Workspace


class Targets(Frozen):
    """Stages of dvc.yaml: `dvc repro` of them trains and judges each variant, what it stands on and must beat."""

    dataset: str
    stages: list[str]


def run(params: Params, space: Workspace, variants: Sequence[str] | None) -> Targets:
    """The stages of `variants`; None means all that the dataset allows.

    Raises UserError where a variant is unknown, misconfigured, or named against the dataset's needs, and where the
    gate's policy cannot be read.
    """
    chosen, _ = pipeline.choose(params, space, variants)
    return Targets(
        dataset=space.dataset,
        stages=[
            f"{'evaluate_latent' if name in params.latent_variants else 'evaluate'}@{space.dataset}-{name}"
            for name in (*pipeline.required(params, space, chosen), *chosen)
        ],
    )
