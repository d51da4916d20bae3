"""A small shop for every test that needs a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stages.small_shop import World, small_shop

from noise2next.config import Settings
from noise2next.registry import versions
from noise2next.workspace import Workspace


@pytest.fixture
def world(tmp_path: Path, empty_store: Path) -> World:
    return small_shop(tmp_path, empty_store)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow database without experiments, made once: its tables take a second."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        versions.connect(Settings(root=root), Workspace(root, "shop"))
        yield root / "mlflow.db"
