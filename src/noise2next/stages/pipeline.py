"""The whole way in one call: each stage in its order, each variant in turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from noise2next.config import Frozen, Params, Settings
from noise2next.errors import UserError
from noise2next.evaluation.report import LeaderboardReport
from noise2next.models.base import model_config
from noise2next.registry import tracking
from noise2next.registry.promotion import Policy
from noise2next.stages import cluster, embed, evaluate, ingest, leaderboard, prepare, register, train, validate
from noise2next.stages.refused import why_refused
from noise2next.stages.register import RegistrationReport
from noise2next.workspace import Workspace, alone

log = logging.getLogger(__name__)


class PipelineReport(Frozen):
    """What the run ended with."""

    dataset: str
    trained: list[str]
    required: dict[str, str]  # variant that was not asked for: why it is trained all the same
    skipped: dict[str, str]  # variant: why this dataset cannot have it
    leaderboard: LeaderboardReport
    leaderboard_page: str
    registration: RegistrationReport


def run(
    params: Params, space: Workspace, settings: Settings, variants: Sequence[str] | None, progress: bool = False
) -> PipelineReport:
    """Every stage for `space.dataset`; `variants` None means all that the dataset allows.

    Raises UserError before anything is done when a variant is unknown, misconfigured, or named against its needs, when
    the tracking server does not answer, the gate's policy cannot be read, and when another run of the dataset is going
    on; and before anything is trained when the catalogue is too large for a named one.
    """
    chosen, _ = choose(params, space, variants, prepared=False)
    required(params, space, chosen, prepared=False)
    tracking.probe(settings, space)
    with alone(space.run_lock, f"run of {space.dataset}"):
        log.info("%s: %s", space.dataset, ", ".join(chosen))
        return _go(params, space, settings, variants, progress)


def _go(
    params: Params, space: Workspace, settings: Settings, variants: Sequence[str] | None, progress: bool
) -> PipelineReport:
    ingest.run(params, space)
    validate.run(params, space)
    prepare.run(params, space)
    chosen, skipped = choose(params, space, variants)
    beside = required(params, space, chosen)
    for name, why in beside.items():
        log.info("%s: %s is trained too: %s", space.dataset, name, why)
    latent = [name for name in (*beside, *chosen) if name in params.latent_variants]
    plain = [name for name in (*beside, *chosen) if name not in latent]
    for name in plain:
        _train(params, space, settings, name, progress)
    if latent:
        embed.run(params, space)
        cluster.run(params, space)
    for name in latent:
        _train(params, space, settings, name, progress)
    board = leaderboard.run(params, space)
    registration = register.run(params, space, settings)
    page = str(space.leaderboard / "leaderboard.html")
    return PipelineReport(
        dataset=space.dataset,
        trained=[*plain, *latent],
        required=beside,
        skipped=skipped,
        leaderboard=board,
        leaderboard_page=page,
        registration=registration,
    )


def _train(params: Params, space: Workspace, settings: Settings, variant: str, progress: bool) -> None:
    train.run(params, space, settings, variant, progress)
    evaluate.run(params, space, settings, variant)


def required(params: Params, space: Workspace, chosen: Sequence[str], prepared: bool = True) -> dict[str, str]:
    """What is made beside the chosen variants, and why: the gate's baseline, and the one whose vectors are clustered.

    A baseline that the dataset cannot have is left out, and the gate's decision says so. Raises UserError where the
    gate's policy cannot be read.
    """
    found: dict[str, str] = {}
    baseline = Policy.load(space.promotion_policy).baseline
    if (
        baseline is not None
        and baseline.variant not in chosen
        and baseline.variant in params.variants
        and why_refused(params, space, baseline.variant, prepared) is None
    ):
        found[baseline.variant] = "the gate asks every champion to beat it"
    latent = [name for name in (*found, *chosen) if name in params.latent_variants]
    if latent and params.clustering.embeddings not in chosen:
        found[params.clustering.embeddings] = f"the item clusters of {', '.join(latent)} are made of its item vectors"
    return found


def choose(
    params: Params, space: Workspace, variants: Sequence[str] | None, prepared: bool = True
) -> tuple[list[str], dict[str, str]]:
    """The variants to train, with their options checked, and those left out with the reason."""
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for name in params.variants if variants is None else variants:
        variant = params.variant(name, space.dataset)
        model_config(variant.model, variant.options)
        reason = why_refused(params, space, name, prepared)
        if reason is None:
            chosen.append(name)
        elif variants is None:
            skipped[name] = reason
        else:
            raise UserError(
                f"{space.dataset}: variant {name!r} cannot be trained on it: {reason}; leave it out of --variants"
            )
    if not chosen:
        raise UserError(f"{space.dataset}: no variant to train; name some with --variants or add them to params.yaml")
    return chosen, skipped
