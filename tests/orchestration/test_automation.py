"""What Dagster asks for by itself: each look, tick by tick, and nothing that nobody named."""

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import PARTITION_NAME_TAG, RUN_KEY_TAG
from orchestration import automation, versions
from orchestration.automation import REASON
from orchestration.definitions import definitions
from orchestration.project import Project
from orchestration.steps import steps
from tests import shop

from noise2next.config import load_params
from noise2next.errors import UserError
from noise2next.workspace import Workspace, write_json, writing

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning")

CHOSEN = "retrain: {shop: {variants: [ease], schedule: '30 4 * * 1', fresh: true}}"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, repository):
    root = tmp_path_factory.mktemp("untouched") / "project"
    shop.make(root, repository)
    return root


@pytest.fixture
def root(untouched, tmp_path):
    """A project whose data is versioned as DVC does it."""
    root = shutil.copytree(untouched, tmp_path / "project")
    pin(root)
    return root


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def pin(root: Path) -> str:
    """Write what `dvc add data` writes: the listing into the cache, its hash into data.dvc."""
    files = sorted(path for path in (root / "data").rglob("*") if path.is_file())
    listing = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(root / "data").as_posix()}
        for path in files
    ]
    content = json.dumps(listing, sort_keys=True)
    pinned = hashlib.md5(content.encode()).hexdigest() + ".dir"
    place = root / ".dvc" / "cache" / "files" / "md5" / pinned[:2] / pinned[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    (root / "data.dvc").write_text(f"outs:\n- md5: {pinned}\n  nfiles: {len(files)}\n  hash: md5\n  path: data\n")
    return pinned


def change(root: Path, old: str, new: str) -> None:
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new))


class Looker:
    """A sensor of the project, looking again and again as the daemon has it look."""

    def __init__(self, root, instance, sensor):
        self.root, self.instance, self.sensor, self.cursor = root, instance, sensor, None

    def look(self):
        graph = definitions(self.root)
        context = dg.build_sensor_context(
            self.instance, self.cursor, definitions=graph, resources={"project": Project(root=str(self.root))}
        )
        found = graph.resolve_sensor_def(self.sensor).evaluate_tick(context)
        self.cursor = found.cursor
        return found

    def asks(self):
        return self.look().run_requests

    def says(self):
        found = self.look()
        assert found.run_requests == []
        return found.skip_message


def wanted(root):
    """What is made for `shop`."""
    params = load_params(root / "params.yaml")
    return automation.wanted(params, Workspace(root, ""), steps(params))["shop"]


def going(instance, dataset, status=dg.DagsterRunStatus.STARTED, job="pipeline", **tags):
    @dg.job(name=job)
    def nothing():
        pass

    server = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("nowhere"), "nothing")
    origin = RemoteJobOrigin(server, job)
    tags = {PARTITION_NAME_TAG: dataset, **tags}
    return instance.create_run_for_job(nothing, status=status, tags=tags, remote_job_origin=origin)


def ended(instance, run):
    instance.report_run_canceled(run)


# --- who is looked after ----------------------------------------------------------------------------------------------


def test_where_no_dataset_is_named_nothing_runs_by_itself(root, instance, repository):
    assert load_params(repository / "params.yaml").automation.retrain == {}
    change(root, "retrain: {shop: {}}", "retrain: {}")
    graph = definitions(root)
    assert {one.default_status for one in graph.sensors} == {dg.DefaultSensorStatus.STOPPED}
    assert list(graph.schedules) == []
    assert all(spec.automation_condition is None for spec in graph.resolve_all_asset_specs())
    looker = Looker(root, instance, "new_data")
    looker.look()
    (root / "data" / "shop" / "2.csv").write_text(shop.HEADER)
    pin(root)
    assert looker.says() == "nothing new"  # also when somebody starts it


def test_a_named_dataset_is_looked_after_from_the_start(root):
    change(root, "retrain: {shop: {}}", CHOSEN)
    graph = definitions(root)
    assert {one.default_status for one in graph.sensors} == {dg.DefaultSensorStatus.RUNNING}
    assert {one.name for one in graph.sensors} == {"new_data", "landing_folder", "drift_report", "freshness"}
    assert [(one.cron_schedule, one.default_status) for one in graph.schedules] == [
        ("30 4 * * 1", dg.DefaultScheduleStatus.RUNNING)
    ]
    assert all(one.minimum_interval_seconds == 1 for one in graph.sensors)


