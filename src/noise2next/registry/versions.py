"""A dataset's registered model: versions, aliases, and packages that are verified before anyone believes them.

The order of a registration is log, register, fetch back, hash, ask the golden questions, and only then an alias.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import mlflow.artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from noise2next.config import Dataset, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.models.artifact import ModelCard, read_card
from noise2next.registry import packaging
from noise2next.registry.promotion import Decision, Version
from noise2next.registry.tracking import connect, experiment_of, tracking_uri
from noise2next.workspace import MANIFEST, Workspace, digest, verify, writing

__all__ = ["ModelRegistry", "ModelVersion", "as_version"]

log = logging.getLogger(__name__)

MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow says that an alias is not there


class ModelRegistry:
    """The registered model `noise2next-<dataset>`."""

    def __init__(self, settings: Settings, space: Workspace) -> None:
        self.name = f"noise2next-{space.dataset}"
        self.client = connect(settings, space)
        self._space = space
        self._uri = tracking_uri(settings, space)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One registration at a time on this machine."""
        with self._space.tracking_store.with_suffix(".db.register.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def at(self, alias: str) -> ModelVersion | None:
        """The version that an alias points to, or None."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code not in MISSING:
                raise
            return None

    def point(self, alias: str, version: str) -> None:
        """Move an alias."""
        self.client.set_registered_model_alias(self.name, alias, version)

    def find(self, fingerprint: str) -> ModelVersion | None:
        """The newest version of equal weights that was verified when it was registered."""
        chosen = f"name = '{self.name}' and tags.fingerprint = '{fingerprint}' and tags.verified = 'true'"
        found = self.client.search_model_versions(chosen, order_by=["version_number DESC"], max_results=1)
        return found[0] if found else None

    def champion(self) -> ModelVersion:
        """Raises UserError where nothing was promoted yet."""
        found = self.at("champion")
        if found is None:
            raise UserError(
                f"{self.name}: there is no champion yet; `noise2next run` or `noise2next register` makes one"
            )
        return found

    def promote(self, version: ModelVersion, over: ModelVersion | None) -> None:
        """Move `previous` to the champion `over`, then `champion` to `version`: the last step of all.

        Raises UserError, and moves nothing, if the champion is no longer the one that was compared.
        """
        now = self.at("champion")
        if (now and now.version) != (over and over.version):
            raise UserError(f"{self.name}: another registration moved the champion meanwhile; register again")
        if over is not None:
            self.point("previous", over.version)
        self.point("champion", version.version)

    def publish(self, model: Path, split: Split, dataset: Dataset, run_id: str) -> ModelVersion:
        """Package the trained artifact in the folder `model`, log and register it, fetch it back and verify it.

        Raises UserError, and leaves a version that no alias points to, where what comes back is not what was sent.
        """
        card = read_card(model)
        with tempfile.TemporaryDirectory(prefix="noise2next-") as scratch:
            place = Path(scratch) / "package"
            logged, package = self._log(model, split, dataset, run_id, card, place)
            tags = {
                **_identity(card),
                "digest": digest(place),
                "size_mb": f"{packaging.size_mb(place):.3f}",
                "latency_ms": f"{package.latency_ms():.3f}",
            }
        version = self._register(logged, run_id, tags)
        packaging.check_golden(self.fetch(version))
        self.client.set_model_version_tag(self.name, version.version, "verified", "true")
        log.info("%s version %s: %s, fetched back and verified", self.name, version.version, card.variant.name)
        return self.client.get_model_version(self.name, version.version)

    def fetch(self, version: ModelVersion) -> Path:
        """The package of a version on this machine, each file hashed again. Raises UserError where one differs."""
        uri = self.client.get_model_version_download_uri(self.name, version.version)
        if urlparse(uri).scheme in ("", "file"):
            place = self._here(Path(unquote(urlparse(uri).path)))
        else:
            place = self._space.package(str(version.version))
            if not (place / MANIFEST).is_file() or digest(place) != version.tags["digest"]:
                self._download(uri, place)
        if not (place / MANIFEST).is_file():
            raise UserError(f"{place}: the package of {self.name} version {version.version} is gone; register again")
        if digest(place) != version.tags["digest"]:
            raise UserError(
                f"{place / MANIFEST}: not the one that {self.name} version {version.version} was registered with; "
                "register again"
            )
        verify(place)
        return place

    def keep(self, decision: Decision) -> None:
        """Write a decision beside the version it is about: tags for a glance, JSON for the record."""
        version = decision.challenger.version
        self.client.set_model_version_tag(self.name, version, "promoted", str(decision.promoted).lower())
        self.client.set_model_version_tag(self.name, version, "decision", decision.model_dump_json())
        self.client.update_model_version(
            self.name, version, description="\n".join(f"- {one}" for one in decision.reasons)
        )
        run = self.client.get_model_version(self.name, version).run_id
        if run:
            self.client.log_dict(run, decision.model_dump(mode="json"), f"decisions/version-{version}.json")

    def _log(
        self, model: Path, split: Split, dataset: Dataset, run_id: str, card: ModelCard, place: Path
    ) -> tuple[LoggedModel, packaging.Package]:
        """Make the package at `place` and send it to the store as a logged model."""
        experiment = experiment_of(self.client, self._space)
        logged = self.client.create_logged_model(experiment, card.variant.name, run_id, tags=_identity(card))
        described = Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
        )
        status: Literal["READY", "FAILED"] = "FAILED"
        try:
            package = packaging.build(model, split, dataset, place, described)
            self.client.log_model_artifacts(logged.model_id, str(place))
            status = "READY"
        finally:
            self.client.finalize_logged_model(logged.model_id, status)
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return logged, package

    def _register(self, logged: LoggedModel, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The artifacts' place and not `models:/<id>`, which MLflow would look up in the process's own default store.
        return self.client.create_model_version(
            self.name, logged.artifact_location, run_id, tags=dict(tags), model_id=logged.model_id
        )

    def _here(self, recorded: Path) -> Path:
        """The same artifact in this project's own store, where it is: the store's paths are of the day it was made."""
        store = self._space.tracking_artifacts
        if store.name not in recorded.parts:
            return recorded
        last = len(recorded.parts) - recorded.parts[::-1].index(store.name)
        own = store.joinpath(*recorded.parts[last:])
        return own if (own / MANIFEST).is_file() else recorded

    def _download(self, uri: str, place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="noise2next-") as scratch:
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=scratch, tracking_uri=self._uri, registry_uri=self._uri
            )
            (found,) = Path(scratch).rglob("MLmodel")
            listed = verify(found.parent)
            with writing(place) as folder:
                for name in listed:  # and nothing that MLflow laid beside them
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(found.parent / name, folder / name)


def as_version(version: ModelVersion) -> Version:
    """What a decision says of it."""
    return Version(
        version=str(version.version),
        variant=version.tags["variant"],
        data_version=version.tags["data_version"],
        fingerprint=version.tags["fingerprint"],
    )


def _identity(card: ModelCard) -> dict[str, str]:
    return {
        "variant": card.variant.name,
        "seed": str(card.seed),
        "data_version": card.data_version,
        "code_version": card.code_version,
        "fingerprint": card.fingerprint,
    }
