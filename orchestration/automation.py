"""What Dagster does by itself: it looks at the data, the landing folder, the clock and the drift report, and asks.

All ask for the one job `retraining` and say why in the run's tag `noise2next/reason`. While a run of the same dataset
is queued or running nothing is asked for: the look says so, and a later one asks. `automation.retrain` in params.yaml
names the datasets that are looked after; where it names none, the sensors are there and stopped.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, RunRecord
from dagster._core.storage.tags import PARTITION_NAME_TAG, PRIORITY_TAG, RETRY_STRATEGY_TAG, RUN_KEY_TAG
from dagster._utils.schedules import is_valid_cron_schedule

from noise2next.config import Params, Retraining
from noise2next.data.pieces import delivered
from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, Workspace, read_json
from orchestration import versions
from orchestration.assets import SECOND_TRY
from orchestration.metadata import described
from orchestration.project import Project, plain_failures
from orchestration.steps import Step

REASON = "noise2next/reason"
BEHIND = {PRIORITY_TAG: "-1"}  # a person's own run goes first
RETRAINING, LANDING, PULL = "retraining", "landing", "pull"
TRAINING = (RETRAINING, "pipeline")  # the jobs that train on what has been ingested
LOOKED_BACK = 50  # materialisations of the ingested rows
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(days=1)  # until what failed is tried again
Wanted = Mapping[str, Sequence[str]]  # by dataset that trains itself: the assets of its retraining


# --- jobs -------------------------------------------------------------------------------------------------------------


class Landed(dg.Config):
    """Names in the dataset's landing folder: the files that are whole."""

    files: list[str]


@dg.op(
    description="Check new files and take them into the log; a bad one is refused, and the run fails and says why.",
    retry_policy=SECOND_TRY,
)
def take_files(context: dg.OpExecutionContext, config: Landed, project: Project) -> None:
    """Take files into the log of the run's dataset."""
    from noise2next.stages import land as stage

    params, space = project.params(), project.space(context.partition_key)
    folder = space.landing(params.automation.landing)
    with plain_failures():
        report = stage.run(params, space, [folder / name for name in config.files])
    context.add_output_metadata(described(report))


@dg.op(
    description="Let data/ hold what data.dvc pins, from DVC's cache or else from its remote.", retry_policy=SECOND_TRY
)
def fetch_data(project: Project) -> None:
    """Fetch the pinned version of data/."""
    from noise2next.stages import datasets

    with plain_failures():
        datasets.restore(project.space(""))


class Jobs(NamedTuple):
    """The job that all ask for, and the two that bring data in."""

    retraining: UnresolvedAssetJobDefinition
    landing: dg.JobDefinition
    pull: dg.JobDefinition


def jobs(datasets: dg.PartitionsDefinition[str]) -> Jobs:
    """The jobs over the datasets."""

    @dg.job(name=LANDING, partitions_def=datasets, description="New files of a log: checked, taken in, versioned.")
    def landing() -> None:
        take_files()

    @dg.job(name=PULL, description="data/ as data.dvc pins it.")
    def pulling() -> None:
        fetch_data()

    retraining = dg.define_asset_job(
        RETRAINING,
        selection=dg.AssetSelection.all(),
        partitions_def=datasets,
        description="From the raw log to a champion, asked for by automation; the tag noise2next/reason says why.",
        tags={**BEHIND, RETRY_STRATEGY_TAG: "FROM_FAILURE"},  # after a worker that died another does what is left
    )
    return Jobs(retraining, landing, pulling)


def wanted(params: Params, space: Workspace, steps: Sequence[Step]) -> Wanted:
    """What is to be made for each dataset that trains itself. Raises UserError where the policy cannot be read."""
    from noise2next.registry.promotion import Policy

    retrain = params.automation.retrain
    baseline = Policy.load(space.promotion_policy).baseline if retrain else None
    return {name: _needed(steps, one, baseline.variant if baseline else None) for name, one in retrain.items()}


def _needed(steps: Sequence[Step], retraining: Retraining, baseline: str | None) -> list[str]:
    """All assets; or those of the chosen variants, what they stand on, and the table and what follows it.

    The baseline is made with them: the gate asks every champion to beat it, and could not on data that it never saw.
    """
    upstream = {step.name: set(step.upstream) for step in steps}
    if retraining.variants is None:
        return list(upstream)
    made = {f"evaluation_{name}" for name in (*retraining.variants, baseline)}
    for name in reversed(upstream):  # a step stands behind all that it needs
        if name in made:
            made |= upstream[name]
    after = {"leaderboard"}
    for name, above in upstream.items():
        if above & after:
            after.add(name)
    return [name for name in upstream if name in made | after]


