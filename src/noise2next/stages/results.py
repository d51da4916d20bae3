"""A table of results as documents: JSON with every run, a page to read, and plots."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noise2next.config import EvaluationConfig, Frozen, TrainerConfig, Weighting
from noise2next.evaluation.charts import duration, two_digits
from noise2next.evaluation.report import DrawsReport
from noise2next.evaluation.significance import intervals, paired_difference, resampled_means
from noise2next.stages import result_plots
from noise2next.stages.tables import UNITS, Form, Table, column
from noise2next.workspace import Reproduction, write_atomically, write_json

log = logging.getLogger(__name__)

SHORT = {"recall": "R", "ndcg": "N", "hit_rate": "HR"}
CODE = "authors' code"
MOST_GOALS = 2  # that a cell spells out


class Run(Frozen):
    """One row under one seed. `test` has every metric in every form, `valid` with seen items left out."""

    key: str
    variant: str
    seed: int
    simple: bool  # a closed form, learned without gradient steps
    test: dict[str, float]
    valid: dict[str, float]
    lists: dict[str, float]
    draws: DrawsReport | None = None  # of a stochastic model; None also where an older run was not asked
    parameters: int
    seconds_training: float
    seconds_evaluation: float
    peak_memory_mb: float  # of training with its validation
    epochs: float  # trained; a budget may end within one
    best_epoch: float
    stopped: Literal["patience", "epochs", "budget", "solved"]
    curve: list[tuple[float, float]]  # epochs trained, the main metric on validation
    device: str
    precision: str
    threads: int
    torch: str
    code_version: str

    def within(self, budget_seconds: float | None) -> bool:
        """Whether `budget_seconds` would add nothing to it."""
        return self.stopped != "budget" or (budget_seconds is not None and budget_seconds <= self.seconds_training)


class ResultRow(Frozen):
    """One row over its seeds. Figures are shares by column; an interval is over users, of their means over seeds."""

    variant: str
    model: str
    weighting: Weighting
    options: dict[str, Any]
    trainer: dict[str, Any]  # what the row changes
    simple: bool
    seeds: list[int]
    mean: dict[str, float]
    deviation: dict[str, float] | None  # over seeds, n - 1; None: one run
    interval: dict[str, tuple[float, float]]
    valid: float  # the main metric, mean over seeds
    references: dict[str, Any] | None
    target: dict[str, dict[str, float]] | None
    reached: bool | None  # None: no target, or too few seeds to tell
    parameters: int
    seconds_training: float  # as the next, mean over seeds
    seconds_evaluation: float
    peak_memory_mb: float  # largest over seeds
    epochs: float
    stopped: dict[int, float]  # seed: how many epochs the budget was enough for
    runs: list[Run]


class Ahead(Frozen):
    """A simple row that is ahead of a learned one in a column: the gain as a share, and its interval over users."""

    simple: str
    learned: str
    column: str
    gain: float
    low: float | None  # None, as `high`: the two were judged on different machines, so their users cannot be paired
    high: float | None


class Results(Frozen):
    """The table."""

    table: str
    title: str
    dataset: str
    files: dict[str, str]
    data_version: str
    split: str
    history: str
    forms: list[Form]
    metrics: list[str]
    main: str
    unit: Literal["share", "percent"]
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    python: str
    rows: list[ResultRow]
    untrained: list[str]  # the table's rows without a run
    ahead: list[Ahead]
    notes: list[str]


# --- from runs to rows ------------------------------------------------------------------------------------------------


def summary(
    table: Table, place: Reproduction, runs: Mapping[str, Sequence[Run]], version: str, before: Results | None
) -> Results:
    """Every row that has a run; runs by row, in the table's order.

    A row of the page as it was `before` stays where `runs` do not cover it, and where it was trained as the table now
    says: it comes from another machine, or from a longer budget. The caller has left out all others.
    """
    told = {row.variant: row for row in before.rows if not covered(row, runs)} if before else {}
    for name in told.keys() & runs.keys():
        log.warning("%s: %s stays as the page has it, with more seeds or more epochs than here", table.name, name)
    users = {name: _per_user(table, place, some) for name, some in runs.items() if name not in told}
    rows = [
        _row(table, name, told[name].runs, told[name].interval)
        if name in told
        else _row(table, name, runs[name], _intervals(table, users[name]))
        for name in table.rows
        if name in told or name in users
    ]
    return Results(
        table=table.name,
        title=table.title,
        dataset=table.dataset_name,
        files={table.file: table.sha256},
        data_version=version,
        split=table.dataset.split.kind,
        history=table.dataset.split.history,
        forms=list(table.forms),
        metrics=list(table.metrics),
        main=table.main,
        unit=table.unit,
        trainer=table.trainer,
        evaluation=table.evaluation,
        python=platform.python_version(),
        rows=rows,
        untrained=[name for name in table.rows if name not in told and name not in users],
        ahead=[
            one
            for form in table.forms
            for one in _simple_ahead(table, rows, users, before.ahead if before else [], column(table.main, form))
        ],
        notes=list(table.notes),
    )


def covered(row: ResultRow, runs: Mapping[str, Sequence[Run]]) -> bool:
    """Whether `runs` have every seed of the row, each trained about as far as there.

    About: the same minutes are not the same batches.
    """
    here = {run.seed: run for run in runs.get(row.variant, [])}
    return all(
        run.seed in here and (here[run.seed].stopped != "budget" or here[run.seed].epochs >= 0.9 * run.epochs)
        for run in row.runs
    )


def _per_user(table: Table, place: Reproduction, runs: Sequence[Run]) -> NDArray[np.float64]:
    """[users, columns] on test, each user's mean over the runs."""
    tables = [pq.read_table(place.users(run.key)).sort_by("user") for run in runs]
    values = np.array([[one.column(name).to_numpy() for name in table.columns] for one in tables], dtype=np.float64)
    mean: NDArray[np.float64] = values.mean(axis=0)
    return mean.T


