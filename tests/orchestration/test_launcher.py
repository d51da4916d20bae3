"""Dagster's settings, and the launcher that notices a run whose worker is gone."""

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG


@pytest.fixture
def instance(repository, tmp_path, monkeypatch):
    """What `dagster dev` makes of the committed dagster.yaml, with its state below a fresh folder."""
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(repository)) as made:
        yield made


@dg.job
def nothing():
    pass


def started(instance, tags):
    return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)


def health(instance, run):
    return instance.run_launcher.check_run_worker_health(run).status


def test_the_settings_are_understood_and_their_state_stays_in_one_folder(instance):
    assert instance.run_monitoring_enabled
    assert instance.run_launcher.supports_check_run_worker_health
    assert instance.run_retries_enabled
    assert not instance.run_retries_max_retries > 1
    assert not instance.telemetry_enabled
    started(instance, {})
    assert [path.name for path in Path.cwd().iterdir()] == [".dagster"]


def test_one_training_at_a_time(instance):
    assert instance.get_concurrency_config().pool_config.default_pool_limit == 1


def test_a_run_whose_code_server_is_gone_is_found_dead(instance, tmp_path):
    run = started(instance, {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": str(tmp_path / "nobody")})})
    assert health(instance, run) == WorkerStatus.FAILED


def test_a_run_that_no_code_server_started_is_left_alone(instance):
    assert health(instance, started(instance, {})) == WorkerStatus.RUNNING