# --- sensors ----------------------------------------------------------------------------------------------------------


def sensors(params: Params, wanted: Wanted, jobs: Jobs) -> list[dg.SensorDefinition]:
    """The sensors, running from the start where a dataset trains itself."""
    automation = params.automation
    common: dict[str, Any] = {
        "minimum_interval_seconds": automation.every,
        "default_status": dg.DefaultSensorStatus.RUNNING if wanted else dg.DefaultSensorStatus.STOPPED,
    }

    @dg.sensor(
        name="new_data",
        jobs=[jobs.retraining, jobs.pull],
        description="Asks for a retraining of each dataset whose own files data.dvc pins in another version.",
        **common,
    )
    def new_data(context: dg.SensorEvaluationContext, project: Project) -> dg.SensorResult:
        return look_at_data(context, project, wanted)

    @dg.sensor(
        name="landing_folder",
        job=jobs.landing,
        description="Has whole new files taken into their logs; that changes data.dvc, which `new_data` sees.",
        **common,
    )
    def landing_folder(context: dg.SensorEvaluationContext, project: Project) -> dg.SensorResult:
        return look_for_files(context, project, wanted)

    @dg.sensor(
        name="drift_report",
        job=jobs.retraining,
        description="Asks for a retraining of each dataset that its report calls drifted, once a version of its data.",
        **common,
    )
    def drift_report(context: dg.SensorEvaluationContext, project: Project) -> dg.SensorResult:
        return look_for_drift(context, project, wanted)

    found = [new_data, landing_folder, drift_report]
    if any(one.fresh for one in automation.retrain.values()):
        found.append(
            dg.AutomationConditionSensorDefinition(
                "freshness",
                target=dg.AssetSelection.all(),
                description="Makes assets again when what they stand on, their code or their options change.",
                run_tags={REASON: "fresh: what an asset stands on, its code or its options changed", **BEHIND},
                use_user_code_server=True,  # `OfDataset` is a condition of our own
                **common,
            )
        )
    return found


@dataclass
class Look:
    """What one look at the datasets found: what it asks for, and why it asks for no more."""

    context: dg.SensorEvaluationContext
    requests: list[dg.RunRequest] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.context.instance

    def busy(self, dataset: str) -> bool:
        """Whether a run of the dataset is queued or running; said, if so."""
        run = _unfinished(self.instance, dataset)
        if run is not None:
            self.said.append(f"{dataset}: {_waits(run)}")
        return run is not None

    def ask(self, job: str, key: str, reason: str, again: bool = False, **request: Any) -> None:
        """Ask for a run, once for a key; said, where that run has been already.

        `again`: once more where it failed, each time after twice the wait, for what was wrong may be mended meanwhile.
        """
        tries, tried = 0, key
        while before := self.instance.get_run_records(dg.RunsFilter(job_name=job, tags={RUN_KEY_TAG: tried}), limit=1):
            last, tries = before[0], tries + 1
            tried = f"{key} try {tries + 1}"
        if tries and not (again and _waited(last, tries)):
            status = last.dagster_run.status.value
            self.said.append(
                f"{reason}: run {last.dagster_run.run_id} of the job {job} was for that and ended as {status}"
            )
            return
        self.requests.append(dg.RunRequest(tried, job_name=job, tags={REASON: reason}, **request))

    def result(self, remembered: Mapping[str, Any]) -> dg.SensorResult:
        """As Dagster takes it."""
        skipped = None if self.requests else "; ".join(self.said) or "nothing new"
        for one in self.said if self.requests else ():  # Dagster shows a reason beside no request
            self.context.log.info(one)
        return dg.SensorResult(self.requests, skip_reason=skipped, cursor=json.dumps(remembered, sort_keys=True))


def _waited(record: RunRecord, tries: int) -> bool:
    """Whether a failed run is long enough ago for another try."""
    wait = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT)
    return record.dagster_run.is_failure_or_canceled and datetime.now(UTC) - record.update_timestamp >= wait


def _trained(instance: dg.DagsterInstance, space: Workspace) -> dg.DagsterRun | None:
    """The run that trained on the very rows that are ingested now, whatever the gate said of its model."""
    if not (space.ingested / MANIFEST).is_file():
        return None
    rows = versions.of_output(space.ingested)
    chosen = dg.AssetRecordsFilter(dg.AssetKey("interactions"), asset_partitions=[space.dataset])
    for record in instance.fetch_materializations(chosen, limit=LOOKED_BACK).records:
        made = record.asset_materialization
        if made is None or (made.tags or {}).get(DATA_VERSION_TAG) != rows:
            continue
        run = instance.get_run_by_id(record.run_id)
        if run is not None and run.job_name in TRAINING and run.is_success:
            return run
    return None