def _intervals(table: Table, users: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    resampled = resampled_means(users, table.evaluation.bootstrap_samples, seed=1)
    ends = intervals(users, resampled, table.evaluation.confidence)
    return {column: (one.low, one.high) for column, one in zip(table.columns, ends, strict=True)}


def _row(table: Table, name: str, runs: Sequence[Run], interval: Mapping[str, tuple[float, float]]) -> ResultRow:
    variant, known = table.entries[name], table.rows[name]
    scores = {column: np.array([run.test[column] for run in runs]) for column in table.columns}
    mean = {column: float(values.mean()) for column, values in scores.items()}
    target = {"at_least": table.flat(known.at_least), "digits": table.flat(known.digits)}
    references = {"published": table.flat(known.published), "source": known.source, CODE: known.authors_code}
    return ResultRow(
        variant=name,
        model=variant.model,
        weighting=variant.weighting,
        options=dict(variant.options),
        trainer=dict(variant.trainer),
        simple=runs[0].simple,
        seeds=[run.seed for run in runs],
        mean=mean,
        deviation={column: float(v.std(ddof=1)) for column, v in scores.items()} if len(runs) > 1 else None,
        interval=dict(interval),
        valid=float(np.mean([run.valid[table.main] for run in runs])),
        references={key: value for key, value in references.items() if value} or None,
        target={kind: values for kind, values in target.items() if values} or None,
        reached=_reached(table, target, mean, runs),
        parameters=runs[0].parameters,
        seconds_training=float(np.mean([run.seconds_training for run in runs])),
        seconds_evaluation=float(np.mean([run.seconds_evaluation for run in runs])),
        peak_memory_mb=max(run.peak_memory_mb for run in runs),
        epochs=float(np.mean([run.epochs for run in runs])),
        stopped={run.seed: run.epochs for run in runs if run.stopped == "budget"},
        # the curve of a run that came to its own end says nothing that the table does not
        runs=[run if run.stopped == "budget" else run.model_copy(update={"curve": []}) for run in runs],
    )


def _reached(
    table: Table, target: Mapping[str, Mapping[str, float]], mean: Mapping[str, float], runs: Sequence[Run]
) -> bool | None:
    if not any(target.values()) or (not runs[0].simple and len(runs) < table.seeds):
        return None
    unit = UNITS[table.unit]
    digits = target["digits"].items()
    return all(mean[name] >= value for name, value in target["at_least"].items()) and all(
        round(mean[name] * unit, 4) == round(value * unit, 4) for name, value in digits
    )


def _simple_ahead(
    table: Table,
    rows: Sequence[ResultRow],
    users: Mapping[str, NDArray[np.float64]],
    before: Sequence[Ahead],
    name: str,
) -> list[Ahead]:
    """For each learned row the best simple one under the same kind of time weights, where it is ahead in column `name`.

    Paired over users where both were judged here, else as it was told `before` of the same two figures.
    """
    known = {(one.simple, one.learned): one for one in before if one.column == name}
    at, found = table.columns.index(name), []
    for row in rows:
        simple = [one for one in rows if one.simple and one.weighting.kind == row.weighting.kind]
        if row.simple or not simple:
            continue
        best = max(simple, key=lambda one: one.mean[name])
        gain = best.mean[name] - row.mean[name]
        low = high = None
        if best.variant in users and row.variant in users:
            paired = paired_difference(
                users[best.variant][:, at],
                users[row.variant][:, at],
                table.evaluation.bootstrap_samples,
                table.evaluation.confidence,
                seed=1,
            )
            low, high = paired.low, paired.high
        elif (then := known.get((best.variant, row.variant))) and math.isclose(then.gain, gain, abs_tol=1e-5):
            low, high = then.low, then.high
        if gain > 0:
            found.append(Ahead(simple=best.variant, learned=row.variant, column=name, gain=gain, low=low, high=high))
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def write(found: Results, place: Reproduction) -> None:
    """The table's documents in docs/results/."""
    write_json(place.result(".json"), found.model_dump(mode="json"))
    write_atomically(place.result(".svg"), result_plots.rows(found))
    curves = result_plots.curves(found)
    if curves is None:
        place.result("-curves.svg").unlink(missing_ok=True)
    else:
        write_atomically(place.result("-curves.svg"), curves)
    write_atomically(place.result(".md"), page(found).encode())


def page(found: Results) -> str:
    """The table for reading; equal results give equal bytes."""
    lines = [
        f"# {found.title}",
        "",
        f"Generated by `noise2next reproduce {found.table}`; all numbers are of the official test part"
        + (", in percent." if found.unit == "percent" else "."),
        *(
            ["Each model is judged twice: with what a user has seen in the ranking, and without."]
            * (len(found.forms) > 1)
        ),
        "",
        *_figures(found),
        "",
        f"![Each row's {found.main} with its interval; a tick is the published figure]({found.table}.svg)",
        "",
        "## Read with the numbers",
        "",
        *(f"- {note}" for note in (*_conventions(found), *found.notes)),
        "",
        *_behind(found),
        *_draws(found),
        *_stopped(found),
        *_untrained(found),
        "## What it took",
        "",
        *_cost(found),
        "",
        *_seeds(found),
        "## Settings",
        "",
        *(f"- {row.variant}: `{json.dumps(_settings(row))}`" for row in found.rows),
        f"- all: `{json.dumps(found.trainer.model_dump(mode='json', exclude={'checkpoint_seconds'}))}`",
        *(f"- data: {name} sha256 {digest}" for name, digest in found.files.items()),
        f"- prepared split: {found.split}, history {found.history}, version {found.data_version}",
        f"- code: {_all(found, 'code_version')}; torch {_all(found, 'torch')}; Python {found.python}",
        "",
    ]
    return "\n".join(lines)


def _figures(found: Results) -> list[str]:
    """The rows, each followed by what was published of it."""
    columns = [(metric, form) for form in found.forms for metric in found.metrics]
    main = _short(found.main)
    head = ["model", *(_short(metric) + _mark(found, form) for metric, form in columns)]
    head += [f"{main} over seeds", f"{main}, {found.evaluation.confidence:.0%} of users", CODE, "goal", "reached"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    names = [column(metric, form) for metric, form in columns]
    for row in found.rows:
        lines.append(f"| {' | '.join(_cells(found, row, names))} |")
        published = (row.references or {}).get("published")
        if published:
            figures = [f"_{_shown(found, published[name])}_" if name in published else "" for name in names]
            lines.append(f"| {' | '.join(['_published_', *figures, *[''] * 5])} |")
    return lines


def _cells(found: Results, row: ResultRow, names: Sequence[str]) -> list[str]:
    low, high = row.interval[found.main]
    over = "deterministic"
    if not row.simple:
        spread = f" ± {_shown(found, row.deviation[found.main])}" if row.deviation else ""
        over = f"{_shown(found, row.mean[found.main])}{spread} ({len(row.seeds)})"
    return [
        row.variant + (" *" if row.stopped else ""),
        *(_shown(found, row.mean[name]) for name in names),
        over,
        f"{_shown(found, low)} to {_shown(found, high)}",
        (row.references or {}).get(CODE, ""),
        ", ".join(_goals(found, row.target or {})),
        {None: "too few seeds" if row.target else "", True: "yes", False: "**missed**"}[row.reached],
    ]


def _goals(found: Results, target: Mapping[str, Mapping[str, float]]) -> list[str]:
    exact, least = target.get("digits", {}), target.get("at_least", {})
    told = [f"{_short(name)} {_shown(found, value)}" for name, value in exact.items()]
    if len(told) > MOST_GOALS:
        told = [f"{len(told)} figures to the digit"]
    return [*told, *(f"{_short(name)} at least {_shown(found, value)}" for name, value in least.items())]


def _conventions(found: Results) -> list[str]:
    """What the numbers are, told alike for every table."""
    several = len(found.forms) > 1
    sources = {
        row.variant: row.references["source"] for row in found.rows if row.references and "source" in row.references
    }
    by_source: dict[str, list[str]] = {}
    for name, source in sources.items():
        by_source.setdefault(source, []).append(name)
    fixed = [row.variant for row in found.rows if _epochs_are_fixed(row)]
    return [
        "Full ranking over all items. A row's best epoch is chosen on validation "
        f"{found.main} with what a user has seen left out of the ranking.",
        *([f"{', '.join(fixed)}: trained for a fixed number of epochs, of which the last is judged."] * bool(fixed)),
        *(
            [
                "Without a mark, what a user has seen before is left out of the test lists; "
                "`unmasked` it stays in: the same model, ranked twice."
            ]
            if several
            else ["What a user has seen before is left out of the test lists."]
        ),
        "Recall divides by all test items of a user, ndcg's ideal has min(k, test items) places; equal scores rank the "
        "lower item first.",
        f"A deviation is over seeds (n - 1); an interval is over users (bootstrap, "
        f"{found.evaluation.bootstrap_samples:,} samples, {found.evaluation.confidence:.0%}) of each user's mean over "
        "seeds. Models without seeds are deterministic.",
        "Seconds, memory, and the precision where settings leave it at `auto`, are of the machine that a row was "
        "trained on and of the code of that day, which need not be the same for all rows.",
        *(f"Published figures of {', '.join(names)}: {source}." for source, names in by_source.items()),
    ]


def _epochs_are_fixed(row: ResultRow) -> bool:
    return "epochs" in row.trainer and row.trainer["epochs"] == row.trainer.get("evaluate_every")


def _behind(found: Results) -> list[str]:
    """Which learned rows a simple one is ahead of, in each form the best of the simple ones."""
    columns = {column(found.main, form): _short(found.main) + _mark(found, form) for form in found.forms}
    ahead = {(one.learned, one.column): one for one in found.ahead}
    rows = [
        f"| {row.variant} | {' | '.join(_gain(found, ahead.get((row.variant, name))) for name in columns)} |"
        for row in found.rows
        if any((row.variant, name) in ahead for name in columns)
    ]
    if not rows:
        return []
    return [
        "## Where a simple baseline is ahead",
        "",
        f"By how much {found.main}, with a {found.evaluation.confidence:.0%} interval over users (bootstrap, paired); "
        "of the simple rows the best with the same kind of time weights.",
        "",
        f"| learned | {' | '.join(columns.values())} |",
        f"|{'---|' * (1 + len(columns))}",
        *rows,
        "",
    ]


def _gain(found: Results, ahead: Ahead | None) -> str:
    if ahead is None:
        return "none is"
    told = f"{ahead.simple} by {_shown(found, ahead.gain)}"
    if ahead.low is None or ahead.high is None:
        return f"{told} (judged on different machines, so not paired)"
    chance = "" if ahead.low > 0 else ", may be chance"
    return f"{told} ({_shown(found, ahead.low)} to {_shown(found, ahead.high)}{chance})"


def _draws(found: Results) -> list[str]:
    """What the lists of several draws are good for, a line for each stochastic run that was asked."""
    runs = [(row, run, run.draws) for row in found.rows for run in row.runs if run.draws is not None]
    if not runs:
        return []
    head = ["model", "draws", "users", "ndcg of one draw", "ndcg by share", "gain", "pairs hit, share above 90%"]
    head += ["pairs hit, share up to 50%", "AUC of the share", "calibration error", "replaced", "coverage of one draw"]
    head += ["coverage by share", "coverage of all draws"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row, run, drawn in runs:
        metric = f"ndcg@{drawn.cutoff}"
        gain = drawn.gain[metric]
        cells = [
            row.variant + (f", seed {run.seed}" if len(row.runs) > 1 else ""),
            f"{drawn.draws}",
            f"{drawn.users:,}",
            f"{_shown(found, drawn.one_draw[metric])} (@{drawn.cutoff})",
            _shown(found, drawn.by_share[metric]),
            f"{_shown(found, gain.mean)} ({_shown(found, gain.low)} to {_shown(found, gain.high)})",
            of_pairs(drawn.hits(0.9, 1.0)),
            of_pairs(drawn.hits(0.0, 0.5)),
            "" if drawn.auc is None else f"{drawn.auc:.3f}",
            f"{drawn.calibration_error:.2%}",
            f"{drawn.diversity:.2%}",
            *(f"{drawn.coverage[name]:.2%}" for name in ("one draw", "by share", "all draws")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        "## What draws are good for",
        "",
        "Of the rows that draw, those that were asked for their draws: over some users of the test part, chosen by the "
        "run's seed, with what they have seen left out, the list by the share of the draws that list an item, against "
        f"a single draw's. The gain has a {found.evaluation.confidence:.0%} interval over these users (bootstrap, "
        "paired). A pair is of a user and an item that some draw lists, and is hit where the user took the item. AUC: "
        "the chance that of a pair that is hit and one that is not the first has the larger share, a tie counted half. "
        "Calibration error: the mean distance between the share of a pair and the part of such pairs that is hit, "
        "large wherever few items of a list can be. Replaced: the part of a list that another draw replaces. Coverage: "
        "of the catalogue, by the lists of these users; all draws together are that many lists a user.",
        "",
        *lines,
        "",
    ]


def of_pairs(hits: tuple[int, int]) -> str:
    """`0.29% (9 of 3,072)`"""
    taken, pairs = hits
    return f"{taken / pairs:.2%} ({taken:,} of {pairs:,})" if pairs else ""


def _epoch(at: float) -> str:
    return f"{round(at, 2):g}"


def _stopped(found: Results) -> list[str]:
    stopped = [row for row in found.rows if row.stopped]
    if not stopped:
        return []
    told = [
        f"- {row.variant}: "
        + ", ".join(f"seed {seed} after epoch {_epoch(epoch)}" for seed, epoch in row.stopped.items())
        + f" ({duration(row.seconds_training)} of training)"
        for row in stopped
    ]
    return [
        "## Stopped by the budget (*)",
        "",
        "These rows had not come to their own end; where their checkpoints lie, and under the same code, a larger "
        "`--budget` goes on from there.",
        "",
        *told,
        "",
        f"![{found.main} on validation by epoch]({found.table}-curves.svg)",
        "",
    ]


def _untrained(found: Results) -> list[str]:
    if not found.untrained:
        return []
    return [
        "## Not trained yet",
        "",
        f"{', '.join(found.untrained)}. `noise2next reproduce {found.table} --variants NAME` trains one.",
        "",
    ]


def _cost(found: Results) -> list[str]:
    head = ["model", "learned numbers", "training", "evaluation", "peak memory", "epochs", "device"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in found.rows:
        devices = sorted({f"{run.device}, {run.precision}, {run.threads} threads" for run in row.runs})
        cells = [
            row.variant,
            f"{row.parameters:,}",
            duration(row.seconds_training),
            duration(row.seconds_evaluation),
            f"{row.peak_memory_mb:,.0f} MiB",
            two_digits(row.epochs) if row.epochs else "",
            "; ".join(devices),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seeds(found: Results) -> list[str]:
    told = [
        f"- {row.variant}: "
        + ", ".join(
            f"{run.seed}: {_shown(found, run.test[found.main])} (best epoch {_epoch(run.best_epoch)})"
            for run in row.runs
        )
        for row in found.rows
        if not row.simple
    ]
    return [f"## {found.main} of each seed", "", *told, ""] if told else []


def _settings(row: ResultRow) -> dict[str, Any]:
    told: dict[str, Any] = {"model": row.model, "options": row.options, "trainer": row.trainer}
    if row.weighting.kind != "uniform":
        told["weighting"] = row.weighting.model_dump(mode="json")
    return {key: value for key, value in told.items() if value}


def _all(found: Results, field: str) -> str:
    return ", ".join(sorted({getattr(run, field) for row in found.rows for run in row.runs}))


def _shown(found: Results, value: float) -> str:
    return f"{value * UNITS[found.unit]:.4f}"


def _mark(found: Results, form: Form) -> str:
    return " unmasked" if form == "unmasked" else ""


def _short(metric: str) -> str:
    """`R@20` for `recall@20`."""
    name, at, rest = metric.partition("@")
    return SHORT.get(name, name) + at + rest
