"""The process: it drains, says what it cannot do, and follows MLflow's own registry."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn
from tests.serving.shop import DATASET, Service, Shelf, split, trained

from noise2next.config import Settings
from noise2next.registry.packaging import Package
from noise2next.registry.tracking import experiment_of
from noise2next.registry.versions import ModelRegistry
from noise2next.workspace import Workspace

PARAMS = """
datasets:
  shop: {path: shop.csv, format: delimited, columns: {time: t}, time_unit: s}
variants:
  ease: {model: noise2next.models.ease.EASE}
"""
ONE = {"queries": [{"user_id": "u3"}], "k": 3}


def test_ending_answers_what_was_asked_before(shelf: Shelf, monkeypatch):
    service = Service(shelf)
    reply = Package.reply

    def slow(*arguments) -> list:
        time.sleep(0.3)
        return reply(*arguments)

    monkeypatch.setattr(Package, "reply", slow)
    server = uvicorn.Server(uvicorn.Config(service.app, log_config=None, timeout_graceful_shutdown=10))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = "http://{}:{}".format(*listener.getsockname())
    httpx.get(f"{address}/health")
    with ThreadPoolExecutor(20) as callers:
        many = {"queries": [{"history": ["i1", "i2"]}] * 40, "k": 3}
        asked = [callers.submit(httpx.post, f"{address}/recommend", json=many, timeout=20) for _ in range(20)]
        state = server.server_state
        until(lambda: len(state.tasks) + state.total_requests == 21)  # all have come
        assert service.batcher.waiting
        server.should_exit = True
        assert [one.result().status_code for one in asked] == [200] * 20
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def serve(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "noise2next.cli", "serve", "--dataset", "shop", "--poll", "0.2", *arguments]
    environment = {**os.environ, "NO_COLOR": "1", "NOISE2NEXT_ROOT": str(root)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def until(holds, seconds: float = 180):
    """What `holds` gives, as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_the_command_follows_mlflows_alias_from_one_version_to_the_next_and_ends_when_told(project: Path):
    registry = ModelRegistry(Settings(root=project), Workspace(project, "shop"))
    run = registry.client.create_run(experiment_of(registry.client, Workspace(project, "shop")))
    versions = [
        registry.publish(trained(project / f"model-{seed}", seed), split(seed), DATASET, run.info.run_id)
        for seed in (1, 2)
    ]
    process = serve(project, "--port", "0")
    try:
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "http://" in line)
        threading.Thread(target=lambda: list(lines), daemon=True).start()
        address = re.search(r"http://[\d.:]+", line).group()
        until(lambda: httpx.get(f"{address}/health").status_code == 200)
        assert "there is no champion" in until(lambda: httpx.get(f"{address}/ready").json()["trouble"])
        for version in versions:
            registry.point("champion", version.version)
            until(lambda: httpx.get(f"{address}/ready").json()["version"] == str(version.version))  # noqa: B023
            answer = httpx.post(f"{address}/recommend", json=ONE).json()
            assert answer["model"]["data_version"] == version.tags["data_version"]
            assert httpx.get(f"{address}/model").json()["digest"] == version.tags["digest"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_although_the_registry_that_was_there_answers_no_more(project: Path, monkeypatch, told):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        process = serve(project, "--port", "0")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        silent.settimeout(180)
        probing, _ = silent.accept()
        with probing:
            probing.recv(4096)
            probing.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        asking, _ = silent.accept()  # for the champion; MLflow's library would wait for two minutes
        with asking:
            process.send_signal(told)
            try:
                assert process.wait(30) in (0, 130, -told)
            finally:
                process.kill()


def test_a_port_that_is_taken_is_a_sentence_and_exit_code_2(project: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = serve(project, "--port", str(taken.getsockname()[1]))
        _, said = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "--port" in said
    assert "Traceback" not in said


def test_a_dataset_that_is_not_there_is_a_sentence_and_exit_code_2(project: Path):
    process = serve(project, "--dataset", "nowhere")
    _, said = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "nowhere" in said


def test_help_says_what_it_does_and_its_defaults():
    done = subprocess.run(
        [sys.executable, "-m", "noise2next.cli", "serve", "--help"],
        env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for word in ("--host", "127.0.0.1", "--port", "8000", "--poll", "/docs"):
        assert word in done.stdout