def _unfinished(instance: dg.DagsterInstance, dataset: str) -> dg.DagsterRun | None:
    """A run of the dataset, of whatever job, that is queued or running."""
    going = dg.RunsFilter(tags={PARTITION_NAME_TAG: dataset}, statuses=NOT_FINISHED_STATUSES)
    return next(iter(instance.get_runs(going, limit=1)), None)


def _waits(run: dg.DagsterRun) -> str:
    return f"run {run.run_id} of the job {run.job_name} is {run.status.value.lower()}; asked again at a later look"


def look_at_data(context: dg.SensorEvaluationContext, project: Project, wanted: Wanted) -> dg.SensorResult:
    """Compare what data.dvc pins of each dataset's own files with what it pinned when last asked for.

    The first look at a dataset remembers its version and asks for nothing. Where data/ does not hold what is pinned, as
    after a `git pull`, it is fetched first.
    """
    params, space, look = project.params(), project.space(""), Look(context)
    seen: dict[str, Any] = json.loads(context.cursor or "{}")
    pinned = versions.pointer(space)
    if pinned is None:
        look.said.append(f"{space.data_pointer.name} is not there: no data is versioned yet")
        return look.result(seen)
    listing = versions.listed(space, pinned)
    if listing is None:
        _fetch(look, pinned)
        return look.result(seen)
    for dataset, assets in wanted.items():
        files = versions.of_log(listing, params.dataset(dataset).path)
        version, before = versions.of_files(files), seen.get(dataset)
        if not files:
            look.said.append(f"{dataset}: {space.data_pointer.name} pins no file of it")
        elif before is None:
            seen[dataset] = {"pinned": pinned, "version": version, "changes": 0}
            look.said.append(f"{dataset}: first seen, in version {version}; the next one will be asked for")
        elif version == before["version"]:
            seen[dataset] = {**before, "pinned": pinned}
        elif look.busy(dataset):
            pass
        elif not _holds(params, project.space(dataset), files):
            _fetch(look, pinned)
        else:
            changes = before["changes"] + 1  # a version that comes back after another is asked for again
            former = versions.listed(space, before["pinned"])
            own = None if former is None else versions.of_log(former, params.dataset(dataset).path)
            what = "another version" if own is None else versions.difference(own, files)
            key = f"{dataset} {version} {changes}"
            look.ask(RETRAINING, key, f"{space.data_pointer.name}: {what}", **_of(dataset, assets))
            seen[dataset] = {"pinned": pinned, "version": version, "changes": changes}
    return look.result(seen)


def _of(dataset: str, assets: Sequence[str]) -> dict[str, Any]:
    return {"partition_key": dataset, "asset_selection": [dg.AssetKey(name) for name in assets]}


def _fetch(look: Look, pinned: str) -> None:
    """Ask for the pinned data, unless a run may be reading data/ just now."""
    going = look.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=1)
    if going:
        look.said.append(f"data.dvc: version {pinned} is to be fetched, and {_waits(going[0])}")
    elif not any(one.job_name == PULL for one in look.requests):
        look.ask(PULL, f"pull {pinned}", f"data.dvc: version {pinned} is not in data/", again=True)


def _holds(params: Params, space: Workspace, files: Mapping[str, str]) -> bool:
    """Whether the dataset's files in data/ are those that are pinned: each is hashed, which only a change asks for."""
    try:
        return versions.raw_files(params, space) == files
    except UserError:  # there is none
        return False


