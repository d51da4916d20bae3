"""Register: the best variant by validation becomes challenger; the gate decides whether it becomes champion."""

from __future__ import annotations

import logging
from typing import Any

from noise2next.config import Frozen, Params, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.models.artifact import read_card
from noise2next.registry.packaging import check_golden
from noise2next.registry.promotion import Decision, Policy
from noise2next.registry.record import render
from noise2next.registry.tracking import resume_run
from noise2next.registry.versions import ModelRegistry, ModelVersion
from noise2next.stages import gate
from noise2next.workspace import Workspace, read_json, write_json, writing

log = logging.getLogger(__name__)


class RegistrationReport(Frozen):
    """What was offered, what the gate said, and who is champion now."""

    dataset: str
    model: str  # the registered model's name
    summary: str
    chosen: str  # the variant with the best validation metric
    metric: str  # which one, and its value
    validation: float
    left_out: dict[str, str]  # variant: why it could not be chosen
    version: str  # the challenger's
    promoted: bool
    unchanged: bool  # the champion has these very weights already: nothing was registered
    champion: str | None  # version of the champion after this
    decision: Decision | None  # None when unchanged
    record: str | None  # where the decision's page is kept in the registry; None when unchanged
    latency_ms: float | None  # as the gate measured it; None where it was never asked, or had no need to measure
    size_mb: float


def run(params: Params, space: Workspace, settings: Settings) -> RegistrationReport:
    """Offer the best variant of `space.dataset` to the registry; without any champion then the policy's baseline.

    Raises UserError where no variant has been evaluated on the prepared data, the policy cannot be read, or a package
    does not come back as it was sent; the champion is then as it was.
    """
    policy = Policy.load(space.promotion_policy)
    metric = params.trainer.metric
    scores, left_out = _candidates(params, space, metric)
    if not scores:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UserError(
            f"{space.artifacts}: no variant can be registered ({reasons}); run `noise2next train` and `evaluate`"
        )
    chosen = min(scores, key=lambda name: (-scores[name], name))
    registry = ModelRegistry(settings, space)
    with registry.alone():
        outcome = _offer(params, space, settings, registry, chosen)
        fallback = policy.baseline.variant if policy.baseline else None
        if outcome["champion"] is None and fallback in scores and fallback != chosen:
            # nobody is left without an answer: the baseline serves until something beats it
            instead = _offer(params, space, settings, registry, fallback)
            outcome = {**instead, "summary": f"{outcome['summary']}; {instead['summary']}"}
    report = RegistrationReport(
        dataset=space.dataset,
        model=registry.name,
        chosen=chosen,
        metric=metric,
        validation=scores[chosen],
        left_out=left_out,
        **outcome,
    )
    with writing(space.registration) as folder:
        write_json(folder / "report.json", report.model_dump(mode="json"))
        if report.decision is not None:
            (folder / "decision.html").write_text(render(report.decision), encoding="utf-8")
    log.info("%s", report.summary)
    return report


def _candidates(params: Params, space: Workspace, metric: str) -> tuple[dict[str, float], dict[str, str]]:
    """Validation metric of each variant that may stand on the leaderboard, and why the others may not."""
    scores: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, variant in params.variants.items():
        if variant.noise is not None:
            left_out[name] = "it is an experiment with noise in what it reads"
            continue
        evaluation = gate.evaluation_of(space, name)
        if evaluation is None:
            left_out[name] = "it has not been evaluated"
            continue
        reason = gate.not_comparable(params, space, evaluation)
        if reason is None:
            scores[name] = evaluation.metrics["valid"][metric].mean
        else:
            left_out[name] = reason
    return scores, left_out


def _offer(
    params: Params, space: Workspace, settings: Settings, registry: ModelRegistry, chosen: str
) -> dict[str, Any]:
    """Make `chosen` challenger unless it is champion already, ask the gate, move the aliases."""
    card = read_card(space.model(chosen))
    champion = registry.at("champion")
    if champion is not None and champion.tags["fingerprint"] == card.fingerprint and _whole(registry, champion):
        return {
            "summary": f"champion of {registry.name} stays version {champion.version} ({chosen}): unchanged",
            "version": str(champion.version),
            "promoted": False,
            "unchanged": True,
            "champion": str(champion.version),
            "decision": None,
            "record": None,
            "latency_ms": float(champion.tags["latency_ms"]) if "latency_ms" in champion.tags else None,
            "size_mb": float(champion.tags["size_mb"]),
        }
    dataset = params.dataset(space.dataset)
    split = Split.load(space.prepared, dataset.split, dataset.has_clock)
    version = registry.find(card.fingerprint)
    if version is None or not _whole(registry, version):
        run_id = read_json(space.model(chosen) / "report.json")["run_id"]
        with resume_run(settings, space, run_id) as run:
            version = registry.publish(space.model(chosen), split, dataset, run.run_id)
    registry.point("challenger", version.version)
    decision, record = gate.ask(params, space, settings, registry, version)
    if decision.promoted:
        registry.promote(version, champion, "promotion", decision.occasion.by, decision.reasons)
    holder = version if decision.promoted else champion
    return {
        "summary": _summary(registry, decision, holder),
        "version": str(version.version),
        "promoted": decision.promoted,
        "unchanged": False,
        "champion": None if holder is None else str(holder.version),
        "decision": decision,
        "record": record,
        "latency_ms": next((check.observed for check in decision.checks if check.name == "latency_ms"), None),
        "size_mb": float(version.tags["size_mb"]),
    }


def _whole(registry: ModelRegistry, version: ModelVersion) -> bool:
    """Does the version still come back as it was registered?"""
    try:
        check_golden(registry.fetch(version))
    except UserError as error:
        log.warning("%s version %s: %s", registry.name, version.version, error)
        return False
    return True


def _summary(registry: ModelRegistry, decision: Decision, holder: ModelVersion | None) -> str:
    """One sentence for the person."""
    offered = decision.challenger
    if decision.promoted:
        over = f" over version {decision.champion.version}" if decision.champion else ""
        return f"{registry.name} version {offered.version} ({offered.variant}) is champion{over}"
    stays = (
        "there is no champion"
        if holder is None
        else f"version {holder.version} ({holder.tags['variant']}) stays champion"
    )
    name = f"{registry.name} version {offered.version} ({offered.variant})"
    return f"{name} was not promoted: {decision.reasons[0]}; {stays}"
