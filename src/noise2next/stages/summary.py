"""What a retraining came to, as Markdown: for a job's summary, a pull request, or a message to colleagues."""

from __future__ import annotations

import re

from noise2next.config import Frozen, Params, Settings
from noise2next.data.validation_report import ValidationReport
from noise2next.errors import UserError
from noise2next.evaluation.report import LeaderboardReport, LeaderboardRow
from noise2next.evaluation.significance import Interval
from noise2next.registry.versions import ModelRegistry
from noise2next.stages.ingest import IngestReport, log_files, log_version
from noise2next.stages.register import RegistrationReport
from noise2next.stages.validate import refusal
from noise2next.workspace import MANIFEST, Workspace, digest, read_json

TOP = 10  # rows of the leaderboard
DIGITS = 12  # of a hash
BESIDE = ("ndcg@20", "mrr@20")  # metrics in the table beside the main one, where they were measured


class SummaryReport(Frozen):
    """`stopped`: why the log as it lies there never came before the gate; None where it did, whatever the gate said."""

    dataset: str
    stopped: str | None
    markdown: str


def run(params: Params, space: Workspace, settings: Settings, reason: str | None = None) -> SummaryReport:
    """Tell of the last retraining of `space.dataset`; `reason` says who or what asked for it. Nothing is written.

    The records of an earlier log, which a retraining that stopped early leaves behind, are not taken for this one's.
    """
    stopped = _stopped(params, space)
    facts = {"asked for by": _code(reason)} if reason else {}
    facts |= _log(space) if (space.ingested / MANIFEST).is_file() else {}
    if stopped is None:
        board, registration = _board(space), _registration(space)
        facts |= _champions(registration, board)
        verdict, rest = registration.summary, [*_gate(registration), "", *_leaderboard(board)]
    else:
        verdict, rest = f"Stopped before the gate: {stopped}", []
        facts["champion"] = _standing(space, settings)
    lines = [f"## Retraining of {_code(space.dataset)}", "", f"**{_text(verdict)}**", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", *rest] if rest else []
    return SummaryReport(dataset=space.dataset, stopped=stopped, markdown="\n".join(lines) + "\n")


# --- how far it came --------------------------------------------------------------------------------------------------


def _stopped(params: Params, space: Workspace) -> str | None:
    """The first step that has not been done with this very log, and why where that is known."""
    why = "`noise2next {} --dataset " + space.dataset + "` says why"
    ingest = _ingest(space)
    if ingest is None or ingest.data_version != log_version(log_files(params, space)):
        return f"the log was not read; {why.format('ingest')}"
    validation = _validation(space)
    if validation is None or validation.ingested != digest(space.ingested):
        return f"the log was not held against its contract; {why.format('validate')}"
    if not validation.success:
        return f"the contract is broken: {refusal(validation, space)}"
    prepared = read_json(space.prepared / "report.json") if (space.prepared / MANIFEST).is_file() else None
    if prepared is None or prepared["rows"]["ingested"] != ingest.accepted:  # it does not say of which rows it is made
        return f"the log was not prepared; {why.format('prepare')}"
    board = _board(space) if (space.leaderboard / MANIFEST).is_file() else None
    if board is None or board.data_version != prepared["data_version"]:
        return f"no model was judged on this log; {why.format('leaderboard')}"
    if not (space.registration / MANIFEST).is_file() or not _of(_registration(space), board):
        return f"the gate was not asked about these models; {why.format('register')}"
    return None


def _of(registration: RegistrationReport, board: LeaderboardReport) -> bool:
    """Was it a model of this table that was offered?"""
    found = [row.valid.get(registration.metric) for row in board.rows if row.variant == registration.chosen]
    return any(value is not None and value.mean == registration.validation for value in found)


def _ingest(space: Workspace) -> IngestReport | None:
    if not (space.ingested / MANIFEST).is_file():
        return None
    return IngestReport.model_validate(read_json(space.ingested / "report.json"))


def _validation(space: Workspace) -> ValidationReport | None:
    if not (space.validation / MANIFEST).is_file():
        return None
    return ValidationReport.model_validate(read_json(space.validation / "report.json"))


def _board(space: Workspace) -> LeaderboardReport:
    return LeaderboardReport.model_validate(read_json(space.leaderboard / "leaderboard.json"))


def _registration(space: Workspace) -> RegistrationReport:
    return RegistrationReport.model_validate(read_json(space.registration / "report.json"))


# --- what is said -----------------------------------------------------------------------------------------------------


def _log(space: Workspace) -> dict[str, str]:
    report = IngestReport.model_validate(read_json(space.ingested / "report.json"))
    span = f", {report.time_from[:10]} to {report.time_to[:10]}" if report.time_from and report.time_to else ""
    return {
        "log": f"{report.accepted:,} of {report.read:,} rows accepted, {report.quarantined:,} in quarantine{span}",
        "log version": _code(report.data_version[:DIGITS]),
    }


def _champions(registration: RegistrationReport, board: LeaderboardReport) -> dict[str, str]:
    """Before and after; a champion that could not be compared is told of by the gate's sentences."""
    decision, holder = registration.decision, f"version {registration.champion}"
    if decision is None:
        before = after = f"{holder} ({_text(registration.chosen)})"
    else:
        rival = decision.champion
        before = "none to compare with" if rival is None else f"version {rival.version} ({_text(rival.variant)})"
        after = f"{holder} ({_text(decision.challenger.variant)})" if decision.promoted else before
        if not decision.promoted and rival is None:
            after = "none" if registration.champion is None else holder
    return {"data version": _code(board.data_version[:DIGITS]), "champion before": before, "champion after": after}


def _standing(space: Workspace, settings: Settings) -> str:
    """Who is champion in the registry all the same."""
    try:
        champion = ModelRegistry(settings, space).at("champion")
    except UserError as error:
        return f"as it was; the registry could not be asked: {_text(str(error))}"
    if champion is None:
        return "none, as before"
    return f"version {champion.version} ({_text(champion.tags['variant'])}), as before"


def _gate(registration: RegistrationReport) -> list[str]:
    decision = registration.decision
    if decision is None:
        return ["### The gate", "", "The best model has the champion's own weights, so there was nothing to decide."]
    offered = decision.challenger
    verdict = "was promoted" if decision.promoted else "was not promoted"
    return [
        "### The gate",
        "",
        f"Version {offered.version} ({_text(offered.variant)}) {verdict}, judged on {decision.users:,} users:",
        "",
        *(f"- {_text(one)}" for one in decision.reasons),
    ]


def _leaderboard(board: LeaderboardReport) -> list[str]:
    """The best rows on test, and the one that validation chose wherever it stands."""
    main = board.main_metric
    beside = [name for name in BESIDE if name != main and name in board.rows[0].metrics]
    ranked = list(enumerate(board.rows, 1))
    shown = [(place, row) for place, row in ranked if place <= TOP or row.variant == board.chosen]
    cut = f", {len(shown)} of {len(ranked)} rows" if len(shown) < len(ranked) else ""
    return [
        "### Leaderboard",
        "",
        f"| | variant | {' | '.join([main, *beside])} |",
        "|---:|---|" + "---|" * (1 + len(beside)),
        *(_line(place, row, [main, *beside], row.variant == board.chosen) for place, row in shown),
        "",
        f"Test, {board.users['test']:,} users, {board.protocol}{cut}; in brackets the {board.confidence:.0%} bootstrap "
        "interval over users; validation chose the row in bold.",
        *(f"- {_text(f'{name} is not in the table: {why}')}" for name, why in board.left_out.items()),
    ]


def _line(place: int, row: LeaderboardRow, metrics: list[str], chosen: bool) -> str:
    name = f"**{_text(row.variant)}**" if chosen else _text(row.variant)
    return f"| {place} | {name} | {' | '.join(_spread(row.metrics[metric]) for metric in metrics)} |"


def _spread(value: Interval) -> str:
    return f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def _text(words: str) -> str:
    """Words as they are: nothing in them is markup, a mention or a cell's end."""
    plain = re.sub(r"([\\`*\[\]<>|#~]|\b_|_\b)", r"\\\1", " ".join(words.split()))
    return re.sub(r"(?<!\w)@", "&#64;", plain)


def _code(words: str) -> str:
    """A code span, in which nothing is markup."""
    return f"`{' '.join(words.replace('`', ' ').split())}`".replace("|", r"\|")
