"""What all tests share: quiet tools, the real logs where they are, and one small trained world."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name, value in {
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real logs, or a skip that says how to get one."""
    folder = Path(os.environ.get("NOISE2NEXT_SHARED", REPOSITORY / ".." / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no real logs at {folder}: set NOISE2NEXT_SHARED to a folder that holds data/raw")
    return folder / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")
    parser.addoption("--screenshots", metavar="FOLDER", help="keep the browser test's pictures there")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow runs it"))


@pytest.fixture(scope="session")
def _first_month(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The project of tests/shop.py with a champion of its first month, versioned and committed; and a copy of it."""
    from tests import shop

    root = tmp_path_factory.mktemp("month") / "project"
    shop.make(root, REPOSITORY)
    shop.git(root, "init", "--quiet")
    shop.version(root)
    shop.run(root)
    shop.git(root, "add", "--all")
    shop.git(root, "commit", "--quiet", "--message", "the first month")
    return root, shutil.copytree(root, root.with_name("kept"), symlinks=True)


@pytest.fixture
def first_month(_first_month: tuple[Path, Path]) -> Path:
    """That project, as it was: always in the same place, for MLflow's records hold paths."""
    root, kept = _first_month
    shutil.rmtree(root)
    return shutil.copytree(kept, root, symlinks=True)
