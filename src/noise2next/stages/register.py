"""Register: the best variant by validation becomes challenger; the gate decides whether it becomes champion."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from noise2next.config import Frozen, Params, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.evaluation.report import EvaluationReport
from noise2next.models.artifact import read_card
from noise2next.registry.packaging import CONTENT, Package, check_golden
from noise2next.registry.promotion import Decision, Judged, Policy, Version, decide
from noise2next.registry.rejudge import judge_package, remarks, shared_items
from noise2next.registry.tracking import resume_run
from noise2next.registry.versions import ModelRegistry, ModelVersion, as_version
from noise2next.stages.evaluate import current_data_version
from noise2next.stages.leaderboard import stale
from noise2next.training.device import choose_device
from noise2next.workspace import MANIFEST, Workspace, read_json, verify, write_json, writing

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
    latency_ms: float
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
        outcome = _offer(params, space, settings, policy, registry, chosen)
        fallback = policy.baseline.variant if policy.baseline else None
        if outcome["champion"] is None and fallback in scores and fallback != chosen:
            # nobody is left without an answer: the baseline serves until something beats it
            instead = _offer(params, space, settings, policy, registry, fallback)
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
    log.info("%s", report.summary)
    return report


def _candidates(params: Params, space: Workspace, metric: str) -> tuple[dict[str, float], dict[str, str]]:
    """Validation metric of each variant that may stand on the leaderboard, and why the others may not."""
    dataset, data_version = params.dataset(space.dataset), current_data_version(space)
    scores: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, variant in params.variants.items():
        if variant.noise is not None:
            left_out[name] = "it is an experiment with noise in what it reads"
            continue
        if not (space.evaluation(name) / MANIFEST).is_file():
            left_out[name] = "it has not been evaluated"
            continue
        evaluation = _evaluation(space, name)
        reason = stale(evaluation, space, dataset, data_version, metric)
        if reason is None:
            scores[name] = evaluation.metrics["valid"][metric].mean
        else:
            left_out[name] = reason
    return scores, left_out


def _offer(
    params: Params, space: Workspace, settings: Settings, policy: Policy, registry: ModelRegistry, chosen: str
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
            "latency_ms": float(champion.tags["latency_ms"]),
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
    decision = _gate(params, space, settings, policy, registry, version, champion, split)
    registry.keep(decision)
    if decision.promoted:
        registry.promote(version, champion)
    holder = version if decision.promoted else champion
    return {
        "summary": _summary(registry, decision, holder),
        "version": str(version.version),
        "promoted": decision.promoted,
        "unchanged": False,
        "champion": None if holder is None else str(holder.version),
        "decision": decision,
        "latency_ms": float(version.tags["latency_ms"]),
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


def _gate(
    params: Params,
    space: Workspace,
    settings: Settings,
    policy: Policy,
    registry: ModelRegistry,
    version: ModelVersion,
    champion: ModelVersion | None,
    split: Split,
) -> Decision:
    """Compare on the test window, user by user; the champion is judged anew on today's users."""
    rival, said = _rival(params, settings, registry, champion, split)
    baseline, unsaid = _baseline(params, space, policy, version)
    return decide(
        policy,
        as_version(version),
        _judged(space, version.tags["variant"]),
        float(version.tags["latency_ms"]),
        float(version.tags["size_mb"]),
        rival,
        baseline,
        [*said, *unsaid],
    )


def _rival(
    params: Params, settings: Settings, registry: ModelRegistry, champion: ModelVersion | None, split: Split
) -> tuple[tuple[Version, Judged] | None, list[str]]:
    """The champion on today's test window, and what must be said of the comparison."""
    if champion is None:
        return None, ["there was no champion to compare with"]
    try:
        package = Package.load(registry.fetch(champion) / CONTENT, settings.device)
    except UserError as error:
        return None, [f"champion version {champion.version} could not be compared: {error}"]
    if not shared_items(package, split):
        return None, [f"champion version {champion.version} knows none of today's items, so it was not compared"]
    judged = judge_package(package, split, params.evaluation, choose_device(settings.device))
    return (as_version(champion), judged), remarks(package, split)


def _baseline(
    params: Params, space: Workspace, policy: Policy, version: ModelVersion
) -> tuple[Judged | None, list[str]]:
    """The policy's baseline, unless it is the challenger itself or has no current evaluation."""
    if policy.baseline is None or policy.baseline.variant == version.tags["variant"]:
        return None, []
    name = policy.baseline.variant
    if name not in _candidates(params, space, policy.metric)[0]:
        return None, [f"{name} has no evaluation on this data, so it was not compared"]
    return _judged(space, name), []


def _evaluation(space: Workspace, variant: str) -> EvaluationReport:
    return EvaluationReport.model_validate(read_json(space.evaluation(variant) / "report.json"))


def _judged(space: Workspace, variant: str) -> Judged:
    """What the evaluator wrote of a variant on the test window."""
    place = space.evaluation(variant)
    verify(place)
    table = pq.read_table(place / "per_user.parquet").filter(pc.field("part") == "test")
    metrics = {name: table.column(name).to_numpy() for name in table.column_names if name not in ("part", "user")}
    return Judged(tuple(table.column("user").to_pylist()), metrics, _evaluation(space, variant).lists["test"])


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
