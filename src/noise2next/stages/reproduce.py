"""Train the rows of a published table again, over seeds, and set what comes out beside what was published."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from noise2next import __version__
from noise2next.config import Frozen, Params, Settings, sentences
from noise2next.errors import UserError
from noise2next.models.artifact import code_version
from noise2next.models.base import ClosedForm, model_class, model_config
from noise2next.stages import cluster, embed, evaluate, ingest, prepare, results, train
from noise2next.stages.results import Results, Run
from noise2next.stages.tables import Table
from noise2next.workspace import (
    Reproduction,
    Workspace,
    alone,
    locked,
    read_json,
    replacing,
    sha256,
    write_json,
)

log = logging.getLogger(__name__)

EMBEDDED = "lightgcn"  # the row whose item embeddings are clustered for latent models


class ReproduceReport(Frozen):
    """Where the table lies, and the rows that are not what they should be."""

    table: str
    page: str
    rows: int
    runs: int
    stopped_by_budget: list[str]
    missed: list[str]


def run(
    table: Table,
    settings: Settings,
    data: Path | None = None,
    variants: Sequence[str] | None = None,
    seeds: int | None = None,
    budget_minutes: float | None = None,
    progress: bool = False,
) -> ReproduceReport:
    """Train and judge what is missing of `variants` (None: every row), then write the whole table anew.

    A finished run is not repeated, a killed one is continued, and so is one that a smaller budget ended. What the page
    has from elsewhere stays on it as long as the table asks for the same. `data` holds the official files. Raises
    UserError where they are not there or not the official ones, for an unknown row, and where another process trains
    the same row under the same seed.
    """
    chosen = _rows(table, variants)
    place = Reproduction(settings.root, table.name)
    budget = None if budget_minutes is None else budget_minutes * 60
    source = official_file(table, settings, data)
    version = _prepared(table, place, source, seed=1)
    _before(table, place, version)  # a page that cannot be read is refused before hours are spent
    for name in chosen:
        for seed in _seeds(table, name, seeds):
            _prepared(table, place, source, seed)
            _finish(table, place, settings, name, seed, version, budget, progress)
    found = results.summary(table, place, _finished(table, place, version), version, _before(table, place, version))
    results.write(found, place)
    return ReproduceReport(
        table=table.name,
        page=str(place.result(".md")),
        rows=len(found.rows),
        runs=sum(len(row.runs) for row in found.rows),
        stopped_by_budget=[row.variant for row in found.rows if row.stopped],
        missed=[row.variant for row in found.rows if row.reached is False],
    )


def official_file(table: Table, settings: Settings, data: Path | None) -> Path:
    """The table's official file. Raises UserError where it is missing, or is another one."""
    folder = data or (settings.shared or settings.root / ".." / "shared") / "data"
    source = folder / table.file
    if not source.is_file():
        raise UserError(
            f"{source}: no such file; name the folder that holds {table.file} with --data, or set NOISE2NEXT_SHARED to "
            "the folder above it"
        )
    if (found := sha256(source)) != table.sha256:
        raise UserError(f"{source}: not the official file: its sha256 is {found}, not {table.sha256}; get it again")
    return source


def _rows(table: Table, variants: Sequence[str] | None) -> list[str]:
    """The rows to train, their options checked before anything is trained."""
    chosen = list(table.rows if variants is None else variants)
    for name in chosen:
        if name not in table.rows:
            raise UserError(f"table {table.name} has no row {name!r}; it has {', '.join(table.rows)}")
        variant = table.entries[name]
        model_config(variant.model, variant.options)
    return chosen


def _seeds(table: Table, name: str, asked: int | None) -> range:
    """A closed form comes out the same under every seed."""
    closed = issubclass(model_class(table.entries[name].model), ClosedForm)
    return range(1, 2 if closed else (asked or table.seeds) + 1)


def _prepared(table: Table, place: Reproduction, source: Path, seed: int) -> str:
    """Make the seed's split where it is not there; returns its data version. Other processes wait meanwhile."""
    space, stamp = place.space(seed, table.dataset_name), place.prepared_by(seed)
    told = {"dataset": table.dataset.model_dump(mode="json"), "sha256": table.sha256, "code": code_version()}
    with locked(stamp):
        if not (stamp.is_file() and read_json(stamp) == told):
            kept = space.data / table.dataset.path
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, kept)
            ingest.run(table.params(seed), space)
            prepare.run(table.params(seed), space)
            write_json(stamp, told)
    return evaluate.current_data_version(space)


def ready(
    table: Table, place: Reproduction, settings: Settings, data: Path | None, variant: str, seed: int
) -> Workspace:
    """The seed's workspace with all that training `variant` needs. Raises UserError as `run` does."""
    if variant not in table.entries:
        raise UserError(f"table {table.name} has no variant {variant!r}; it has {', '.join(table.entries)}")
    _prepared(table, place, official_file(table, settings, data), seed)
    space = place.space(seed, table.dataset_name)
    if variant in table.latent_variants:
        _cluster(table.params(seed), space, settings, place, seed, False)
    return space


# --- a run ------------------------------------------------------------------------------------------------------------


