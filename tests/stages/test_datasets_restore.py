"""data/ as data.dvc pins it: from the cache, from the remote, and never over what nobody recorded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests import shop

from noise2next.errors import UserError
from noise2next.stages import datasets
from noise2next.workspace import Workspace


@pytest.fixture(scope="module")
def two_months(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """data.dvc pins the second month, data/ holds the first; both are in the cache and in a remote."""
    root = tmp_path_factory.mktemp("two") / "project"
    shop.make(root, repository)
    space = Workspace(root, "shop")
    datasets.version(space)
    shutil.copy(root / "later" / "2.csv", root / "data" / "shop")
    datasets.version(space)
    dvc(root, "remote", "add", "--default", "here", str(root.parent / "remote"))
    dvc(root, "push", "--quiet")
    (root / "data" / "shop" / "2.csv").unlink()
    return root


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def space(two_months: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(two_months, tmp_path / "project"), "shop")


def test_what_the_cache_holds_comes_from_there(space: Workspace) -> None:
    dvc(space.root, "remote", "remove", "here")
    datasets.restore(space)
    assert (space.data / "shop" / "2.csv").read_bytes() == (space.root / "later" / "2.csv").read_bytes()


def test_what_it_lacks_comes_from_the_remote(space: Workspace) -> None:
    """As on a machine that pulled the commit."""
    shutil.rmtree(space.versioning / "cache")
    shutil.rmtree(space.data)
    datasets.restore(space)
    assert (space.data / "shop" / "2.csv").read_bytes() == (space.root / "later" / "2.csv").read_bytes()


def test_what_is_nowhere_is_a_sentence_in_dvcs_own_words(space: Workspace) -> None:
    shutil.rmtree(space.versioning / "cache")
    dvc(space.root, "remote", "remove", "here")
    with pytest.raises(UserError, match="dvc pull"):
        datasets.restore(space)


def test_what_nobody_recorded_is_not_removed(space: Workspace) -> None:
    unrecorded = space.data / "shop" / "3.csv"
    unrecorded.write_text("a person's own\n")
    with pytest.raises(UserError, match="dvc pull"):
        datasets.restore(space)
    assert unrecorded.read_text() == "a person's own\n"
