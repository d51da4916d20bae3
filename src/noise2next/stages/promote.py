"""What a person does about the champion: ask the gate again, overrule it, go back, and read what has been decided."""

from __future__ import annotations

import logging
import time

from noise2next.config import Frozen, Params, Settings
from noise2next.errors import UserError
from noise2next.registry.promotion import Decision
from noise2next.registry.versions import ModelRegistry, ModelVersion, Move, Past, who
from noise2next.workspace import Workspace

log = logging.getLogger(__name__)


class PromotionReport(Frozen):
    """What the gate said of a version, and who is champion now."""

    dataset: str
    model: str  # the registered model's name
    summary: str
    version: str
    variant: str
    promoted: bool
    forced: bool  # against the gate
    unchanged: bool  # it is champion already: nothing was asked
    reason: str | None  # why it was forced
    champion: str | None  # version of the champion after this
    previous: str | None
    decision: Decision | None  # None when unchanged
    record: str | None  # where the decision's page is kept in the registry; None when unchanged


class RollbackReport(Frozen):
    """Who is champion again, and in whose place."""

    dataset: str
    model: str
    summary: str
    version: str  # champion now
    variant: str
    replaced: str  # `previous` now: another rollback brings it back
    reason: str | None
    seconds: float


class HistoryReport(Frozen):
    """All decisions and moves, oldest first."""

    dataset: str
    model: str
    champion: str | None
    events: list[Past]


def run(
    params: Params, space: Workspace, settings: Settings, version: str | None, force: bool, reason: str | None
) -> PromotionReport:
    """Ask the gate about the challenger, or about `version`, on today's window; promote it if every check passes.

    `force` promotes it although the gate refuses, for the `reason` that is kept with it, unless the version is not what
    was registered. Raises UserError then, where the two do not come together, and where there is no such version.
    """
    from noise2next.stages import gate  # here, since a rollback waits for nothing that it does not need

    reason = (reason or "").strip() or None
    if force and reason is None:
        raise UserError("promote: --force needs --reason TEXT; it is kept with the version")
    if reason is not None and not force:
        raise UserError("promote: --reason belongs to --force; the gate gives its own reasons")
    registry = ModelRegistry(settings, space)
    with registry.alone():
        offered = _offered(registry, version)
        champion = registry.at("champion")
        if champion is not None and champion.version == offered.version:
            return _report(registry, space, offered, f"version {offered.version} is champion already")
        decision, record = gate.ask(params, space, settings, registry, offered)
        broken = next((one for one in decision.checks if one.name == "integrity" and not one.passed), None)
        if force and broken is not None:
            raise UserError(f"{broken.sentence}; nothing was moved, for a broken package is never forced")
        forced = force and not decision.promoted
        if decision.promoted or forced:
            said = [reason, *decision.reasons] if forced and reason else decision.reasons
            what: Move = "forced promotion" if forced else "promotion"
            registry.promote(offered, champion, what, decision.occasion.by, said)
        summary = _summary(offered, champion, decision, reason if forced else None)
        return _report(registry, space, offered, summary, decision, record, forced, reason)


def rollback(space: Workspace, settings: Settings, reason: str | None) -> RollbackReport:
    """Make `previous` champion again, once its package is verified; the champion it replaces becomes `previous`.

    Raises UserError, and moves nothing, where there is no previous champion or its package is not sound.
    """
    began = time.monotonic()
    registry = ModelRegistry(settings, space)
    reason = (reason or "").strip() or None
    now, before = registry.roll_back(who(), [reason] if reason else ["no reason was given"])
    summary = f"{registry.name} version {now.version} ({now.tags['variant']}) is champion again, in place of version "
    report = RollbackReport(
        dataset=space.dataset,
        model=registry.name,
        summary=f"{summary}{before.version} ({before.tags['variant']})",
        version=str(now.version),
        variant=now.tags["variant"],
        replaced=str(before.version),
        reason=reason,
        seconds=time.monotonic() - began,
    )
    log.info("%s", report.summary)
    return report


def history(space: Workspace, settings: Settings) -> HistoryReport:
    """What has been decided about the dataset's versions, and every move of its champion."""
    registry = ModelRegistry(settings, space)
    champion = registry.at("champion")
    return HistoryReport(
        dataset=space.dataset,
        model=registry.name,
        champion=None if champion is None else str(champion.version),
        events=registry.history(),
    )


def _offered(registry: ModelRegistry, version: str | None) -> ModelVersion:
    """The version of that number, or the challenger."""
    if version is not None:
        return registry.version(version)
    found = registry.at("challenger")
    if found is None:
        raise UserError(f"{registry.name}: there is no challenger; `noise2next register` offers one")
    return found


def _report(
    registry: ModelRegistry,
    space: Workspace,
    offered: ModelVersion,
    summary: str,
    decision: Decision | None = None,
    record: str | None = None,
    forced: bool = False,
    reason: str | None = None,
) -> PromotionReport:
    champion, previous = registry.at("champion"), registry.at("previous")
    log.info("%s: %s", registry.name, summary)
    return PromotionReport(
        dataset=space.dataset,
        model=registry.name,
        summary=f"{registry.name} {summary}",
        version=str(offered.version),
        variant=offered.tags["variant"],
        promoted=decision is not None and (decision.promoted or forced),
        forced=forced,
        unchanged=decision is None,
        reason=reason,
        champion=None if champion is None else str(champion.version),
        previous=None if previous is None else str(previous.version),
        decision=decision,
        record=record,
    )


def _summary(offered: ModelVersion, champion: ModelVersion | None, decision: Decision, reason: str | None) -> str:
    """One sentence for the person."""
    name = f"version {offered.version} ({offered.tags['variant']})"
    over = "" if champion is None else f" over version {champion.version}"
    if decision.promoted:
        return f"{name} is champion{over}"
    if reason is not None:
        return f"{name} is champion{over} by force: {reason}; the gate said: {decision.reasons[0]}"
    stays = "there is no champion" if champion is None else f"version {champion.version} stays champion"
    return f"{name} was not promoted: {decision.reasons[0]}; {stays}"
