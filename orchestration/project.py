"""The project folder as a Dagster resource, and how a person's mistake is shown in a run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from noise2next.config import Params, Settings, load_params
from noise2next.errors import UserError
from noise2next.workspace import Workspace

log = logging.getLogger(__name__)


class Project(dg.ConfigurableResource[None]):
    """Where params.yaml, data/ and artifacts/ lie. Files are read anew by every asset, never at import."""

    root: str

    def params(self) -> Params:
        return load_params(self.space("").params)

    def space(self, dataset: str) -> Workspace:
        return Workspace(Path(self.root), dataset)

    def settings(self) -> Settings:
        return Settings(root=Path(self.root))


def project_root() -> Path:
    """The folder named by NOISE2NEXT_ROOT, else the one that this package stands in."""
    settings = Settings()
    named = "root" in settings.model_fields_set
    return (settings.root if named else Path(__file__).parent.parent).resolve()


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """A UserError ends the step with its one sentence and no second try; any other error keeps its stack."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
