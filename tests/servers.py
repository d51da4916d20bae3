"""Servers on loopback for tests: the system's PostgreSQL, an S3 of moto's, and programs that are ended."""

import contextlib
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

PROGRAMS = Path(sys.executable).parent
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Postgres:
    """A running server and its superuser's password."""

    port: int
    password: str
    programs: Path

    def environment(self) -> dict[str, str]:
        """What psql and its kin need to be let in."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGPASSWORD": self.password}


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh cluster with PostgreSQL's own defaults but for the address; skips where the system has none."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this system: apt-get install postgresql")
    # It refuses to be run by root, and another account needs a folder that it can reach.
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    account = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    port, password = free_port(), secrets.token_hex(16)
    place = Path(tempfile.mkdtemp(prefix="noise2next-postgres-"))
    (place / "password").write_text(password)
    if owner:
        for path in (place, place / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    data = place / "data"
    try:
        made = [programs / "initdb", "--pgdata", data, "--username", "postgres", "--pwfile", place / "password"]
        subprocess.run([*made, "--auth", "scram-sha-256"], check=True, capture_output=True, cwd=place, **account)
        listen = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        started = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), *listen],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account,
        )
        try:
            server = Postgres(port, password, programs)
            _wait(lambda: _ready(server), started, "PostgreSQL", 30)
            yield server
        finally:
            started.send_signal(signal.SIGINT)  # its own word for: now, and in order
            started.wait(30)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _postgres_programs() -> Path | None:
    named = shutil.which("initdb")
    found = [Path(named).resolve().parent] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if all((folder / name).exists() for name in ("postgres", "psql"))), None)


def _ready(server: Postgres) -> bool:
    asked = [server.programs / "pg_isready", "--host", "127.0.0.1", "--port", str(server.port), "--quiet"]
    return subprocess.run(asked, check=False).returncode == 0


@contextlib.contextmanager
def object_store(*buckets: str) -> Iterator[str]:
    """An S3 with empty `buckets`, at the address that it yields; any key opens it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        for bucket in buckets:
            client(address).create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def client(address: str):
    """boto3's own, for the S3 at `address`."""
    return boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="someone", aws_secret_access_key="secret", region_name="us-east-1"
    )


def keys_in(address: str, bucket: str) -> list[str]:
    """The names of the objects in a bucket."""
    pages = client(address).get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


@contextlib.contextmanager
def program(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A server of this Python's environment, ended with all that it started; its output goes to `log`."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as said:
        started = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path, **environment},
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=cwd or log.parent,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_for(address: str, started: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    """Until `address` answers; an AssertionError with the program's own words where it never does."""
    _wait(lambda: _answers(address), started, f"{address}\n{log}", seconds, log)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def _wait(done, started: subprocess.Popen, what: str, seconds: float, log: Path | None = None) -> None:
    end = time.monotonic() + seconds
    while not done():
        said = log.read_text()[-4000:] if log else ""
        assert started.poll() is None, f"{what} ended: {said}"
        assert time.monotonic() < end, f"{what} did not answer in {seconds} s: {said}"
        time.sleep(0.3)


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
