"""Ask the gate about a registered version: gather what it must know, on today's window, and keep what it says."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from noise2next.config import Params, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.evaluation.report import EvaluationReport
from noise2next.registry.latency import side_by_side
from noise2next.registry.packaging import CONTENT, Package, check_golden
from noise2next.registry.promotion import Contender, Decision, Judged, Occasion, Policy, decide, refuse
from noise2next.registry.record import render
from noise2next.registry.rejudge import judge_package, remarks, shared_items
from noise2next.registry.versions import ModelRegistry, ModelVersion, as_version, now, who
from noise2next.stages.evaluate import current_data_version
from noise2next.stages.leaderboard import stale
from noise2next.training.device import choose_device
from noise2next.workspace import MANIFEST, Workspace, read_json, verify

log = logging.getLogger(__name__)


def ask(
    params: Params, space: Workspace, settings: Settings, registry: ModelRegistry, version: ModelVersion
) -> tuple[Decision, str]:
    """May `version` take the champion's place? (the decision, where its page is kept)

    Both are judged on the same users of the prepared test window, the champion anew. Raises UserError where nothing is
    prepared or the policy cannot be read. The caller holds `registry.alone()`.
    """
    policy = Policy.load(space.promotion_policy)
    dataset = params.dataset(space.dataset)
    split = Split.load(space.prepared, dataset.split, dataset.has_clock)
    occasion = Occasion(
        dataset=space.dataset,
        data_version=current_data_version(space),
        split=f"{split.config.kind}, history {split.config.history}",
        by=who(),
        when=now(),
    )
    decision = _decide(params, space, settings, registry, version, policy, occasion, split)
    return decision, registry.keep(decision, render(decision))


def _decide(
    params: Params,
    space: Workspace,
    settings: Settings,
    registry: ModelRegistry,
    version: ModelVersion,
    policy: Policy,
    occasion: Occasion,
    split: Split,
) -> Decision:
    try:
        package = check_golden(registry.fetch(version))
    except UserError as error:
        return refuse(policy, occasion, as_version(version), "integrity", str(error))
    if not shared_items(package, split):
        fault = f"version {version.version} knows none of today's items, so it cannot be judged"
        return refuse(policy, occasion, as_version(version), "items", fault)
    rival, said = _rival(registry, registry.at("champion"), split)
    taken, *beside = side_by_side([package] if rival is None else [package, rival[1]])
    judged = _evaluated(params, space, version.tags["variant"], version.tags["fingerprint"], split)
    challenger = Contender(
        as_version(version),
        judged or _judge(params, settings, package, split),
        taken,
        float(version.tags["size_mb"]),
        _rolled_back(registry, version),
    )
    champion = None
    if rival is not None:
        holder, its = rival
        again = _judge(params, settings, its, split)
        champion = Contender(as_version(holder), again, beside[0], float(holder.tags["size_mb"]))
    baseline, unsaid = _baseline(params, space, policy, version, split)
    return decide(
        policy, occasion, challenger, champion, baseline, [*remarks(package, split, "challenger"), *said, *unsaid]
    )


def _rival(
    registry: ModelRegistry, champion: ModelVersion | None, split: Split
) -> tuple[tuple[ModelVersion, Package] | None, list[str]]:
    """The champion and its package, where it can be compared, and what must be said of the comparison."""
    if champion is None:
        return None, ["there was no champion to compare with"]
    try:
        package = Package.load(registry.fetch(champion) / CONTENT)
    except UserError as error:
        return None, [f"champion version {champion.version} could not be compared: {error}"]
    if not shared_items(package, split):
        return None, [f"champion version {champion.version} knows none of today's items, so it was not compared"]
    return (champion, package), remarks(package, split, "champion")


def _rolled_back(registry: ModelRegistry, version: ModelVersion) -> str | None:
    """A person took it back: the same weights do not return by the next retraining."""
    event = registry.rolled_back(version)
    if event is None:
        return None
    return (
        f"version {version.version} was rolled back by {event.by} on {event.when[:10]} ({'; '.join(event.why)}); only "
        f"`noise2next promote --version {version.version} --force` brings it back"
    )


def _judge(params: Params, settings: Settings, package: Package, split: Split) -> Judged:
    return judge_package(package, split, params.evaluation, choose_device(settings.device))


def _baseline(
    params: Params, space: Workspace, policy: Policy, version: ModelVersion, split: Split
) -> tuple[Judged | None, list[str]]:
    """The policy's baseline, unless it is the challenger itself or has no current evaluation."""
    if policy.baseline is None or policy.baseline.variant == version.tags["variant"]:
        return None, []
    judged = _evaluated(params, space, policy.baseline.variant, None, split)
    if judged is None:
        return None, [f"{policy.baseline.variant} has no evaluation on this data, so it was not compared"]
    return judged, []


def _evaluated(params: Params, space: Workspace, variant: str, fingerprint: str | None, split: Split) -> Judged | None:
    """What the evaluator wrote of a variant on the test window; None unless it is current and of these weights."""
    evaluation = evaluation_of(space, variant)
    if evaluation is None or fingerprint not in (None, evaluation.fingerprint):
        return None
    if not_comparable(params, space, evaluation) is not None:
        return None
    place = space.evaluation(variant)
    verify(place)
    table = pq.read_table(place / "per_user.parquet").filter(pc.field("part") == "test")
    metrics = {name: table.column(name).to_numpy() for name in table.column_names if name not in ("part", "user")}
    users = tuple(table.column("user").to_pylist())
    places = np.asarray([split.users.index[user] for user in users])
    return Judged(users, split.known("test").lengths[places], metrics, evaluation.lists["test"])


def evaluation_of(space: Workspace, variant: str) -> EvaluationReport | None:
    """What the evaluator said of a variant; None where it has not been evaluated."""
    place = space.evaluation(variant)
    if not (place / MANIFEST).is_file():
        return None
    return EvaluationReport.model_validate(read_json(place / "report.json"))


def not_comparable(params: Params, space: Workspace, evaluation: EvaluationReport) -> str | None:
    """Why an evaluation may not stand beside today's, or None."""
    dataset = params.dataset(space.dataset)
    return stale(evaluation, space, dataset, current_data_version(space), params.trainer.metric)
