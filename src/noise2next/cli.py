"""The command line: one command a stage, and `run` for the whole way. Each calls `stages.<name>` and prints its report.

With `--json` standard output carries one JSON document and nothing else; logs and progress go to standard error.
Exit codes: 0 done, 2 something the person can mend (one sentence on standard error), 1 a fault of ours.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from noise2next.config import Params, Settings, load_params
from noise2next.errors import UserError
from noise2next.workspace import Workspace, write_atomically

if TYPE_CHECKING:
    from noise2next.config import Frozen
    from noise2next.stages.promote import PromotionReport
    from noise2next.stages.register import RegistrationReport

app = typer.Typer(
    help="Diffusion recommenders, from a raw interaction log to a promoted model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
datasets = typer.Typer(help="Take logs in: add your own, fetch a public one, write the sample.", no_args_is_help=True)
app.add_typer(datasets, name="datasets")

DatasetName = Annotated[str, typer.Option("--dataset", "-d", help="A dataset's name in params.yaml.")]
VariantName = Annotated[str, typer.Option("--variant", "-v", help="A variant's name in params.yaml.")]
NotTheChampion = Annotated[str | None, typer.Option("--variant", "-v", help="A trained variant, not the champion.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of params.yaml, as trainer.epochs=5.")
]
SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Where the dataset cannot have the variant, leave an empty folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class LogFormat(StrEnum):
    """How `datasets add` may be told to read a log."""

    delimited = "delimited"
    json = "json"
    parquet = "parquet"
    sequences = "sequences"
    diffrec = "diffrec"
    diffurec = "diffurec"


class SplitKind(StrEnum):
    """The splits by name."""

    official = "official"
    official_train = "official_train"
    per_user_ratio = "per_user_ratio"
    leave_one_out = "leave_one_out"
    global_time = "global_time"
    random = "random"


class PublicDataset(StrEnum):
    """What `datasets fetch` knows."""

    ml_100k = "ml-100k"
    ml_1m = "ml-1m"
    ml_latest_small = "ml-latest-small"


REMEDIES = {
    errno.EACCES: "give yourself the right to it, or name another place",
    errno.EPERM: "give yourself the right to it, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "make room on that disk",
    errno.ENOENT: "make it, or name another place",
    errno.EXDEV: "name a place on the same disk",
    errno.ENOTDIR: "a folder is needed there; move the file away, or name another place",
    errno.EISDIR: "a file is needed there; move the folder away, or name another place",
}


def main() -> None:
    """The entry point: a UserError, and a disk that refuses, become one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        _refuse(f"{error.filename or 'a disk'}: {error.strerror}; {remedy}")


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {_plain(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(2)


# --- the whole way ----------------------------------------------------------------------------------------------------


@app.command()
def run(
    dataset: DatasetName = "sample",
    variants: Annotated[
        str | None,
        typer.Option(help="Names with commas between; the gate's baseline is added. When left out: all."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """From the raw log to a champion in the registry: every stage in turn, then the leaderboard."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import pipeline

    report = pipeline.run(params, space, settings, _names(variants), progress=_interactive() and not as_json)
    if as_json:
        _print_json(report)
        return
    _print_leaderboard(report.leaderboard)
    out = Console()
    for name, reason in report.required.items():
        out.print(f"trained too: {name}: {reason}", highlight=False)
    for name, reason in report.skipped.items():
        out.print(f"left out: {name}: {reason}", highlight=False)
    out.print(f"[bold]{_plain(report.registration.summary)}[/]", highlight=False, soft_wrap=True)
    out.print(f"leaderboard page: {report.leaderboard_page}", highlight=False, soft_wrap=True)


# --- one command a stage ----------------------------------------------------------------------------------------------


@app.command()
def ingest(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Read the raw log; put what cannot be read into quarantine, with line and reason."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import ingest as stage

    _show(stage.run(params, space), as_json)


@app.command()
def validate(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Hold the ingested log against its contract; a breach stops here with exit code 2."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import validate as stage

    _show(stage.run(params, space), as_json)


@app.command()
def prepare(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Filter, order, split and index; check that nothing leaks from the future."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import prepare as stage

    _show(stage.run(params, space), as_json)


@app.command()
def train(
    variant: VariantName,
    dataset: DatasetName = "sample",
    skip_refused: SkipRefused = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Train one variant; an interrupted run goes on where it was, a finished one is not repeated."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import refused
    from noise2next.stages import train as stage

    if skip_refused and (left_out := refused.run(params, space, variant, space.model(variant))):
        return _show(left_out, as_json)
    _show(stage.run(params, space, settings, variant, progress=_interactive() and not as_json), as_json)


@app.command()
def embed(
    dataset: DatasetName = "sample",
    skip_refused: SkipRefused = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write the item vectors of the trained variant that clustering.embeddings names, by raw item id."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import embed as stage
    from noise2next.stages import refused

    if skip_refused and (left_out := refused.run(params, space, params.clustering.embeddings, space.embedded)):
        return _show(left_out, as_json)
    _show(stage.run(params, space), as_json)


@app.command()
def cluster(
    dataset: DatasetName = "sample",
    skip_refused: SkipRefused = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Group the items by their vectors: what latent variants are trained on."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import cluster as stage
    from noise2next.stages import refused

    if skip_refused and (left_out := refused.run(params, space, params.clustering.embeddings, space.clustered)):
        return _show(left_out, as_json)
    _show(stage.run(params, space), as_json)


@app.command()
def evaluate(
    variant: VariantName,
    dataset: DatasetName = "sample",
    skip_refused: SkipRefused = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Judge one trained variant on validation and test by full ranking."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import evaluate as stage
    from noise2next.stages import refused

    if skip_refused and (left_out := refused.run(params, space, variant, space.evaluation(variant))):
        return _show(left_out, as_json)
    _show(stage.run(params, space, settings, variant), as_json)


@app.command()
def leaderboard(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """What beat what, with intervals; also written as a page."""
    params, space, _ = _open(dataset, overrides)

    from noise2next.stages import leaderboard as stage

    report = stage.run(params, space)
    if as_json:
        _print_json(report)
        return
    _print_leaderboard(report)
    Console().print(f"page: {space.leaderboard / 'leaderboard.html'}", highlight=False, soft_wrap=True)


@app.command()
def register(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Offer the best variant (by validation) as challenger; the gate decides on the champion."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import register as stage

    _show_gate(stage.run(params, space, settings), as_json)


@app.command()
def promote(
    dataset: DatasetName = "sample",
    version: Annotated[
        str | None, typer.Option(help="A version of the registered model; the challenger if out.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although the gate refuses; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why it is forced; kept with the version.")] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Ask the gate again about the challenger, or about a version, on today's window; or overrule it."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import promote as stage

    _show_gate(stage.run(params, space, settings, version, force, reason), as_json)


@app.command()
def rollback(
    dataset: DatasetName = "sample",
    reason: Annotated[str | None, typer.Option(help="Why; kept in the history.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again; a second rollback undoes the first."""
    _, space, settings = _open(dataset, [])

    from noise2next.stages import promote as stage

    _show(stage.rollback(space, settings, reason), as_json)


@app.command()
def history(dataset: DatasetName = "sample", as_json: AsJson = False) -> None:
    """Every decision, promotion and rollback of the dataset's champion, oldest first."""
    _, space, settings = _open(dataset, [])

    from noise2next.stages import promote as stage

    report = stage.history(space, settings)
    if as_json:
        _print_json(report)
        return
    table = Table("when (UTC)", "what", "from", "to", "by", "why", box=None, pad_edge=False)
    for event in report.events:
        refused = event.what == "decision" and not event.promoted
        told = "refused" if refused else "let through" if event.what == "decision" else event.what
        table.add_row(
            event.when[:19].replace("T", " "),
            told if event.done else f"{told}, which did not come about",
            event.champion or "none",
            f"{event.version} ({event.variant})",
            _plain(event.by),
            _plain(event.why[0]),
        )
    Console().print(table)
    Console().print(f"champion now: {report.champion or 'none'}", highlight=False)


@app.command()
def summary(
    dataset: DatasetName = "sample",
    reason: Annotated[str | None, typer.Option(help="Who or what asked for the retraining.")] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write; standard output when left out.")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Tell as Markdown what the last retraining came to; exit code 2, and why, where it never came before the gate."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import summary as stage

    report = stage.run(params, space, settings, reason)
    if out is None:
        sys.stdout.write(report.markdown)
    else:
        write_atomically(out, report.markdown.encode())
    if report.stopped is not None:
        raise UserError(f"{dataset}: {report.stopped}")


@app.command()
def targets(
    dataset: DatasetName = "sample",
    variants: Annotated[
        str | None, typer.Option(help="Names with commas between; all that the dataset allows.")
    ] = None,
) -> None:
    """Name the stages that `dvc repro` is to be given for some variants, one a line."""
    params, space, _ = _open(dataset, [])

    from noise2next.stages import targets as stage

    for name in stage.run(params, space, _names(variants)).stages:
        sys.stdout.write(f"{name}\n")


@app.command()
def recommend(
    dataset: DatasetName = "sample",
    user: Annotated[str | None, typer.Option(help="A user's id in the log.")] = None,
    history: Annotated[
        str | None,
        typer.Option(help="Item ids with commas between, oldest first: any history; an id with a comma in quotes."),
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Every user: a table that is kept, or the file --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --all: a Parquet file of your own.")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many items; 10 when left out.")] = None,
    variant: NotTheChampion = None,
    draws: Annotated[
        int | None, typer.Option(min=2, help="Order by the share of so many draws that list an item; not with --all.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Recommend to a known user, to any history, or to everyone; from the champion unless a variant is named."""
    if sum((user is not None, history is not None, everyone)) != 1:
        raise UserError("recommend: give exactly one of --user ID, --history ID,ID,... and --all")
    if out is not None and not everyone:
        raise UserError("recommend: --out FILE.parquet is for everyone's lists; give --all with it")
    if everyone and out is None and (variant is not None or k is not None):
        raise UserError(
            "recommend: --all keeps the champion's table, with as many items as recommendations.k in params.yaml says; "
            "leave --variant and -k out, or name a file of your own with --out FILE.parquet"
        )
    if everyone and draws is not None:
        raise UserError("recommend: --draws looks at one list; take it with --user or --history, or leave it out")
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import recommend as stage

    if everyone and out is None:
        return _show(stage.run(params, space, settings), as_json)
    many = k or 10
    if everyone and out is not None:
        return _show(stage.for_all(params, space, settings, out, many, variant), as_json)
    if user is not None:
        report = stage.for_user(params, space, settings, user, many, variant, draws)
    else:
        report = stage.for_history(params, space, settings, _ids(history or ""), many, variant, draws)
    _show(report, as_json, rows=("items", "names", "scores", "shares"))


@app.command()
def drift(dataset: DatasetName = "sample", overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Hold what has been ingested since against what the champion was made for; drift is told and is no error."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import drift as stage

    report = stage.run(params, space, settings)
    if as_json:
        return _print_json(report)
    out = Console()
    for finding in report.findings:
        style = "bold red" if finding.alarmed else "dim" if finding.value is None else ""
        out.print(f"{'drift' if finding.alarmed else '     '} {_plain(finding.sentence)}", style=style, highlight=False)
    champion = f"version {report.champion} ({report.variant})"
    quiet = "is still that of" if report.judged else "could not be held against"
    verdict = "has drifted from" if report.drifted else quiet
    out.print(f"[bold]{report.dataset} {verdict} champion {champion}[/]", highlight=False, soft_wrap=True)


@app.command()
def denoise(
    user: Annotated[str, typer.Option(help="A user's id in the log.")],
    out: Annotated[Path, typer.Option(help="The picture: a file that ends in .svg or .png.")],
    dataset: DatasetName = "sample",
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    variant: NotTheChampion = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Draw how a diffusion model's list for a user comes about, step by step of its reverse chain."""
    params, space, settings = _open(dataset, overrides)

    from noise2next.stages import denoise as stage

    _show(stage.run(params, space, settings, user, k, out, variant), as_json, rows=("items", "names"))


@app.command()
def serve(
    dataset: DatasetName = "sample",
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every network of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which the log names.")] = 8000,
    poll: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often to ask the registry for a newer champion.")
    ] = 10.0,
) -> None:
    """Serve the champion over HTTP, and the next one from when it is promoted; /docs says what can be asked."""
    params, space, settings = _open(dataset, [])

    from noise2next.serving import server

    server.run(space, settings, params.dataset(dataset), host, port, poll)


# --- what papers say --------------------------------------------------------------------------------------------------


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="A table's name; a wrong one names those that are there.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="Train each learned row under seeds 1 to this.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="MINUTES", help="End a run's training once these are spent, and judge it as it is."
        ),
    ] = None,
    variants: Annotated[str | None, typer.Option(help="Rows with commas between; every row when left out.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder with the official files; $NOISE2NEXT_SHARED/data when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a published table's rows again and set them beside it in docs/results/; goes on where it was stopped."""
    from noise2next.stages import reproduce as stage
    from noise2next.stages.tables import load_table

    _log()
    chosen = _names(variants)
    progress = _interactive() and not as_json
    _show(stage.run(load_table(table), Settings(), data, chosen, seeds, budget, progress), as_json)


@app.command()
def tune(
    variant: VariantName,
    trials: Annotated[int, typer.Option(min=1, help="How many trials there are to be in all, earlier ones included.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A dataset's name in params.yaml.")] = "sample",
    table: Annotated[str | None, typer.Option(help="Tune a row of this table, not of a dataset.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the search and of each trial; params.yaml's if out.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --table: the folder with the official files, as for reproduce.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a variant's settings on validation: the best become the dataset's preset, or stand beside the table.

    A table may hold back training rows for it (its `search_on`); they are its validation then.
    """
    from noise2next.stages import tune as stage
    from noise2next.stages.tables import load_table

    if table is not None:
        _log()
        report = stage.for_table(load_table(table), Settings(), data, variant, trials, 1 if seed is None else seed)
    else:
        params, space, settings = _open(dataset, [] if seed is None else [f"seed={seed}"])
        report = stage.for_dataset(params, space, settings, variant, trials)
    _show(report, as_json)


# --- datasets ---------------------------------------------------------------------------------------------------------


@app.command()
def land(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A dataset's name in params.yaml.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="All in its landing folder when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take new files into a dataset's log: checked first, then laid beside it and versioned; a bad one is refused."""
    params, space, _ = _open(dataset, [])

    from noise2next.stages import land as stage

    _show(stage.run(params, space, files), as_json)


@datasets.command("add")
def datasets_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    path: Annotated[Path, typer.Argument(help="The log: a file as its publisher ships it, or a folder of such files.")],
    log_format: Annotated[LogFormat | None, typer.Option("--format", help="Found by looking unless named.")] = None,
    user: Annotated[str | None, typer.Option(help="Column of user ids (a number in files without header).")] = None,
    item: Annotated[str | None, typer.Option(help="Column of item ids.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    rating: Annotated[str | None, typer.Option(help="Column of ratings.")] = None,
    time_unit: Annotated[str | None, typer.Option(help="s, ms, us, iso or order.")] = None,
    positive: Annotated[str | None, typer.Option(help="What counts as liking, as 'rating >= 4'.")] = None,
    split: Annotated[SplitKind | None, typer.Option(help="How to cut into train, validation and test.")] = None,
    k_core: Annotated[int | None, typer.Option(min=1, help="Least interactions a user and an item keep.")] = None,
    member: Annotated[str | None, typer.Option(help="The log's name inside a zip.")] = None,
    separator: Annotated[str | None, typer.Option(help="What stands between fields, as ';' or '\\t'.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text log, as utf-8, latin-1 or cp1252.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a log into data/, version it with DVC and write its entry into params.yaml."""
    from noise2next.stages import datasets as stage

    _log()
    report = stage.add(
        Settings().root,
        name,
        path,
        format=log_format.value if log_format else None,
        user=user,
        item=item,
        time=time,
        rating=rating,
        time_unit=time_unit,
        positive=positive,
        split=split.value if split else None,
        k_core=k_core,
        member=member,
        separator=separator,
        encoding=encoding,
    )
    _show(report, as_json)


@datasets.command("fetch")
def datasets_fetch(
    name: PublicDataset,
    as_json: AsJson = False,
) -> None:
    """Download a public log from its publisher: licence shown, checksum checked, kept in a cache."""
    from noise2next.stages import datasets as stage

    _log()
    _show(stage.fetch(Settings().root, name.value), as_json)


@datasets.command("sample")
def datasets_sample(
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 1, as_json: AsJson = False
) -> None:
    """Write the generated sample log: about 1,000 users, 600 items, 60,000 interactions."""
    from noise2next.stages import datasets as stage

    _log()
    _show(stage.sample(Settings().root, seed), as_json)


@datasets.command("list")
def datasets_list(as_json: AsJson = False) -> None:
    """The datasets of params.yaml."""
    params = load_params(Workspace(Settings().root, "").params)
    entries = {name: one.model_dump(mode="json", exclude={"presets"}) for name, one in params.datasets.items()}
    if as_json:
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return
    table = Table("dataset", "path", "format", "clock", "positive", "k-core", "split", box=None, pad_edge=False)
    for name, one in params.datasets.items():
        clock = one.time_unit or "none"
        table.add_row(name, one.path, one.format, clock, one.positive or "all", str(one.k_core), one.split.kind)
    Console().print(table)


# --- what the person sees ---------------------------------------------------------------------------------------------


def _open(dataset: str, overrides: Sequence[str]) -> tuple[Params, Workspace, Settings]:
    """Before a stage is imported, which takes seconds: what is misspelt is told at once."""
    _log()
    settings = Settings()
    space = Workspace(settings.root, dataset)
    params = load_params(space.params, overrides)
    params.dataset(dataset)
    return params, space, settings


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _log() -> None:
    """Logs on standard error: with colours on a terminal, plain lines elsewhere."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S", markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("noise2next").setLevel(logging.INFO)
    logging.getLogger("great_expectations").setLevel(logging.WARNING)


def _interactive() -> bool:
    return sys.stderr.isatty()


def _print_json(report: Frozen) -> None:
    sys.stdout.write(json.dumps(report.model_dump(mode="json"), indent=2) + "\n")


def _show(report: Frozen, as_json: bool, rows: Sequence[str] = ()) -> None:
    """A line for each field; a text of several lines follows whole, to be copied as it is.

    The fields in `rows`, lists of one length, are the columns of a table of their own.
    """
    if as_json:
        _print_json(report)
        return
    fields = report.model_dump(mode="json")
    columns = {key: values for key in rows if (values := fields.pop(key, None))}
    told = {key: value for key, value in fields.items() if isinstance(value, str) and "\n" in value.strip()}
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in fields.items():
        if key not in told:
            table.add_row(key.replace("_", " "), _plain(_cell(value)))
    Console().print(table)
    for key, text in told.items():
        Console().print(f"\n[bold]{key.replace('_', ' ')}[/]")
        sys.stdout.write(text.rstrip() + "\n")
    if columns:
        ranked = Table("", *columns, box=None, pad_edge=False)
        for place, values in enumerate(zip(*columns.values(), strict=True), 1):
            ranked.add_row(str(place), *(_plain(_cell(value)) for value in values))
        Console().print()
        Console().print(ranked)


def _show_gate(report: RegistrationReport | PromotionReport, as_json: bool) -> None:
    """The report, and the gate's checks as a table of their own."""
    if as_json or report.decision is None:
        return _show(report, as_json)
    _show(report.model_copy(update={"decision": None}), as_json)
    asked = Table("", "check", "in words", box=None, pad_edge=False)
    for check in report.decision.checks:
        asked.add_row("passed" if check.passed else "[bold]failed[/]", _plain(check.name), _plain(check.sentence))
    Console().print()
    Console().print(asked)
    for remark in report.decision.remarks:
        Console().print(f"- {_plain(remark)}", highlight=False)


def _cell(value: Any) -> str:
    """A report's value for reading: numbers with separators, mappings as `key value`, long lists cut."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{key} {_cell(one)}" for key, one in value.items()) or "none"
        case list() if any(isinstance(one, dict) for one in value):
            return f"{len(value)}, see the report"
        case list():
            shown = [_cell(one) for one in value[:20]] + (["..."] if len(value) > 20 else [])
            return ", ".join(shown) or "none"
        case str() if value and not value.strip():
            return repr(value)  # a tab as a separator
        case _:
            return str(value)


def _ids(text: str) -> list[str]:
    """Ids with commas between, quotes around one that holds a comma."""
    from noise2next.data import delimited

    return [one.strip() for one in delimited.split_line(" ".join(text.splitlines()), ",") if one.strip()]


def _plain(text: str) -> str:
    """Keep rich from reading square brackets as markup."""
    return text.replace("[", r"\[")


_WIDE = 100  # characters, from which on the leaderboard has room for more than its main metric


def _print_leaderboard(report: Any) -> None:
    """Rows best first on test, the one that validation chose in bold; the main metric with its interval."""
    Console().print(
        f"[bold]{report.dataset}[/]: {report.protocol}, {report.users['test']:,} users",
        highlight=False,
    )
    main = report.main_metric
    room = ("ndcg@20", "mrr@20") if Console().width >= _WIDE else ()
    beside = [name for name in room if name != main and name in report.rows[0].metrics]
    table = Table("", "variant", main, *beside, "coverage@20", "train s", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for place, row in enumerate(report.rows, 1):
        best = row.metrics[main]
        table.add_row(
            str(place),
            row.variant,
            f"{best.mean:.4f} [dim]({best.low:.3f} to {best.high:.3f})[/]",
            *(f"{row.metrics[name].mean:.4f}" for name in beside),
            f"{row.lists['coverage@20']:.3f}" if "coverage@20" in row.lists else "",
            f"{row.seconds_training:.1f}",
            style="bold" if row.variant == report.chosen else None,
        )
    Console().print(table)
    for note in report.notes:
        Console().print(f"- {_plain(note)}", highlight=False)


if __name__ == "__main__":
    main()
