"""Drift: what comes in, what is shown and what comes of it, since the champion was made.

The champion knows its log up to an instant. What is newer is held against what came before it; the lists of a newer
model against the champion's; and what was recommended against what was taken afterwards. A champion's own lists are of
the histories in its package and stay what they were on the day of its promotion, so they are not compared with
themselves.
"""

from __future__ import annotations

import logging
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import Dataset, Frozen, Params, Settings
from noise2next.data.recent import IngestedLog, Recent, Span
from noise2next.data.tables import connect
from noise2next.errors import UserError
from noise2next.evaluation import drift, outcome
from noise2next.evaluation.drift import Finding, unjudged
from noise2next.evaluation.outcome import OutcomeReport
from noise2next.evaluation.ranking import rows_within
from noise2next.evaluation.significance import resampled_means
from noise2next.models.artifact import read_card
from noise2next.registry.packaging import CONTENT, Package
from noise2next.registry.versions import ModelRegistry, ModelVersion
from noise2next.stages import recommend
from noise2next.workspace import MANIFEST, Workspace, read_json, require, verify, write_json, writing

log = logging.getLogger(__name__)


class StretchReport(Frozen):
    """One stretch of the log that is compared; `until` is its last instant."""

    after: datetime
    until: datetime
    rows: int
    users: int


class DriftReport(Frozen):
    """`drifted` where any finding is alarming; `reasons` are the sentences of those."""

    dataset: str
    data_version: str  # of the raw files that were ingested
    champion: str
    variant: str
    drifted: bool
    reasons: list[str]
    findings: list[Finding]
    stretches: list[StretchReport]  # oldest first: the last is the newest, the one before it what it is held against
    outcomes: list[OutcomeReport]  # oldest table first

    @property
    def judged(self) -> bool:
        """Whether there was enough for an answer to any question."""
        return any(one.value is not None and one.limit is not None for one in self.findings)


def run(params: Params, space: Workspace, settings: Settings) -> DriftReport:
    """Judge the ingested log of `space.dataset` against its champion and write `space.drift`: report.json.

    Raises UserError where nothing was ingested or there is no champion. What cannot be judged is a finding that says
    why, and no alarm.
    """
    verify(require(space.ingested, f"ingest --dataset {space.dataset}"))
    registry = ModelRegistry(settings, space)
    champion = registry.champion()
    package = Package.load(registry.fetch(champion) / CONTENT, settings.device)
    with tempfile.TemporaryDirectory() as place, connect(params.engine, Path(place)) as backend:
        ingested = IngestedLog(backend, space.ingested / "interactions.parquet", params.dataset(space.dataset))
        stretches, moved = _input(params, ingested, package)
        outcomes, came = _outcomes(params, space, ingested, champion)
    findings = [*moved, _prediction(params, space, settings, registry, champion, package), *came]
    reasons = [one.sentence for one in findings if one.alarmed]
    report = DriftReport(
        dataset=space.dataset,
        data_version=str(read_json(space.ingested / "report.json")["data_version"]),
        champion=str(champion.version),
        variant=champion.tags["variant"],
        drifted=bool(reasons),
        reasons=reasons,
        findings=findings,
        stretches=stretches,
        outcomes=outcomes,
    )
    with writing(space.drift) as folder:
        write_json(folder / "report.json", report.model_dump(mode="json"))
    quiet = "nothing has drifted" if report.judged else "nothing could be judged"
    log.info("%s: %s", space.dataset, "; ".join(reasons) or quiet)
    return report


# --- input ------------------------------------------------------------------------------------------------------------


def _input(params: Params, ingested: IngestedLog, package: Package) -> tuple[list[StretchReport], list[Finding]]:
    until = package.about.known_until
    why = _no_clock(ingested.dataset, until)
    if why is None and until is not None:
        whole = ingested.span(until)
        why = _nothing_to_compare(whole, until)
        if why is None and whole is not None:
            config = params.drift
            found = ingested.recent(until, whole, config.days, config.stretches)
            why, stretches = drift.too_small(found, config), _described(found)
            if why is None:
                return stretches, drift.compare(found, config, params.seed)
            return stretches, [unjudged(name, "input", why) for name in drift.QUESTIONS]
    return [], [unjudged(name, "input", str(why)) for name in drift.QUESTIONS]


def _no_clock(dataset: Dataset, until: int | None) -> str | None:
    if not dataset.has_clock:
        return "the log has no clock, so what has come since cannot be told from what was there; name a time column"
    if until is None:
        return "the champion's package does not say up to when it knows the log; register a model again"
    return None


