"""What a person sees: Dagster's graph, a dataset materialised with a click, its checks, the leaderboard, the champion.

`make screenshots` runs the same with every variant and keeps the pictures in docs/.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from ruamel.yaml import YAML

from noise2next.config import Settings
from noise2next.registry.versions import ModelRegistry
from noise2next.stages import datasets
from noise2next.workspace import Workspace

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
CHEAP = ["most_pop", "ease", "t_ease", "markov_chain", "lightgcn"]  # lightgcn: the clusters are made of its vectors
COPIED = ("orchestration", "mlflow", "pyproject.toml", "dagster.yaml", "dvc.yaml", "params.yaml")
WIDE = {"width": 1600, "height": 900}
QUICK, LONG = 60_000, 1_500_000  # ms to wait for a page, and for a pipeline


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory, pictures: Path | None) -> Path:
    """A project of its own with the sample log; without pictures to take, with a few cheap variants."""
    root = tmp_path_factory.mktemp("seen") / "noise2next"
    root.mkdir()
    for name in COPIED:
        place = repository / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, root / name)
    if pictures is None:
        yaml = YAML()
        params = yaml.load(root / "params.yaml")
        few = {name: params["variants"][name] for name in CHEAP}
        presets = {name: one for name, one in params["datasets"]["sample"]["presets"].items() if name in few}
        params["datasets"]["sample"]["presets"] = presets
        params |= {"variants": few, "latent_variants": {}}
        yaml.dump(params, root / "params.yaml")
    shutil.copytree(repository / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
    (root / ".gitignore").write_text("/data\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    datasets.sample(root)
    return root


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """The folder that pictures go to, where they are wanted."""
    named = request.config.getoption("--screenshots")
    return None if named is None else Path(named).resolve()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    expect.set_options(timeout=QUICK)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def dagster(project: Path, browser: Browser):
    """The address of Dagster over the project, daemon and all."""
    port = free_port()
    command = ["-m", "dagster", "dev", "--port", str(port), "--log-level", "warning"]
    with served(project, command, f"http://127.0.0.1:{port}/server_info"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def mlflow(project: Path, browser: Browser):
    """The address of MLflow over the project's own store."""
    port = free_port()
    store = f"sqlite:///{Workspace(project, 'sample').tracking_store}"
    command = ["-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1", "--port", str(port)]
    with served(project, command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


class served:
    """A server in the folder `root` while the block runs, answering at `address` when it begins."""

    def __init__(self, root: Path, command: list[str], address: str) -> None:
        self.command, self.address, self.root = command, address, root

    def __enter__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
        environment |= {"NOISE2NEXT_ROOT": str(self.root), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.log = (self.root / "server.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=self.root,
            env={**environment, "PYTHONWARNINGS": "ignore"},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        for _ in range(240):
            try:
                with urllib.request.urlopen(self.address, timeout=5):
                    return
            except (URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, (self.root / "server.log").read_text()
                time.sleep(0.5)
        raise AssertionError(f"{self.address} does not answer: {(self.root / 'server.log').read_text()}")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def page(browser: Browser):
    """A fresh page; what goes wrong in its scripts fails the test."""
    faults = []
    opened = browser.new_page(viewport=WIDE)
    opened.set_default_timeout(QUICK)
    opened.on("pageerror", lambda fault: faults.append(str(fault)))
    yield opened
    opened.close()
    assert not faults


def keep(page: Page, pictures: Path | None, name: str) -> None:
    if pictures is not None:
        page.screenshot(path=pictures / f"{name}.png")


@pytest.fixture(scope="module")
def materialised(dagster: str, browser: Browser, pictures: Path | None) -> str:
    """The address of a run of the whole pipeline for the sample, begun with clicks and waited for until it is green."""
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(QUICK)
    page.goto(f"{dagster}/locations/noise2next/jobs/pipeline")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_text("Select a partition").click()
    page.get_by_text("sample", exact=True).locator("visible=true").last.click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("button", name="View", exact=True).or_(page.get_by_role("link", name="View", exact=True)).click()
    page.wait_for_url("**/runs/*")
    done = page.get_by_text("Success", exact=True).or_(page.get_by_text("Failure", exact=True)).first
    done.wait_for(timeout=LONG)
    assert done.inner_text() == "Success", page.inner_text("body")
    keep(page, pictures, "dagster-run")
    address = page.url
    page.close()
    return address


def test_the_graph_is_the_chain_of_the_readme(dagster, materialised, page, pictures):
    page.goto(f"{dagster}/asset-groups")
    for group in ("ingestion", "validation", "preprocessing", "training", "clustering", "evaluation", "registration"):
        expect(page.get_by_text(group, exact=True).locator("visible=true").first).to_be_visible()
    page.wait_for_timeout(2_000)  # the graph glides into its place
    keep(page, pictures, "dagster-graph")


def test_a_check_is_shown_with_what_it_found(dagster, materialised, page, pictures):
    page.goto(f"{dagster}/assets/split?view=checks")
    page.get_by_text("leakage", exact=True).locator("visible=true").first.click()
    expect(page.get_by_text("Passed").locator("visible=true").first).to_be_visible()
    expect(page.get_by_text("nothing of the future in the past").locator("visible=true").first).to_be_visible()
    keep(page, pictures, "dagster-check")


def test_the_champion_asset_says_who_is_champion(dagster, materialised, page, pictures):
    page.goto(f"{dagster}/assets/champion?view=overview&partition=sample")
    expect(page.get_by_text("is champion").locator("visible=true").first).to_be_visible()
    keep(page, pictures, "dagster-champion")


def test_the_leaderboard_sorts_by_a_click_and_is_dark_where_that_is_liked(project, materialised, page, pictures):
    page.set_viewport_size({"width": 1280, "height": 1500})
    page.goto((Workspace(project, "sample").leaderboard / "leaderboard.html").as_uri())
    first = page.locator("table tbody tr").first
    best = first.inner_text()
    keep(page, pictures, "leaderboard")
    page.locator("th[aria-sort]").first.click()
    assert first.inner_text() != best  # worst first now
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_the_leaderboard_asks_nothing_of_the_network(project, materialised, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((Workspace(project, "sample").leaderboard / "leaderboard.html").as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_mlflow_shows_the_champion(project, materialised, mlflow, page, pictures):
    champion = ModelRegistry(Settings(root=project), Workspace(project, "sample")).champion()
    page.goto(f"{mlflow}/#/models/noise2next-sample")
    expect(page.get_by_text("champion").locator("visible=true").first).to_be_visible()
    expect(page.get_by_text(f"Version {champion.version}").locator("visible=true").first).to_be_visible()
    keep(page, pictures, "mlflow-champion")
