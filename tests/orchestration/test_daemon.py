"""Dagster's daemon, running for real: new data comes in, another champion serves, and nobody lifted a hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from orchestration.automation import REASON
from tests import shop

from noise2next.workspace import Workspace, read_json

PATIENCE = 300  # seconds, on a machine that has other things to do


@pytest.fixture
def instance(first_month, repository, tmp_path, monkeypatch):
    """Dagster's memory of the project, under the settings that are committed."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(repository / "dagster.yaml", home)
    monkeypatch.chdir(first_month)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as made:
        yield made


@pytest.fixture
def daemon(first_month, repository, instance, tmp_path):
    """The daemon over the project, gone afterwards with all that it started."""
    assert instance.run_retries_enabled
    log = (tmp_path / "daemon.log").open("w+")
    started = subprocess.Popen(
        [Path(sys.executable).with_name("dagster-daemon"), "run", "--module-name", "orchestration.definitions"],
        cwd=first_month,
        env={
            **{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
            "NOISE2NEXT_ROOT": str(first_month),
            "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}",
            "PYTHONWARNINGS": "ignore",
        },
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
        log.close()


def until(daemon, what, found):
    """Wait for `found` to give something, as long as the daemon lives."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert daemon.poll() is None, "the daemon has gone"
        if result := found():
            return result
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen in {PATIENCE} s")


def cursor(instance, sensor):
    """What a sensor remembers; nothing before its first look."""
    states = [one for one in instance.all_instigator_state() if one.name == sensor]
    return states[0].instigator_data.cursor if states and states[0].instigator_data else None


def ended(instance, job):
    """The one run of a job, when it has ended."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job))
    return runs[0] if runs and runs[0].is_finished else None


def test_a_commit_that_changes_data_dvc_ends_in_another_champion_with_no_hand_on_it(first_month, instance, daemon):
    assert shop.champion(first_month).version == "1"
    until(daemon, "the first look", lambda: cursor(instance, "new_data"))
    shutil.copy(first_month / "later" / "2.csv", first_month / "data" / "shop" / "2.csv")
    shop.version(first_month)
    shop.git(first_month, "commit", "--quiet", "--message", "the second month", "data.dvc")

    run = until(daemon, "the retraining", lambda: ended(instance, "retraining"))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.tags[REASON] == "data.dvc: 1 file added"
    assert run.tags["dagster/partition"] == "shop"
    assert run.tags["dagster/sensor_name"] == "new_data"
    assert instance.get_runs_count() == 1

    champion = shop.champion(first_month)  # it loads, and gives its golden answers again
    assert champion.version == "2"
    decision = json.loads(champion.tags["decision"])
    assert decision["promoted"]
    assert (decision["challenger"]["version"], decision["champion"]["version"]) == ("2", "1")
    assert any("above the champion" in one for one in decision["reasons"])
    assert read_json(Workspace(first_month, "shop").registration / "report.json")["champion"] == "2"
    [made] = [
        event.dagster_event.step_materialization_data.materialization
        for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        if event.dagster_event.asset_key == dg.AssetKey("champion")
    ]
    assert "is champion over version 1" in made.metadata["summary"].value
    checked = {
        (one.asset_key.to_user_string(), one.check_name)
        for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        for one in [event.dagster_event.asset_check_evaluation_data]
    }
    assert {("validation", "contract"), ("split", "leakage"), ("model_ease", "integrity")} <= checked