def _nothing_to_compare(whole: Span | None, until: int) -> str | None:
    if whole is None or not whole.later:
        return f"nothing in the ingested log is newer than what the champion knows ({_moment(until).isoformat()})"
    if whole.first > until:
        return (
            f"the ingested log begins after what the champion knows ({_moment(until).isoformat()}), so there is "
            "nothing to hold it against; keep older rows in the log"
        )
    return None


def _described(found: Recent) -> list[StretchReport]:
    return [
        StretchReport(
            after=_moment(int(start)),
            until=_moment(int(start) + found.length),
            rows=int(found.rows[at]),
            users=found.n_users(at),
        )
        for at, start in enumerate(found.starts)
    ]


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


# --- prediction -------------------------------------------------------------------------------------------------------


def _prediction(
    params: Params,
    space: Workspace,
    settings: Settings,
    registry: ModelRegistry,
    champion: ModelVersion,
    package: Package,
) -> Finding:
    """The mean common part of a newer model's and the champion's top k, on the same users with the same histories.

    Only a newer model of the champion's own variant tells what the newer data does; one of another variant lists other
    things whatever the data, so its overlap is told and alarms nobody.
    """
    try:
        newer = _newer(params, space, settings, registry, champion)
        if newer is None or _knows_less(newer, package):
            return unjudged("overlap", "prediction", "there is no newer model than the champion")
        k, config = params.recommendations.k, params.drift
        lists = _both_lists(newer, package, config.most_users, k, params.evaluation.memory_mb, params.seed)
    except UserError as error:
        return unjudged("overlap", "prediction", str(error))
    if len(lists) < config.least_users:
        return unjudged(
            "overlap",
            "prediction",
            f"both models know only {len(lists):,} users, and drift.least_users is {config.least_users:,}",
        )
    common = np.array([len(set(one) & set(other)) / k for one, other in lists])
    strangers = np.array([len(set(one) & set(lists[at - 1][1])) / k for at, (one, _) in enumerate(lists)])
    resampled = resampled_means(common[:, None], params.evaluation.bootstrap_samples, params.seed)
    highest = float(np.quantile(resampled, config.level))
    variant = newer.artifact.card.variant.name
    own = variant == package.artifact.card.variant.name
    alarmed = own and highest < config.overlap
    said = f"overlap: {common.mean():.1%} of the champion's top {k} is in that of the newer {variant} too"
    if alarmed:
        said += (
            f", limit {config.overlap:.0%}: the newer data makes it another recommender; compare the two on the "
            "leaderboard before the newer one is promoted"
        )
    elif not own:
        said += ", which is of another variant, so that says nothing of the data"
    else:
        said += f", limit {config.overlap:.0%}"
    return Finding(
        name="overlap",
        about="prediction",
        value=float(common.mean()),
        chance=float(strangers.mean()),  # what two users' lists have in common
        limit=config.overlap if own else None,
        alarmed=alarmed,
        sentence=said,
    )


def _newer(
    params: Params, space: Workspace, settings: Settings, registry: ModelRegistry, champion: ModelVersion
) -> Package | None:
    """The champion's own variant as it was trained last, if that is another model; else the challenger, if any."""
    place, variant = space.model(champion.tags["variant"]), champion.tags["variant"]
    if (place / MANIFEST).is_file() and read_card(place).fingerprint != champion.tags["fingerprint"]:
        return recommend.open_model(params, space, settings, variant).package
    challenger = registry.at("challenger")
    if challenger is None or challenger.version == champion.version:
        return None
    return Package.load(registry.fetch(challenger) / CONTENT, settings.device)


def _knows_less(package: Package, champion: Package) -> bool:
    """Whether it ends before the champion's log does, as a model that somebody has gone on from, or back to."""
    until, champions = package.about.known_until, champion.about.known_until
    return until is not None and champions is not None and until < champions


def _both_lists(
    newer: Package, champion: Package, users: int, k: int, memory_mb: int, seed: int
) -> list[tuple[list[str], list[str]]]:
    """Lists of some users, drawn by seed, for the history that the newer model knows; unknown ones are left out."""
    active = np.flatnonzero(newer.histories.lengths)
    chosen = np.sort(np.random.default_rng(seed).permutation(active)[:users])
    size = rows_within(memory_mb, max(len(one.artifact.items) for one in (newer, champion)))
    found: list[tuple[list[str], list[str]]] = []
    for block in (chosen[start : start + size] for start in range(0, len(chosen), size)):
        histories = [_raw_history(newer, user) for user in block]
        questions = [one.ask_histories(histories) for one in (newer, champion)]
        answers = [one.answer(asked, k) for one, asked in zip((newer, champion), questions, strict=True)]
        found += [(one.items, other.items) for one, other in zip(*answers, strict=True) if one.known and other.known]
    return found


