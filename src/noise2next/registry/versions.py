"""A dataset's registered model: versions, aliases, and packages that are verified before anyone believes them.

The order of a registration is log, register, fetch back, hash, ask the golden questions, and only then an alias.

Every decision and every move of the champion is an event: a tag `event.<time>` of the version that it is about, so that
the history lies where the registry does. A move is written down before the aliases move, `champion` last of all: a
process that is killed leaves a move that did not come about, which the next one can tell, and never an unknown one.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import mlflow.artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from noise2next.config import Dataset, Frozen, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.models.artifact import ModelCard, read_card
from noise2next.registry import packaging
from noise2next.registry.promotion import Decision, Version
from noise2next.registry.tracking import connect, experiment_of, tracking_uri
from noise2next.workspace import MANIFEST, Workspace, digest, remove, verify, writing

__all__ = ["Event", "ModelRegistry", "ModelVersion", "Move", "Past", "as_version", "now", "who"]

log = logging.getLogger(__name__)

EVENT = "event."  # how the tags begin
KEPT_PACKAGES = 10  # of those fetched from another machine's registry
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow says that an alias is not there

Move = Literal["promotion", "forced promotion", "rollback"]


class Event(Frozen):
    """Something that was decided about `version`, or a move of the champion to it."""

    when: str  # UTC, as 2026-01-31T12:00:00.000000Z
    by: str  # user@machine
    what: Literal["decision"] | Move
    version: str
    variant: str
    champion: str | None  # the version that was champion then
    previous: str | None  # and the one that `previous` pointed to
    promoted: bool  # the gate's answer, or that a move was begun
    why: list[str]


class Past(Event):
    """An event as the registry now bears it out."""

    done: bool  # of a move: the champion followed; else it was stopped before, or somebody moved the alias by hand


class ModelRegistry:
    """The registered model `noise2next-<dataset>`."""

    def __init__(self, settings: Settings, space: Workspace) -> None:
        self.name = f"noise2next-{space.dataset}"
        self.client = connect(settings, space)
        self._space = space
        self._uri = tracking_uri(settings, space)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One registration at a time on this machine. It lasts as long as judging does; no rollback waits for it."""
        with self._locked("register"):
            yield

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        with self._space.tracking_store.with_suffix(f".db.{what}.lock").open("w") as lock:
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

    def version(self, number: str) -> ModelVersion:
        """Raises UserError where there is no such version, or one that never came back as it was sent."""
        found = next((one for one in self._versions() if str(one.version) == number), None)
        if found is None or found.tags.get("verified") != "true":
            sound = sorted(int(one.version) for one in self._versions() if one.tags.get("verified") == "true")
            raise UserError(
                f"{self.name}: there is no verified version {number!r}; there are "
                f"{', '.join(map(str, sound)) or 'none yet'}"
            )
        return found

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
                f"{self.name}: there is no champion yet; `noise2next run --dataset {self._space.dataset}` makes one"
            )
        return found

    def promote(
        self, version: ModelVersion, over: ModelVersion | None, what: Move, by: str, why: Sequence[str]
    ) -> None:
        """Move `previous` to the champion `over`, then `champion` to `version`: the last step of all.

        Raises UserError, and moves nothing, if the champion is no longer the one that was compared.
        """
        with self._locked("champion"):
            champion = self.at("champion")
            if (champion and champion.version) != (over and over.version):
                raise UserError(
                    f"{self.name}: the champion was moved meanwhile, so another was compared; register again"
                )
            self._move(version, champion, what, by, why)

    def roll_back(self, by: str, why: Sequence[str]) -> tuple[ModelVersion, ModelVersion]:
        """Let `previous` and `champion` change places: (the champion now, the one that it replaces).

        Raises UserError, and moves nothing, where there is no previous champion or its package is not sound.
        """
        with self._locked("champion"):
            champion = self.champion()
            self._settle(champion)
            previous = self.at("previous")
            if previous is None or previous.version == champion.version:
                raise UserError(
                    f"{self.name}: there is no previous champion to go back to; "
                    "`noise2next promote --version V` takes another version"
                )
            packaging.check_golden(self.fetch(previous))
            self._move(previous, champion, "rollback", by, why)
            return previous, champion

    def history(self) -> list[Past]:
        """Every decision and every move of the champion, oldest first."""
        events = sorted(
            (
                Event.model_validate_json(text)
                for version in self._versions()
                for tag, text in version.tags.items()
                if tag.startswith(EVENT)
            ),
            key=lambda event: event.when,
        )
        champion = self.at("champion")
        found: list[Past] = []
        after = None if champion is None else str(champion.version)
        for event in reversed(events):
            done = event.what == "decision" or event.version == after
            found.append(Past(**event.model_dump(), done=done))
            if event.what != "decision":
                after = event.champion  # whoever moves it next must have found it here
        return found[::-1]

    def rolled_back(self, version: ModelVersion) -> Past | None:
        """The rollback that took the championship from the weights of `version`, whatever number they had then.

        None where they have been champion again since.
        """
        own = {
            str(one.version) for one in self._versions() if one.tags.get("fingerprint") == version.tags["fingerprint"]
        }
        moves = [one for one in self.history() if one.what != "decision" and one.done]
        last = next((one for one in reversed(moves) if own & {one.version, one.champion}), None)
        return last if last is not None and last.what == "rollback" and last.champion in own else None

    def _move(
        self, version: ModelVersion, champion: ModelVersion | None, what: Move, by: str, why: Sequence[str]
    ) -> None:
        """Write the move down, then `previous`, then `champion`."""
        self._settle(champion)
        previous = self.at("previous")
        self._note(
            Event(
                when=now(),
                by=by,
                what=what,
                version=str(version.version),
                variant=version.tags["variant"],
                champion=None if champion is None else str(champion.version),
                previous=None if previous is None else str(previous.version),
                promoted=True,
                why=list(why),
            )
        )
        if champion is not None:
            self.point("previous", champion.version)
        self.point("champion", version.version)
        log.info("%s: %s, champion is version %s", self.name, what, version.version)

    def _settle(self, champion: ModelVersion | None) -> None:
        """Put `previous` back where a move was killed between the two aliases: both then point to the champion."""
        previous = self.at("previous")
        if champion is None or previous is None or previous.version != champion.version:
            return
        moves = [one for one in self.history() if one.what != "decision"]
        if not moves or moves[-1].done:
            return
        if moves[-1].previous is None:
            self.client.delete_registered_model_alias(self.name, "previous")
        else:
            self.point("previous", moves[-1].previous)

    def _note(self, event: Event) -> None:
        self.client.set_model_version_tag(self.name, event.version, f"{EVENT}{event.when}", event.model_dump_json())

    def _versions(self) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_model_versions(f"name = '{self.name}'", page_token=token or None)
            found += page
            token = page.token or None
        return found

    def publish(self, model: Path, split: Split, dataset: Dataset, run_id: str) -> ModelVersion:
        """Package the trained artifact in the folder `model`, log and register it, fetch it back and verify it.

        Raises UserError, and leaves a version that no alias points to, where what comes back is not what was sent.
        """
        card = read_card(model)
        with tempfile.TemporaryDirectory(prefix="noise2next-") as scratch:
            place = Path(scratch) / "package"
            logged = self._log(model, split, dataset, run_id, card, place)
            tags = {
                **_identity(card),
                "digest": digest(place),
                "size_mb": f"{packaging.size_mb(place):.3f}",
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
                self._prune()
            with contextlib.suppress(OSError):  # a folder that may only be read, or that another process took away
                os.utime(place)
        if not (place / MANIFEST).is_file():
            raise UserError(f"{place}: the package of {self.name} version {version.version} is gone; register again")
        if digest(place) != version.tags["digest"]:
            raise UserError(
                f"{place / MANIFEST}: not the one that {self.name} version {version.version} was registered with; "
                "register again"
            )
        verify(place)
        return place

    def keep(self, decision: Decision, page: str) -> str:
        """Write a decision beside the version it is about: tags for a glance, JSON and the `page` for the record.

        Returns where the page lies, or an empty string for a version without a run.
        """
        version, occasion = decision.challenger.version, decision.occasion
        champion, previous = self.at("champion"), self.at("previous")
        tags = {"promoted": str(decision.promoted).lower(), "decision": decision.model_dump_json()}
        tags |= {check.name: f"{check.observed:.3f}" for check in decision.checks if check.name == "latency_ms"}
        for name, value in tags.items():
            self.client.set_model_version_tag(self.name, version, name, value)
        self.client.update_model_version(
            self.name, version, description="\n".join(f"- {one}" for one in decision.reasons)
        )
        self._note(
            Event(
                when=occasion.when,
                by=occasion.by,
                what="decision",
                version=version,
                variant=decision.challenger.variant,
                champion=None if champion is None else str(champion.version),
                previous=None if previous is None else str(previous.version),
                promoted=decision.promoted,
                why=decision.reasons,
            )
        )
        run = self.client.get_model_version(self.name, version).run_id
        if not run:
            return ""
        stamp = datetime.fromisoformat(occasion.when).strftime("%Y%m%dT%H%M%S.%fZ")
        place = f"decisions/version-{version}-{stamp}"
        self.client.log_dict(run, decision.model_dump(mode="json"), f"{place}.json")
        self.client.log_text(run, page, f"{place}.html")
        return f"{self.client.get_run(run).info.artifact_uri}/{place}.html"

    def _log(
        self, model: Path, split: Split, dataset: Dataset, run_id: str, card: ModelCard, place: Path
    ) -> LoggedModel:
        """Make the package at `place` and send it to the store as a logged model."""
        experiment = experiment_of(self.client, self._space)
        logged = self.client.create_logged_model(experiment, card.variant.name, run_id, tags=_identity(card))
        described = Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
        )
        status: Literal["READY", "FAILED"] = "FAILED"
        try:
            packaging.build(model, split, dataset, place, described)
            self.client.log_model_artifacts(logged.model_id, str(place))
            status = "READY"
        finally:
            self.client.finalize_logged_model(logged.model_id, status)
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return logged

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

    def _prune(self) -> None:
        """Take away the fetched packages that were asked for longest ago; several processes may."""
        asked: dict[Path, float] = {}
        for place in self._space.packages():
            with contextlib.suppress(FileNotFoundError):
                asked[place] = place.stat().st_mtime
        for old in sorted(asked, key=asked.__getitem__)[:-KEPT_PACKAGES]:
            with contextlib.suppress(FileNotFoundError):
                remove(old)

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


def now() -> str:
    """This moment in UTC; in order of time where it is in order of the alphabet."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # a tag's name takes no plus sign


def who() -> str:
    """Who asks, as user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


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