@pytest.mark.parametrize(
    ("retrain", "sentence"),
    [
        ("{nowhere: {}}", "unknown dataset 'nowhere'"),
        ("{shop: {variants: [nothing]}}", "automation.retrain.shop.variants names an unknown variant 'nothing'"),
        ("{shop: {cron: daily}}", "automation.retrain.shop.cron: unknown key"),
        ("{shop: {schedule: daily}}", "'daily' is no cron expression"),
    ],
)
def test_what_cannot_be_looked_after_is_told_when_the_definitions_load(root, retrain, sentence):
    change(root, "retrain: {shop: {}}", f"retrain: {retrain}")
    with pytest.raises(UserError, match=re.escape(sentence)):
        definitions(root)


def test_all_of_it_loads_as_the_daemon_loads_it(root):
    change(root, "retrain: {shop: {}}", CHOSEN)
    definitions(root).get_repository_def().load_all_definitions()


def test_the_retraining_goes_from_the_log_to_the_champion_behind_a_persons_own_runs(root):
    job = definitions(root).resolve_job_def("retraining")
    made = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {"raw_interactions", "validation", "model_ease", "leaderboard", "champion"} <= made
    assert job.tags["dagster/priority"] == "-1"
    assert job.tags["dagster/retry_strategy"] == "FROM_FAILURE"
    assert job.partitions_def.get_partition_keys() == ["shop", "other"]


def test_chosen_variants_bring_what_they_stand_on_and_what_the_gate_asks_them_to_beat(repository):
    params = load_params(repository / "params.yaml", ["automation.retrain={sample: {variants: [ease, l_diffrec]}}"])
    made = automation.wanted(params, Workspace(repository, ""), steps(params))["sample"]
    assert {name for name in made if name.startswith("model_")} == {
        "model_most_pop",
        "model_ease",
        "model_lightgcn",
        "model_l_diffrec",
    }
    assert {name for name in made if name.startswith("evaluation_")} == {
        "evaluation_most_pop",
        "evaluation_ease",
        "evaluation_l_diffrec",
    }
    assert {"raw_interactions", "split", "item_embeddings", "item_clusters", "leaderboard", "champion"} <= set(made)


def test_the_queue_lets_one_run_of_a_dataset_through_at_a_time(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(repository)) as instance:
        [limit] = instance.get_concurrency_config().run_queue_config.tag_concurrency_limits
    assert limit == {"key": PARTITION_NAME_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}


# --- new data ---------------------------------------------------------------------------------------------------------


def test_the_first_look_remembers_and_asks_for_nothing(root, instance):
    looker = Looker(root, instance, "new_data")
    assert "shop: first seen" in looker.says()
    assert looker.says() == "nothing new"


def test_a_dataset_with_new_files_is_asked_for_once_with_the_reason_and_no_other_is(root, instance):
    change(root, "retrain: {shop: {}}", "retrain: {shop: {variants: [ease]}, other: {}}")
    looker = Looker(root, instance, "new_data")
    looker.look()
    (root / "data" / "shop" / "2.csv").write_text(shop.HEADER + "u1,i1,1700000000\n")
    (root / "data" / "shop" / "1.csv").write_text(shop.HEADER + "u1,i1,1600000000\n")
    pin(root)
    [asked] = looker.asks()
    assert (asked.job_name, asked.partition_key) == ("retraining", "shop")
    assert asked.tags[REASON] == "data.dvc: 1 file added, 1 file changed"
    assert {key.to_user_string() for key in asked.asset_selection} == set(wanted(root))
    files = versions.raw_files(load_params(root / "params.yaml"), Workspace(root, "shop"))
    assert versions.of_files(files) in asked.run_key
    assert looker.says() == "nothing new"