def _raw_history(package: Package, user: np.int64) -> list[str]:
    ids, histories = package.artifact.items.ids, package.histories
    return [ids[item] for item in histories.items[histories.indptr[user] : histories.indptr[user + 1]]]


# --- outcome ----------------------------------------------------------------------------------------------------------


def _outcomes(
    params: Params, space: Workspace, ingested: IngestedLog, champion: ModelVersion
) -> tuple[list[OutcomeReport], list[Finding]]:
    """Of every kept table that has later events; a finding is made only of the one that the champion made."""
    reports: list[OutcomeReport] = []
    mine: list[Finding] = []
    tables, broken = _tables(space)
    for table in tables:
        serving = table.version == str(champion.version)
        found = _came(params, ingested, table)
        if isinstance(found, str):
            mine += [unjudged("outcome", "outcome", found)] if serving else []
            continue
        report, finding = _judged(params, table, serving, found)
        reports.append(report)
        mine += [finding] if serving else []
    why = next(iter(broken), f"no table is kept; `noise2next recommend --dataset {space.dataset} --all` makes one")
    return reports, mine or [unjudged("outcome", "outcome", why)]


def _tables(space: Workspace) -> tuple[list[recommend.KeptReport], list[str]]:
    """The kept tables, oldest first, and what is wrong with those that cannot be read."""
    found, broken = [], []
    for place in space.kept_recommendations():
        try:
            found.append(recommend.kept(place))
        except UserError as error:
            broken.append(str(error))
    return sorted(found, key=lambda one: one.made), broken


def _came(params: Params, ingested: IngestedLog, table: recommend.KeptReport) -> dict[str, NDArray[np.float32]] | str:
    """What the table's users took later, as `outcome.judge` has it, or why that says nothing yet."""
    dataset = ingested.dataset
    if table.known_until is None:
        return _no_clock(dataset, None) or "the table does not say up to when it knows the log; make it again"
    after = ingested.aftermath(table.known_until, params.drift.most_users)
    of_interest = pc.field("user").isin(pc.unique(after.later.column("user").combine_chunks()))
    lists = pq.read_table(table.path, columns=["user", "rank", "item"], filters=of_interest)
    found = outcome.judge(lists, after, table.k, dataset.split.mask_seen)
    users = 0 if found is None else len(found["recall"])
    if found is None or users < params.drift.least_users:
        return f"{users:,} users of the table have later events, and drift.least_users is {params.drift.least_users:,}"
    return found


def _judged(
    params: Params, table: recommend.KeptReport, serving: bool, found: dict[str, NDArray[np.float32]]
) -> tuple[OutcomeReport, Finding]:
    """Alarming only where recall is below what the test window promised, and the lead over popularity with it."""
    kept = 1 - params.drift.decay
    offline = table.offline
    led = offline is not None and bool(offline.popularity)
    asked = kept * offline.recall / offline.popularity if led and offline and offline.popularity else 1.0
    named, highest = outcome.interval_ends(
        found,
        asked,
        params.evaluation.bootstrap_samples,
        params.evaluation.confidence,
        params.drift.level,
        params.seed,
    )
    promised = None if offline is None else kept * offline.recall
    fallen = promised is None or highest < promised
    alarmed = serving and fallen and named["lead"].high < 0
    report = OutcomeReport(
        model_version=str(table.version),
        data_version=table.data_version,
        variant=table.variant,
        made=table.made,
        serving=serving,
        k=table.k,
        users=len(found["recall"]),
        recall=named["recall"],
        hit_rate=named["hit_rate"],
        popularity=named["popularity"],
        offline_recall=None if offline is None else offline.recall,
        offline_popularity=None if offline is None else offline.popularity,
        asked=asked,
        lead=named["lead"],
    )
    finding = Finding(
        name="outcome",
        about="outcome",
        value=named["recall"].mean,
        before=report.offline_recall,
        limit=promised,
        alarmed=alarmed,
        sentence=_said(report, fallen) + ("; its lead has gone: retrain" if alarmed else ""),
    )
    return report, finding


def _said(report: OutcomeReport, fallen: bool) -> str:
    offline = "" if report.offline_recall is None else f", {report.offline_recall:.4f} on its test window"
    control = "" if report.offline_popularity is None else f", {report.offline_popularity:.4f} there"
    said = (
        f"outcome: recall@{report.k} {report.recall.mean:.4f} ({report.recall.low:.4f} to {report.recall.high:.4f}) of "
        f"{report.users:,} users' later events{offline}; popularity {report.popularity.mean:.4f}{control}"
    )
    if fallen and report.offline_recall is not None and report.lead.high >= 0:
        said += "; popularity has fallen with it, so the events have changed and not the model's merit"
    return said
