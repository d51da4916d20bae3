"""A trained model's item vectors as a table of their own."""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable

from torch import Tensor

from noise2next.config import Frozen, Params
from noise2next.data import item_tables
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact
from noise2next.stages.evaluate import refuse_other_data
from noise2next.workspace import Workspace, require, write_json, writing

log = logging.getLogger(__name__)


class EmbedReport(Frozen):
    """Whose vectors they are."""

    dataset: str
    variant: str
    fingerprint: str  # of its model
    items: int
    size: int
    data_version: str


@runtime_checkable
class HasItemEmbeddings(Protocol):
    """A model that has a vector for each item."""

    def item_embeddings(self) -> Tensor:
        """[I, D]"""


def run(params: Params, space: Workspace) -> EmbedReport:
    """Write the item vectors of `clustering.embeddings` to `space.embedded`: item_embeddings.parquet and report.json.

    Raises UserError when its model is missing or damaged, was trained on other data than is prepared now, or has no
    item vectors.
    """
    variant = params.clustering.embeddings
    place = require(space.model(variant), f"train --dataset {space.dataset} --variant {variant}")
    artifact = Artifact.load(place)
    refuse_other_data(space, artifact.card, place)
    if not isinstance(artifact.model, HasItemEmbeddings):
        raise UserError(f"clustering.embeddings: {artifact.card.variant.model} has no item vectors; take lightgcn")
    vectors = artifact.model.item_embeddings().numpy()
    report = EmbedReport(
        dataset=space.dataset,
        variant=variant,
        fingerprint=artifact.card.fingerprint,
        items=vectors.shape[0],
        size=vectors.shape[1],
        data_version=artifact.card.data_version,
    )
    with writing(space.embedded) as folder:
        item_tables.write(folder / "item_embeddings.parquet", artifact.items, {"vector": vectors})
        write_json(folder / "report.json", report.model_dump(mode="json"))
    log.info("%s: %d item vectors of %s", space.dataset, report.items, variant)
    return report