def test_two_datasets_with_new_files_are_two_runs(root, instance):
    change(root, "retrain: {shop: {}}", "retrain: {shop: {}, other: {}}")
    looker = Looker(root, instance, "new_data")
    looker.look()
    for name in ("shop/1.csv", "other/log.csv"):
        (root / "data" / name).write_text(shop.HEADER + "u1,i1,1600000000\n")
    pin(root)
    assert [one.partition_key for one in looker.asks()] == ["shop", "other"]


def test_a_version_that_comes_back_after_another_is_asked_for_again_under_its_own_key(root, instance):
    looker = Looker(root, instance, "new_data")
    looker.look()
    log = root / "data" / "shop" / "1.csv"
    first, keys = log.read_bytes(), set()
    for content in (b"another\n", first, b"another\n"):
        log.write_bytes(content)
        pin(root)
        keys |= {one.run_key for one in looker.asks()}
    assert len(keys) == 3


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED])
def test_while_a_run_of_the_dataset_is_queued_or_running_its_new_version_waits_and_is_not_lost(root, instance, status):
    looker = Looker(root, instance, "new_data")
    looker.look()
    (root / "data" / "shop" / "1.csv").write_text(shop.HEADER)
    pin(root)
    run = going(instance, "shop", status)
    going(instance, "other")
    said = looker.says()
    assert run.run_id in said
    assert status.value.lower() in said
    ended(instance, run)
    assert [one.partition_key for one in looker.asks()] == ["shop"]


def test_what_kept_one_dataset_waiting_is_told_although_another_is_asked_for(root, instance, capsys):
    change(root, "retrain: {shop: {}}", "retrain: {shop: {}, other: {}}")
    looker = Looker(root, instance, "new_data")
    looker.look()
    for log in (root / "data" / "shop" / "1.csv", root / "data" / "other" / "log.csv"):
        log.write_text(shop.HEADER)
    pin(root)
    run = going(instance, "other")
    assert [one.partition_key for one in looker.asks()] == ["shop"]
    assert f"other: run {run.run_id}" in capsys.readouterr().err


def test_data_that_is_pinned_and_not_here_is_fetched_first(root, instance):
    looker = Looker(root, instance, "new_data")
    looker.look()
    log = root / "data" / "shop" / "1.csv"
    before = log.read_bytes()
    log.write_text(shop.HEADER)
    pinned = pin(root)
    log.write_bytes(before)  # as after `git pull`: data.dvc is new, data/ is not
    [asked] = looker.asks()
    assert (asked.job_name, asked.run_key) == ("pull", f"pull {pinned}")
    log.write_text(shop.HEADER)  # as after the pull
    assert [(one.job_name, one.partition_key) for one in looker.asks()] == [("retraining", "shop")]


def test_a_version_that_could_not_be_fetched_is_not_asked_for_for_ever(root, instance):
    looker = Looker(root, instance, "new_data")
    (root / "data.dvc").write_text("outs:\n- md5: 0123.dir\n  path: data\n")
    [asked] = looker.asks()
    assert (asked.job_name, asked.tags[REASON]) == ("pull", "data.dvc: version 0123.dir is not in data/")
    run = going(instance, "", dg.DagsterRunStatus.FAILURE, "pull", **{RUN_KEY_TAG: asked.run_key})
    assert run.run_id in looker.says()


def test_what_could_not_be_fetched_is_tried_again_after_a_wait(root, instance, monkeypatch):
    looker = Looker(root, instance, "new_data")
    (root / "data.dvc").write_text("outs:\n- md5: 0123.dir\n  path: data\n")
    [asked] = looker.asks()
    going(instance, "", dg.DagsterRunStatus.FAILURE, "pull", **{RUN_KEY_TAG: asked.run_key})
    monkeypatch.setattr(automation, "FIRST_WAIT", timedelta(0))
    [again] = looker.asks()
    assert again.run_key == f"{asked.run_key} try 2"


def test_nothing_is_fetched_under_a_run_that_may_read_it(root, instance):
    looker = Looker(root, instance, "new_data")
    run = going(instance, "other")
    (root / "data.dvc").write_text("outs:\n- md5: 0123.dir\n  path: data\n")
    assert run.run_id in looker.says()


def test_without_data_dvc_the_look_says_so(root, instance):
    (root / "data.dvc").unlink()
    assert "no data is versioned yet" in Looker(root, instance, "new_data").says()


