"""Which pairs of a dataset and a variant cannot be."""

from pathlib import Path

import pytest

from noise2next.config import Params
from noise2next.stages.refused import why_refused
from noise2next.workspace import Workspace

EASE = "noise2next.models.ease.EASE"
PARAMS = Params.model_validate(
    {
        "datasets": {"bag": {"path": "bag.csv", "format": "delimited", "split": {"kind": "random"}}},
        "variants": {
            "ease": {"model": EASE},
            "ease_decay": {"model": EASE, "options": {"decay": 0.8}},
            "ease_last": {"model": EASE, "options": {"last": 5}},
            "markov_chain": {"model": "noise2next.models.markov_chain.MarkovChain"},
        },
    }
)


@pytest.mark.parametrize(
    ("variant", "refused"), [("ease", False), ("ease_decay", True), ("ease_last", True), ("markov_chain", True)]
)
def test_a_log_without_order_is_refused_to_whom_order_matters(variant: str, refused: bool, tmp_path: Path) -> None:
    reason = why_refused(PARAMS, Workspace(tmp_path, "bag"), variant)
    assert (reason == "it reads histories in their order, and this log has no time column") == refused
    assert (reason is None) != refused
