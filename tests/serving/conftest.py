"""One shelf of packages for all tests of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.serving.shop import Service, Shelf


@pytest.fixture(scope="session")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelves")


@pytest.fixture
def shelf(shelves: Path) -> Shelf:
    return Shelf(shelves)


@pytest.fixture
def service(shelf: Shelf) -> Iterator[Service]:
    made = Service(shelf)
    yield made
    made.follower.stop()
    made.batcher.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(service.app, raise_server_exceptions=False)