# --- landed files -----------------------------------------------------------------------------------------------------


def landed(root: Path, name: str, text: str = shop.HEADER) -> Path:
    place = root / "landing" / "shop" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def test_a_landed_file_is_asked_for_when_two_looks_find_it_the_same(root, instance):
    looker = Looker(root, instance, "landing_folder")
    file = landed(root, "2.csv")
    landed(root, ".3.csv")
    landed(root, "4.csv.part")
    landed(root, "refused/5.csv")
    assert "2.csv: new or growing" in looker.says()
    file.write_text(shop.HEADER + "u1,i1,1700000000\n")
    assert "2.csv: new or growing" in looker.says()
    landed(root, "6.csv")
    [asked] = looker.asks()
    assert (asked.job_name, asked.partition_key) == ("landing", "shop")
    assert asked.run_config == {"ops": {"take_files": {"config": {"files": ["2.csv"]}}}}
    assert asked.tags[REASON] == "landing: 2.csv"


def test_a_landed_file_waits_for_the_run_of_its_dataset(root, instance):
    looker = Looker(root, instance, "landing_folder")
    landed(root, "2.csv")
    run = going(instance, "shop")
    looker.look()
    assert run.run_id in looker.says()
    ended(instance, run)
    assert [one.tags[REASON] for one in looker.asks()] == ["landing: 2.csv"]


def test_a_landed_file_that_a_dead_run_left_lying_is_told_and_not_asked_for_for_ever(root, instance):
    looker = Looker(root, instance, "landing_folder")
    file = landed(root, "2.csv")
    looker.look()
    [asked] = looker.asks()
    run = going(instance, "shop", dg.DagsterRunStatus.FAILURE, "landing", **{RUN_KEY_TAG: asked.run_key})
    assert run.run_id in looker.says()
    file.write_text(shop.HEADER + "\n")  # sent again
    looker.look()
    assert [one.run_key == asked.run_key for one in looker.asks()] == [False]


def test_the_landing_run_fails_with_the_reason_of_a_refused_file_and_no_second_try(root, instance):
    landed(root, "2.csv", "user_id,thing,timestamp\nu1,i1,1700000000\n")
    config = {"ops": {"take_files": {"config": {"files": ["2.csv"]}}}}
    job = definitions(root).resolve_job_def("landing")
    result = job.execute_in_process(config, instance, partition_key="shop", raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "no column 'item_id'" in failure.step_failure_data.user_failure_data.description
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)
    assert (root / "landing" / "shop" / "refused" / "2.csv.reason.txt").is_file()


# --- drift ------------------------------------------------------------------------------------------------------------


def drift(root: Path, drifted: bool, version: str = "v1") -> None:
    reasons = ["41 % of the items are new", "activity fell by half"] if drifted else []
    report = {"dataset": "shop", "data_version": version, "drifted": drifted, "reasons": reasons}
    write_json(Workspace(root, "shop").drift / "report.json", report)


def test_a_drifted_dataset_is_asked_for_once_a_version_of_its_data_with_all_reasons(root, instance):
    looker = Looker(root, instance, "drift_report")
    assert "no drift report yet" in looker.says()
    drift(root, drifted=False)
    assert "no drift" in looker.says()
    drift(root, drifted=True)
    [asked] = looker.asks()
    assert (asked.job_name, asked.partition_key) == ("retraining", "shop")
    assert asked.tags[REASON] == "drift: 41 % of the items are new; activity fell by half"
    assert "was asked for" in looker.says()
    drift(root, drifted=True)  # written again by that very retraining
    assert "was asked for" in looker.says()
    drift(root, drifted=True, version="v2")
    assert len(looker.asks()) == 1


