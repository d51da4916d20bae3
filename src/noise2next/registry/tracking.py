"""Runs in MLflow: one experiment a dataset, one run a variant and seed."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from noise2next.config import Params, Settings
from noise2next.errors import UserError
from noise2next.models.artifact import ModelCard
from noise2next.workspace import Workspace

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # an open curve on the screen is never older
PROBE_SECONDS = 5.0  # mlflow itself tries again for minutes
DIGEST_LENGTH = 36  # what MLflow's table holds of a dataset's digest


class RunLog:
    """One open run. Metrics are kept back a moment and sent in batches."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log named values, `recall@20` as `recall_at_20`, at `step` (an epoch; None: the run as a whole)."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(metric_name(name), float(value), now, step or 0) for name, value in values.items()]
        if time.monotonic() - self._sent > FLUSH_SECONDS:
            self.flush()

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags on the run."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def flush(self) -> None:
        """Send what waits; at most 1,000 values a call, as MLflow demands."""
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), 1000):
            self._client.log_batch(self.run_id, metrics=waiting[start : start + 1000])
        self._sent = time.monotonic()


@contextlib.contextmanager
def training_run(settings: Settings, space: Workspace, card: ModelCard, params: Params) -> Iterator[RunLog]:
    """Open a run for one variant and seed; it ends FINISHED, or FAILED when the body raises.

    A run of the same variant and seed that a killed process left open is marked KILLED first.
    """
    client = connect(settings, space)
    experiment = experiment_of(client, space)
    _close_orphans(client, experiment, card)
    run = client.create_run(experiment, run_name=f"{card.variant.name}-seed{card.seed}", tags=_tags(card, params))
    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in _flat(card, params).items()])
    client.log_inputs(run.info.run_id, [_dataset(card, params)])
    with _closing(client, run.info.run_id) as opened:
        yield opened


@contextlib.contextmanager
def resume_run(settings: Settings, space: Workspace, run_id: str) -> Iterator[RunLog]:
    """Add to a finished run. Where the store does not have it (a fresh store), a run of its own takes what comes."""
    client = connect(settings, space)
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        log.warning("MLflow has no run %s any more; a new run takes its place", run_id)
        made = client.create_run(
            experiment_of(client, space), run_name=f"again-{run_id[:8]}", tags={"replaces": run_id}
        )
        with _closing(client, made.info.run_id) as opened:
            yield opened
        return
    opened = RunLog(client, run_id)
    try:
        yield opened
    finally:
        opened.flush()


def metric_name(name: str) -> str:
    """MLflow does not allow '@' in a name."""
    return name.replace("@", "_at_")


def tracking_uri(settings: Settings, space: Workspace) -> str:
    """The named tracking server, or the project's own SQLite file."""
    return settings.tracking_uri or f"sqlite:///{space.tracking_store.resolve()}"


def run_page(settings: Settings, space: Workspace, run_id: str) -> str:
    """Where a person sees a run: the tracking server, or the MLflow UI that `make ui` opens over the local store."""
    uri = tracking_uri(settings, space)
    server = uri.rstrip("/") if uri.startswith(("http:", "https:")) else "http://localhost:5000"
    experiment = connect(settings, space).get_run(run_id).info.experiment_id
    return f"{server}/#/experiments/{experiment}/runs/{run_id}"


def probe(settings: Settings, space: Workspace) -> None:
    """Raise UserError where a tracking server is named that does not answer, be it with a refusal."""
    uri = tracking_uri(settings, space)
    if not uri.startswith(("http:", "https:")):
        return
    shown = re.sub(r"//[^/@]*@", "//", uri)  # without the name and the password that may stand in it
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # whom to trust is mlflow's to say
            return
        raise UserError(
            f"MLFLOW_TRACKING_URI={shown}: the tracking server does not answer ({reason}); start it or correct the "
            "address, or unset the variable to use the local store"
        ) from error


def connect(settings: Settings, space: Workspace) -> MlflowClient:
    """A client whose store exists; the first process to come makes it while the others wait.

    Raises UserError where a server is named that does not answer.
    """
    probe(settings, space)
    uri = tracking_uri(settings, space)
    for chatter in ("mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store", "alembic"):
        logging.getLogger(chatter).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if settings.tracking_uri is None and not space.tracking_store.exists():
        space.root.mkdir(parents=True, exist_ok=True)
        with space.tracking_store.with_suffix(".db.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client.search_experiments(max_results=1)
    return client


def experiment_of(client: MlflowClient, space: Workspace) -> str:
    """The id of the dataset's experiment, made where it is missing."""
    name = f"noise2next-{space.dataset}"
    found = client.get_experiment_by_name(name)
    if found is None:
        local = not client.tracking_uri.startswith(("http:", "https:"))  # a server chooses its own place
        place = space.tracking_artifacts.resolve().as_uri() if local else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


@contextlib.contextmanager
def _closing(client: MlflowClient, run_id: str) -> Iterator[RunLog]:
    opened, status = RunLog(client, run_id), "FAILED"
    try:
        yield opened
        status = "FINISHED"
    finally:
        try:
            opened.flush()
        finally:
            client.set_terminated(run_id, status)


def _close_orphans(client: MlflowClient, experiment: str, card: ModelCard) -> None:
    """Mark open runs of this variant and seed KILLED where their process, on this machine, is gone."""
    chosen = f"tags.variant = '{card.variant.name}' and tags.seed = '{card.seed}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], chosen, ViewType.ACTIVE_ONLY):
        host, _, process = run.data.tags.get("process", "").rpartition(":")
        if host == socket.gethostname() and not _alive(int(process)):
            client.set_terminated(run.info.run_id, "KILLED")


def _alive(process: int) -> bool:
    if process == os.getpid():  # a number used again: the run that starts now is not open yet
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tags(card: ModelCard, params: Params) -> dict[str, str]:
    split = params.dataset(card.dataset).split
    return {
        "variant": card.variant.name,
        "seed": str(card.seed),
        "data_version": card.data_version,
        "code_version": card.code_version,
        "fingerprint": card.fingerprint,
        "split": split.kind,
        "history": split.history,
        "process": f"{socket.gethostname()}:{os.getpid()}",
    }


def _flat(card: ModelCard, params: Params) -> dict[str, str]:
    """Everything chosen for this run as dotted names."""
    dataset = params.dataset(card.dataset)
    tree = {
        "dataset": {
            "name": card.dataset,
            **dataset.model_dump(mode="json", include={"positive", "repeats", "k_core", "split"}),
        },
        "model": card.variant.model,
        "weighting": card.variant.weighting.model_dump(mode="json"),
        "noise": None if card.variant.noise is None else card.variant.noise.model_dump(mode="json"),
        "options": dict(card.variant.options),
        "trainer": params.trainer_for(card.variant).model_dump(mode="json"),
        "seed": card.seed,
    }
    return dict(_leaves("", tree))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), below)
    else:
        yield name, str(value)


def _dataset(card: ModelCard, params: Params) -> DatasetInput:
    """The data by name and version; no row of it goes to MLflow."""
    entity = Dataset(
        name=card.dataset,
        digest=card.data_version[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": f"data/{params.dataset(card.dataset).path}"}),
        profile=json.dumps({"data_version": card.data_version, "items": card.n_items}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
