"""What MLflow loads to serve a package. It is copied into each package; everything it does is in `packaging`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from noise2next.errors import UserError
from noise2next.registry.packaging import CONTENT, Package, answer_frame
from noise2next.workspace import verify


class Served(PythonModel):  # type: ignore[misc]
    """Answers known users and bare histories."""

    def load_context(self, context: PythonModelContext) -> None:
        content = Path(context.artifacts[CONTENT.name])
        verify(content.parents[len(CONTENT.parts) - 1])
        self.package = Package.load(content)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        chosen = params or {}
        try:
            return answer_frame(
                self.package, model_input, int(chosen.get("k", 10)), bool(chosen.get("exclude_seen", True))
            )
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(Served())
