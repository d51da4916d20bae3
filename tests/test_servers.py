"""A team's servers: the rules that mlflow/compose.yaml keeps, and its very commands and settings on this machine.

There are no containers here: names of services become 127.0.0.1, PostgreSQL is the system's, the S3 is moto's.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster_graphql import DagsterGraphQLClient
from ruamel.yaml import YAML
from tests import servers

from noise2next.config import Settings
from noise2next.data import sample
from noise2next.registry.versions import ModelRegistry
from noise2next.workspace import Workspace

SECRETS = ("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "DAGSTER_DB_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<text>[^}]*))?\}")

PARAMS = """
seed: 1
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""


def read(path: Path):
    """YAML as its readers see it, `<<` laid under."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose(repository):
    return read(repository / "mlflow" / "compose.yaml")


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def filled(value, environment: Mapping[str, str]):
    """A part of the file with its variables filled in, as docker compose does it."""
    if isinstance(value, Mapping):
        return {name: filled(one, environment) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, environment) for one in value]
    return VARIABLE.sub(lambda found: _fill(found, environment), value) if isinstance(value, str) else value


def _fill(found: re.Match, environment: Mapping[str, str]) -> str:
    value = environment.get(found["name"], "")
    if not value and found["kind"] == ":?":
        raise KeyError(f"{found['name']}: {found['text']}")
    return value or found["text"] or ""


# --- the rules --------------------------------------------------------------------------------------------------------


def test_every_secret_must_be_given_and_none_has_a_default(compose, repository):
    asked = {found["name"] for found in VARIABLE.finditer(json.dumps(compose)) if found["kind"] == ":?"}
    assert asked == set(SECRETS)
    given = {name: f"value-of-{name}" for name in SECRETS}
    filled(compose, given)
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            filled(compose, {**given, name: ""})
    example = (repository / "mlflow" / ".env.example").read_text().splitlines()
    assert example == [f"{name}=" for name in SECRETS]


def test_no_password_is_spelled_in_the_file(services):
    """Whatever a setting of a secret's name or an address with a name in it holds, its secret part is a variable."""
    looked_at = 0
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if "@" in value:
                assert re.search(r":\$\{\w+:\?[^}]*\}@", value), name
            elif re.search("PASSWORD|KEY|SECRET|_USER$", name):
                assert VARIABLE.fullmatch(value)["kind"] == ":?", name
            else:
                continue
            looked_at += 1
    assert looked_at > len(SECRETS)


def test_ports_are_on_loopback_unless_an_address_is_chosen(services):
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 4
    for port in published:
        assert filled(port, {}).startswith("127.0.0.1:")
        assert filled(port, {"BIND": "10.0.0.7"}).startswith("10.0.0.7:")
    assert "ports" not in services["postgres"]


def test_every_image_is_named_with_its_version(services, repository):
    base = re.search(r"^FROM (\S+)$", (repository / "mlflow" / "Dockerfile").read_text(), re.MULTILINE)[1]
    for image in {service["image"] for service in services.values()} | {base}:
        assert re.search(
            r":(RELEASE\.\d{4}-\d\d-\d\dT[\d-]+Z@sha256:[0-9a-f]{64}|\d+\.\d+(\.\d+)?(-[a-z-]+)?)$", image
        ), image
    assert services["mlflow"]["image"] == f"noise2next:{_version(repository)}"


def _version(repository: Path) -> str:
    return re.search(r'^version = "(.+)"', (repository / "pyproject.toml").read_text(), re.MULTILINE)[1]


def test_every_server_is_looked_after_and_comes_back(services):
    once = {"buckets"}
    for name, service in services.items():
        if name not in once:
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["restart"] == "unless-stopped", name
    awaited = {other: how["condition"] for one in services.values() for other, how in one.get("depends_on", {}).items()}
    assert awaited.pop("buckets") == "service_completed_successfully"
    assert set(awaited.values()) == {"service_healthy"}


def test_what_must_outlive_a_container_lies_in_a_volume(compose, services):
    kept = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert set(compose["volumes"]) <= kept
    assert all(name.startswith((".", "$")) for name in kept - set(compose["volumes"]))


def test_every_file_that_is_laid_into_a_container_is_there(services, repository):
    laid = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    files = [name for name in laid if name.startswith("./")]
    assert files
    assert [name for name in files if not (repository / "mlflow" / name).is_file()] == []
    copied = re.findall(r"^COPY (.+) \S+$", (repository / "mlflow" / "Dockerfile").read_text(), re.MULTILINE)
    let_in = (repository / ".dockerignore").read_text()
    for name in " ".join(copied).split():
        assert (repository / name).exists()
        assert f"!{name}\n" in let_in


