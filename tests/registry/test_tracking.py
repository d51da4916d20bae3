"""What MLflow knows about a run, and what a run leaves behind when it ends badly."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from noise2next.config import Params, Settings, Variant
from noise2next.models.artifact import ModelCard
from noise2next.registry.tracking import connect, experiment_of, resume_run, tracking_uri, training_run
from noise2next.workspace import Workspace

PARAMS = Params.model_validate(
    {
        "datasets": {
            "shop": {"path": "shop.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"},
        },
        "variants": {"ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 3}}},
    }
)
CARD = ModelCard(
    dataset="shop",
    variant=Variant(name="ease", model="noise2next.models.ease.EASE", options={"l2": 3}),
    n_items=5,
    seed=7,
    data_version="d" * 64,
    fingerprint="f" * 64,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Workspace]]:
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Settings(root=root), Workspace(root, "shop")


def run_of(place: tuple[Settings, Workspace], run_id: str):
    return connect(*place).get_run(run_id)


def test_a_run_carries_its_tags_its_choices_and_its_data_version(place):
    with training_run(*place, CARD, PARAMS) as run:
        pass
    kept = run_of(place, run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "ease-seed7"
    assert kept.data.tags["variant"] == "ease"
    assert kept.data.tags["split"] == "global_time"
    assert kept.data.tags["history"] == "train+valid"
    assert kept.data.params["options.l2"] == "3"
    assert kept.data.params["trainer.batch_size"] == "400"
    assert kept.inputs.dataset_inputs[0].dataset.digest == "d" * 36


def test_metrics_of_every_epoch_arrive_with_their_step(place):
    with training_run(*place, CARD, PARAMS) as run:
        for epoch in range(1500):
            run.metrics({"recall@20": epoch / 1500}, step=epoch)
    curve = connect(*place).get_metric_history(run.run_id, "recall_at_20")
    assert [point.step for point in curve] == list(range(1500))
    assert curve[750].value == pytest.approx(0.5)


def test_a_run_whose_training_raises_is_marked_failed_and_keeps_its_metrics(place):
    opened = []

    def train() -> None:
        with training_run(*place, CARD, PARAMS) as run:
            opened.append(run.run_id)
            run.metrics({"loss": 1.0}, step=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    kept = run_of(place, opened[0])
    assert kept.info.status == "FAILED"
    assert kept.data.metrics["loss"] == 1.0


@pytest.mark.parametrize(("process", "status"), [("999999999", "KILLED"), ("1", "RUNNING")])
def test_the_next_start_closes_a_run_only_if_its_process_is_gone(place, process, status):
    client = connect(*place)
    tags = {"variant": "ease", "seed": "7", "process": f"{socket.gethostname()}:{process}"}
    left = client.create_run(experiment_of(client, place[1]), tags=tags)
    with training_run(*place, CARD, PARAMS):
        pass
    assert run_of(place, left.info.run_id).info.status == status


def test_an_evaluation_adds_to_the_training_run_and_leaves_it_finished(place):
    with training_run(*place, CARD, PARAMS) as run:
        pass
    with resume_run(*place, run.run_id) as again:
        again.metrics({"test.recall@20": 0.25})
    kept = run_of(place, run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["test.recall_at_20"] == 0.25


def test_a_run_that_the_store_lost_is_replaced_and_says_so(place):
    with resume_run(*place, "0" * 32) as again:
        again.metrics({"recall@20": 0.5})
    kept = run_of(place, again.run_id)
    assert kept.data.tags["replaces"] == "0" * 32
    assert kept.info.status == "FINISHED"


def test_artifacts_lie_below_the_project_and_a_named_server_is_obeyed(place, tmp_path: Path, monkeypatch):
    client = connect(*place)
    experiment = client.get_experiment(experiment_of(client, place[1]))
    assert experiment.artifact_location == (place[1].root / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Settings(root=tmp_path), Workspace(tmp_path, "shop")) == "http://127.0.0.1:5000"


def test_a_run_costs_less_than_a_second_once_the_store_stands(place):
    start = time.perf_counter()
    with training_run(*place, CARD, PARAMS) as run:
        for epoch in range(100):
            run.metrics({"loss": 1.0, "recall@20": 0.1}, step=epoch)
    assert time.perf_counter() - start < 1.0
    assert isinstance(connect(*place), MlflowClient)