def _key(table: Table, name: str, seed: int, version: str) -> str:
    """Of what a run was asked to do: setting, seed, data, release.

    Not of the code in detail: a finished run stays when the code moves on. Its version stands with the run, and the
    table lists every version that its runs come from.
    """
    variant = table.entries[name].model_dump(mode="json", exclude={"search"})
    told = {
        "variant": variant,
        "embedded": _entry_of_embeddings(table, name),
        "trainer": table.trainer.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "cutoffs": table.evaluation.cutoffs,
        "forms": sorted(table.forms),
        "split": table.dataset.split.model_dump(mode="json"),
        "data": version,
        "seed": seed,
        "release": __version__,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _entry_of_embeddings(table: Table, name: str) -> object:
    """What the item clusters of a latent row are made by; None where a row has none."""
    if name not in table.latent_variants:
        return None
    if EMBEDDED not in table.variants:
        raise UserError(f"table {table.name}: {name} needs item clusters, and there is no variant {EMBEDDED} for them")
    return table.variants[EMBEDDED].model_dump(mode="json", exclude={"search"})


def _finish(
    table: Table,
    place: Reproduction,
    settings: Settings,
    name: str,
    seed: int,
    version: str,
    budget: float | None,
    progress: bool,
) -> None:
    """One row under one seed, unless it is there already."""
    key = _key(table, name, seed, version)
    with alone(place.lock(name, seed), f"run of {name} under seed {seed}"):
        if _is_finished(place, key, budget):
            log.info("%s: %s under seed %d is there already", table.name, name, seed)
            return
        params, space = table.params(seed), place.space(seed, table.dataset_name)
        if _entry_of_embeddings(table, name) is not None:
            _cluster(params, space, settings, place, seed, progress)
        trained = train.run(params, space, settings, name, progress, budget)
        judged = evaluate.run(params, space, settings, name, unmasked="unmasked" in table.forms)
        users = pq.read_table(space.evaluation(name) / "per_user.parquet")
        users = users.filter(pc.field("part") == "test").drop_columns(["part"])
        columns = [name for name in users.column_names if name != "user"]
        with replacing(_made(place.users(key))) as fresh:
            pq.write_table(users, fresh)
        record = Run(
            key=key,
            variant=name,
            seed=seed,
            simple=trained.stopped == "solved",
            test={column: pc.mean(users.column(column)).as_py() for column in columns},
            valid={metric: interval.mean for metric, interval in judged.metrics["valid"].items()},
            lists=judged.lists["test"],
            draws=judged.draws,
            parameters=judged.parameters,
            seconds_training=trained.seconds,
            seconds_evaluation=judged.seconds,
            peak_memory_mb=trained.peak_memory_mb,
            epochs=trained.trained,
            best_epoch=min(trained.best_epoch, trained.trained),
            stopped=trained.stopped,
            curve=[
                (record.trained, record.metrics[table.main]) for record in trained.curve if table.main in record.metrics
            ],
            device=trained.device,
            precision=trained.precision,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            code_version=judged.code_version,
        )
        write_json(place.runs / f"{key}.json", record.model_dump(mode="json"))
    log.info("%s: %s under seed %d: test %s %.4f", table.name, name, seed, table.main, record.test[table.main])


def _cluster(
    params: Params,
    space: Workspace,
    settings: Settings,
    place: Reproduction,
    seed: int,
    progress: bool,
) -> None:
    """Item clusters in the seed's workspace, from the item embeddings of its own LightGCN, which no budget ends."""
    with alone(place.lock(EMBEDDED, seed), f"run of {EMBEDDED} under seed {seed}"):
        train.run(params, space, settings, EMBEDDED, progress)
        embed.run(params, space)
        cluster.run(params, space)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- what is there ----------------------------------------------------------------------------------------------------


def _is_finished(place: Reproduction, key: str, budget: float | None) -> bool:
    path = place.runs / f"{key}.json"
    return path.is_file() and Run.model_validate(read_json(path)).within(budget)


def _finished(table: Table, place: Reproduction, version: str) -> dict[str, list[Run]]:
    """Every run that belongs into the table as it now is, by row in the table's order, seeds ascending."""
    records = [Run.model_validate(read_json(path)) for path in sorted(place.runs.glob("*.json"))]
    records = [record for record in records if _asked_for(table, record, version)]
    by_row = {name: [record for record in records if record.variant == name] for name in table.rows}
    return {name: sorted(runs, key=lambda one: one.seed) for name, runs in by_row.items() if runs}


def _asked_for(table: Table, run: Run, version: str) -> bool:
    """Whether the table as it now is would make this very run."""
    return run.variant in table.rows and run.key == _key(table, run.variant, run.seed, version)


def _before(table: Table, place: Reproduction, version: str) -> Results | None:
    """The page as it is, without the rows that the table no longer asks for; None where there is none.

    Raises UserError for a page that another release wrote.
    """
    path = place.result(".json")
    if not path.is_file():
        return None
    try:
        found = Results.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(
            f"{path}: not in the form that this release writes ({sentences(error)}); put it aside, and its rows are "
            "trained anew"
        ) from error
    rows = [row for row in found.rows if all(_asked_for(table, run, version) for run in row.runs)]
    return found.model_copy(update={"rows": rows})