def test_the_team_s_dagster_differs_from_one_s_own_in_its_storage_alone(repository):
    own, team = read(repository / "dagster.yaml"), read(repository / "mlflow" / "dagster.yaml")
    places = ("storage", "local_artifact_storage", "compute_logs")
    assert {name: value for name, value in own.items() if name not in places} == {
        name: value for name, value in team.items() if name != "storage"
    }
    assert list(team["storage"]) == ["postgres"]


def test_the_team_s_dagster_fetches_what_data_dvc_names_from_an_address_that_no_file_of_dvc_holds(services, tmp_path):
    secrets = {name: f"of{name.lower().replace('_', '')}" for name in SECRETS}
    given = filled(services["code"]["environment"], secrets)
    assert given["AWS_ENDPOINT_URL"] == "http://minio:9000"
    with servers.object_store("dvc") as store:
        data, where = tmp_path / "data", {"AWS_ENDPOINT_URL": store}

        def dvc(environment, *arguments):
            clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            program = [str(servers.PROGRAMS / "dvc"), *arguments]
            done = subprocess.run(
                program, cwd=tmp_path, env=clean | environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

        dvc({}, "init", "--quiet", "--no-scm")
        dvc({}, "remote", "add", "--default", "storage", "s3://dvc")
        data.mkdir()
        (data / "log.csv").write_text("a log\n")
        dvc({}, "add", "--quiet", "data")
        dvc(servers.KEYS | where, "push", "--quiet")
        for folder in (data, tmp_path / ".dvc" / "cache"):
            shutil.rmtree(folder)
        dvc(given | where, "pull", "--quiet")
        assert (data / "log.csv").read_text() == "a log\n"


# --- the servers themselves -------------------------------------------------------------------------------------------


@dataclass
class Team:
    """The services of the file as programs of this machine."""

    services: Mapping
    secrets: Mapping[str, str]
    postgres: servers.Postgres
    store: str
    place: Path
    ports: dict[str, int] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """The same, where the names of services and the containers' folders are this machine's."""
        for name, there in {
            "postgres:5432": f"127.0.0.1:{self.postgres.port}",
            "http://minio:9000": self.store,
            "http://mlflow:5000": f"http://127.0.0.1:{self.port('5000')}",
            "0.0.0.0": "127.0.0.1",
        }.items():
            text = text.replace(name, there)
        if text.startswith(("/dagster", "/project")):
            return f"{self.place}{text}"
        return str(self.port(text)) if text in ("3000", "4000", "5000", "8000") else text

    def port(self, inside: str) -> int:
        return self.ports.setdefault(inside, servers.free_port())

    def environment(self, name: str) -> dict[str, str]:
        given = filled(self.services[name].get("environment", {}), self.secrets)
        return {key: self.here(value) for key, value in given.items()}

    def log(self, name: str) -> Path:
        return self.place / f"{name}.log"

    def start(self, name: str):
        """The service's own command in its own environment."""
        command = [self.here(one) for one in filled(self.services[name]["command"], self.secrets)]
        return servers.program(command, self.environment(name), self.log(name), self.place)

    def well(self, name: str) -> bool:
        """Its own health check."""
        _, program, *rest = self.services[name]["healthcheck"]["test"]
        rest = [re.sub(r"(?<=127\.0\.0\.1:)(\d+)", lambda found: str(self.port(found[1])), one) for one in rest]
        asked = [str(servers.PROGRAMS / program), *map(self.here, rest)]
        environment = {**os.environ, **self.environment(name)}
        return subprocess.run(asked, env=environment, capture_output=True, check=False, cwd=self.place).returncode == 0

    def await_well(self, name: str, started: subprocess.Popen, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not self.well(name):
            assert started.poll() is None, f"{name} ended: {self.log(name).read_text()[-4000:]}"
            assert time.monotonic() < end, f"{name} is not well: {self.log(name).read_text()[-4000:]}"
            time.sleep(1)


@pytest.fixture(scope="module")
def team(services, repository, tmp_path_factory):
    """The database, the buckets, a project with a short log; MLflow and Dagster's three programs, each well."""
    place = tmp_path_factory.mktemp("team")
    secrets = {name: f"of{name.lower().replace('_', '')}" for name in SECRETS}
    project = place / "project"
    (project / "mlflow").mkdir(parents=True)
    shutil.copy(repository / "mlflow" / "promotion.yaml", project / "mlflow")
    (project / "params.yaml").write_text(PARAMS)
    sample.write(project / "all.csv", seed=5)
    lines = (project / "all.csv").read_text().splitlines(keepends=True)
    (project / "data" / "shop").mkdir(parents=True)
    (project / "data" / "shop" / "log.csv").write_text(lines[0] + "".join(lines[-6_000:]))
    with (
        servers.postgres() as postgres,
        servers.object_store("mlflow") as store,
        contextlib.ExitStack() as running,
    ):
        subprocess.run(
            [repository / "mlflow" / "databases.sh"],
            env={**os.environ, **secrets, **postgres.environment()},
            check=True,
        )
        made = Team(services, secrets, postgres, store, place)
        (place / "dagster").mkdir()
        shutil.copy(repository / "mlflow" / "dagster.yaml", place / "dagster")
        workspace = (repository / "mlflow" / "workspace.yaml").read_text()
        assert "host: code, port: 4000" in workspace
        (place / "dagster" / "workspace.yaml").write_text(
            workspace.replace("host: code, port: 4000", f"host: 127.0.0.1, port: {made.port('4000')}")
        )
        for name in ("mlflow", "code", "dagster", "daemon"):  # as depends_on has them
            made.await_well(name, running.enter_context(made.start(name)))
        yield made


@pytest.fixture(scope="module")
def retrained(team):
    """The id of a run of the whole graph, asked for at the web server and ended well."""
    asking = DagsterGraphQLClient("127.0.0.1", port_number=team.port("3000"))
    run = asking.submit_job_execution("pipeline", tags={"dagster/partition": "shop"})
    end = time.monotonic() + 300
    while (status := asking.get_run_status(run)) not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
        assert time.monotonic() < end, f"{status}: {team.log('daemon').read_text()[-4000:]}"
        time.sleep(1)
    assert status == dg.DagsterRunStatus.SUCCESS, team.log("code").read_text()[-6000:]
    return run


def asked(team: Team, database: str, password: str, question: str):
    with contextlib.closing(
        psycopg2.connect(host="127.0.0.1", port=team.postgres.port, user=database, password=password, dbname=database)
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(question)
        return cursor.fetchall()


@pytest.mark.slow
def test_a_run_asked_for_at_the_web_server_is_done_and_recorded_in_postgresql(team, retrained):
    found = asked(team, "dagster", team.secrets["DAGSTER_DB_PASSWORD"], "select run_id, status from runs")
    assert found == [(retrained, "SUCCESS")]


@pytest.mark.slow
def test_the_champion_is_in_mlflow_s_database_and_its_package_on_the_s3(team, retrained):
    question = "select a.alias, v.version from registered_model_aliases a join model_versions v using (name, version)"
    found = dict(asked(team, "mlflow", team.secrets["MLFLOW_DB_PASSWORD"], question))
    assert set(found) == {"champion", "challenger"}
    kept = servers.keys_in(team.store, "mlflow")
    assert any(key.endswith("/MLmodel") for key in kept)
    assert any(key.endswith("/weights.safetensors") for key in kept)


@pytest.mark.slow
def test_who_has_the_tracking_server_s_address_alone_gets_the_verified_package(team, retrained, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{team.port('5000')}")
    registry = ModelRegistry(Settings(root=tmp_path), Workspace(tmp_path, "shop"))
    place = registry.fetch(registry.champion())
    assert tmp_path in place.parents
    assert (place / "MLmodel").is_file()


@pytest.mark.slow
def test_mlflow_is_reached_by_the_names_that_the_file_lists_and_no_other(team):
    address = f"http://127.0.0.1:{team.port('5000')}/api/2.0/mlflow/experiments/search?max_results=1"
    answers = {}
    for host in ("mlflow:5000", "localhost:5000", "evil.example"):
        try:
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}), timeout=30).close()
            answers[host] = 200
        except urllib.error.HTTPError as error:
            answers[host] = error.code
    assert answers == {"mlflow:5000": 200, "localhost:5000": 200, "evil.example": 403}


@pytest.mark.slow
def test_neither_database_opens_to_the_other_server(team):
    with pytest.raises(psycopg2.OperationalError, match="CONNECT privilege"):
        psycopg2.connect(
            host="127.0.0.1",
            port=team.postgres.port,
            user="mlflow",
            password=team.secrets["MLFLOW_DB_PASSWORD"],
            dbname="dagster",
        )


@pytest.mark.slow
def test_the_champion_is_served(team, retrained):
    given = {**team.secrets, "SERVED_DATASET": "shop"}
    serving = Team(team.services, given, team.postgres, team.store, team.place, team.ports)
    with serving.start("serving") as started:
        serving.await_well("serving", started)