def look_for_files(context: dg.SensorEvaluationContext, project: Project, wanted: Wanted) -> dg.SensorResult:
    """Look into each dataset's landing folder; a file that is as it was at the last look is whole."""
    params, look = project.params(), Look(context)
    before: dict[str, Any] = json.loads(context.cursor or "{}")
    folder, now = params.automation.landing, {}
    for dataset in wanted:
        now[dataset] = _shapes(project.space(dataset).landing(folder))
        whole = {name: shape for name, shape in now[dataset].items() if before.get(dataset, {}).get(name) == shape}
        if growing := [name for name in now[dataset] if name not in whole]:
            look.said.append(f"{dataset}: {', '.join(growing)}: new or growing; taken when unchanged at the next look")
        if whole and not look.busy(dataset):
            look.ask(
                LANDING,
                f"{dataset} {hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]}",
                f"landing: {', '.join(whole)}",
                again=True,
                partition_key=dataset,
                run_config={"ops": {"take_files": {"config": {"files": list(whole)}}}},
            )
    return look.result(now)


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of each file that was delivered, by name."""
    shapes = {}
    for file in delivered(folder):
        with contextlib.suppress(FileNotFoundError):  # taken meanwhile
            found = file.stat()
            shapes[file.name] = [found.st_size, found.st_mtime_ns]
    return shapes


def look_for_drift(context: dg.SensorEvaluationContext, project: Project, wanted: Wanted) -> dg.SensorResult:
    """Read each dataset's drift report.

    A retraining on the same data gives the same model, and its own report may say that things drifted again: so one
    version of the data is asked for once, and not at all where it has been trained on, whoever asked for that.
    """
    look, seen = Look(context), json.loads(context.cursor or "{}")
    for dataset, assets in wanted.items():
        place = project.space(dataset).drift / "report.json"
        if not place.is_file():
            look.said.append(f"{dataset}: no drift report yet")
            continue
        report = read_json(place)
        version = report["data_version"]
        if not report["drifted"]:
            look.said.append(f"{dataset}: no drift")
        elif seen.get(dataset) == version:
            look.said.append(f"{dataset}: the drift of this data was asked for")
        elif (run := _trained(context.instance, project.space(dataset))) is not None:
            look.said.append(f"{dataset}: run {run.run_id} of the job {run.job_name} has trained on this data")
        elif not look.busy(dataset):
            reasons = "; ".join(report["reasons"])
            look.ask(RETRAINING, f"{dataset} drift {version}", f"drift: {reasons}", **_of(dataset, assets))
            seen[dataset] = version
    return look.result(seen)


# --- the clock --------------------------------------------------------------------------------------------------------


def schedules(params: Params, wanted: Wanted) -> list[dg.ScheduleDefinition]:
    """One for each dataset that has its hour. Raises UserError for a text that is no cron expression."""
    times = {name: one.schedule for name, one in params.automation.retrain.items() if one.schedule is not None}
    for name, cron in times.items():
        if not is_valid_cron_schedule(cron):
            raise UserError(
                f"params.yaml: automation.retrain.{name}.schedule: {cron!r} is no cron expression; write it as"
                ' "0 4 * * 1", minute, hour, day, month, weekday'
            )
    return [_schedule(name, cron, wanted[name]) for name, cron in times.items()]


def _schedule(dataset: str, cron: str, assets: Sequence[str]) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron,
        name=f"retrain_{dataset.replace('-', '_')}",
        job_name=RETRAINING,
        description=f"Asks for a retraining of {dataset}.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        execution_timezone="UTC",
    )
    def ask(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        run = _unfinished(context.instance, dataset)
        if run is not None:
            return dg.SkipReason(f"{dataset}: {_waits(run)}")
        return dg.RunRequest(tags={REASON: f"schedule: {cron}"}, **_of(dataset, assets))

    return ask


# --- freshness --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfDataset(dg.AutomationCondition[Any]):
    """True of the one partition."""

    dataset: str

    @property
    def name(self) -> str:
        return f"of {self.dataset}"

    def evaluate(self, context: dg.AutomationContext[Any]) -> dg.AutomationResult[Any]:
        chosen = context.candidate_subset.compute_intersection_with_partition_keys({self.dataset})
        return dg.AutomationResult(context, chosen)


def freshness(step: Step, params: Params, wanted: Wanted) -> dg.AutomationCondition[Any] | None:
    """When the asset of `step` is made again by itself; None where no dataset wants that of it.

    Dagster's `eager`, for those datasets, and also for changed code; assets that the dataset does not make are not
    waited for.
    """
    condition: dg.AutomationCondition[Any] | None = None
    for dataset, one in params.automation.retrain.items():
        if not one.fresh or not step.upstream or step.name not in wanted[dataset]:
            continue
        left_out = dg.AssetSelection.assets(*(name for name in step.upstream if name not in wanted[dataset]))
        changed: dg.AutomationCondition[Any] = (
            dg.AutomationCondition.newly_missing()
            | dg.AutomationCondition.any_deps_updated()
            | dg.AutomationCondition.code_version_changed()
        )
        ready = (
            OfDataset(dataset)
            & changed.since_last_handled()
            & ~dg.AutomationCondition.any_deps_missing().ignore(left_out)
            & ~dg.AutomationCondition.any_deps_in_progress()
            & ~dg.AutomationCondition.in_progress()
        ).with_label(f"fresh for {dataset}")
        condition = ready if condition is None else condition | ready
    return condition