def test_data_that_was_trained_on_is_not_trained_on_again_for_its_drift(root, instance):
    looker = Looker(root, instance, "drift_report")
    space = Workspace(root, "shop")
    with writing(space.ingested) as folder:
        (folder / "interactions.parquet").write_bytes(b"the rows of May")
    drift(root, drifted=True)  # by the retraining that `new_data` asked for, whose challenger was refused
    run = going(instance, "shop", dg.DagsterRunStatus.SUCCESS, "retraining")
    rows = versions.of_output(space.ingested)
    made = dg.AssetMaterialization("interactions", partition="shop", tags={DATA_VERSION_TAG: rows})
    event = DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value, "retraining", event_specific_data=StepMaterializationData(made)
    )
    instance.report_dagster_event(event, run_id=run.run_id)
    assert f"run {run.run_id} of the job retraining has trained on this data" in looker.says()
    with writing(space.ingested) as folder:
        (folder / "interactions.parquet").write_bytes(b"the rows of June, which nothing has trained on")
    assert [one.partition_key for one in looker.asks()] == ["shop"]


def test_a_drifted_dataset_waits_for_its_run(root, instance):
    looker = Looker(root, instance, "drift_report")
    drift(root, drifted=True)
    run = going(instance, "shop", dg.DagsterRunStatus.QUEUED)
    assert run.run_id in looker.says()
    ended(instance, run)
    assert len(looker.asks()) == 1


# --- the clock --------------------------------------------------------------------------------------------------------


def test_the_hour_asks_for_the_same_job_unless_it_runs(root):
    change(root, "retrain: {shop: {}}", CHOSEN)
    graph = definitions(root)
    [schedule] = graph.schedules
    moment = datetime(2026, 3, 2, 4, 30, tzinfo=UTC)

    with dg.instance_for_test() as instance:
        context = dg.build_schedule_context(instance, moment, repository_def=graph.get_repository_def())
        [asked] = schedule.evaluate_tick(context).run_requests
        run = going(instance, "shop")
        found = schedule.evaluate_tick(context)
    assert (asked.partition_key, asked.tags[REASON]) == ("shop", "schedule: 30 4 * * 1")
    assert schedule.job_name == "retraining"
    assert dg.AssetKey("evaluation_ease") in asked.asset_selection
    assert dg.AssetKey("evaluation_most_pop") in asked.asset_selection  # what the gate asks it to beat
    assert found.run_requests == []
    assert run.run_id in found.skip_message


# --- freshness --------------------------------------------------------------------------------------------------------


AFTER = ("leaderboard", "champion", "recommendations", "drift")


def test_what_stands_on_a_changed_asset_is_made_again_for_the_chosen_dataset_alone(root, instance):
    change(root, "retrain: {shop: {}}", "retrain: {shop: {fresh: true}, other: {}}")
    graph = definitions(root)

    def happened(*names):
        for name in names:
            for dataset in ("shop", "other"):
                instance.report_runless_asset_event(dg.AssetMaterialization(name, partition=dataset))

    def requested(cursor):
        found = dg.evaluate_automation_conditions(graph, instance, cursor=cursor)
        asked = {
            (one.key.to_user_string(), partition)
            for one in found.results
            for partition in one.true_subset.expensively_compute_partition_keys()
        }
        return asked, found.cursor

    names = [step.name for step in steps(load_params(root / "params.yaml"))]
    happened(*names)
    asked, cursor = requested(None)
    assert asked == set()
    happened("raw_interactions")
    asked, cursor = requested(cursor)
    assert asked == {(name, "shop") for name in names if name != "raw_interactions"}  # in one run, one after the other
    happened(*names)
    _, cursor = requested(cursor)
    change(root, "l2: 100", "l2: 200")
    graph = definitions(root)
    asked, _ = requested(cursor)
    assert asked == {(name, "shop") for name in ("model_ease", "evaluation_ease", *AFTER)}


def test_the_table_does_not_wait_for_variants_that_the_dataset_does_not_train(root, instance):
    change(root, "retrain: {shop: {}}", "retrain: {shop: {fresh: true, variants: [ease]}}")
    graph = definitions(root)
    made = wanted(root)
    for name in made:
        instance.report_runless_asset_event(dg.AssetMaterialization(name, partition="shop"))
    first = dg.evaluate_automation_conditions(graph, instance)
    assert first.total_requested == 0
    instance.report_runless_asset_event(dg.AssetMaterialization("evaluation_ease", partition="shop"))
    second = dg.evaluate_automation_conditions(graph, instance, cursor=first.cursor)
    assert second.get_num_requested(dg.AssetKey("leaderboard")) == 1
    assert second.get_num_requested(dg.AssetKey("model_most_pop")) == 0
