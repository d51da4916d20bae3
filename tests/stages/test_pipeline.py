"""What the whole way refuses before it sets out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noise2next.config import Params, Settings
from noise2next.errors import UserError
from noise2next.stages import pipeline
from noise2next.workspace import Workspace, alone

PARAMS = Params.model_validate(
    {
        "datasets": {"shop": {"path": "shop.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"}},
        "variants": {"ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 3}}},
    }
)


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, "shop")
    made.promotion_policy.parent.mkdir()
    made.promotion_policy.write_text("metric: recall@20\n")
    return made


def test_a_second_run_of_a_dataset_is_refused_with_the_number_of_the_first(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with (
        alone(space.run_lock, "run of shop"),
        pytest.raises(UserError, match=rf"another run of shop is going on \(process {os.getpid()}\)"),
    ):
        pipeline.run(PARAMS, space, Settings(root=space.root), None)
    assert not space.ingested.exists()


def test_a_policy_that_cannot_be_read_stops_the_run_before_the_data(space: Workspace) -> None:
    space.promotion_policy.write_text("metrics: recall@20\n")
    with pytest.raises(UserError, match=r"promotion\.yaml: .*metrics: unknown key"):
        pipeline.run(PARAMS, space, Settings(root=space.root), None)
    assert not space.artifacts.exists()


def test_a_run_that_was_killed_bars_no_later_one(tmp_path: Path) -> None:
    lock = Workspace(tmp_path, "shop").run_lock
    code = (
        "import os, sys; from pathlib import Path; from noise2next.workspace import alone\n"
        "with alone(Path(sys.argv[1]), 'run'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(lock)], check=False).returncode == -9
    assert lock.exists()
    with alone(lock, "run"):
        assert lock.read_text() == str(os.getpid())


@pytest.mark.parametrize("silent", [False, True], ids=["nobody listens", "it accepts and says nothing"])
def test_a_tracking_server_that_does_not_answer_stops_the_run_before_the_data(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr("noise2next.registry.tracking.PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1] if silent else 9}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"{uri}.*does not answer.*unset"):
            pipeline.run(PARAMS, space, Settings(root=space.root), None)
        assert time.monotonic() - start < 5
    assert not space.artifacts.exists()
