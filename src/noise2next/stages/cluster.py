"""Items in groups: what latent variants encode apart."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from noise2next.config import Frozen, Params
from noise2next.data import item_tables
from noise2next.data.clustering import LEAST, cluster
from noise2next.data.item_tables import clusters_column
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.stages.evaluate import current_data_version
from noise2next.workspace import Workspace, read_json, require, verify, write_json, writing

log = logging.getLogger(__name__)


class ClusterReport(Frozen):
    """How the items fell into groups; the keys are the columns of item_clusters.parquet."""

    dataset: str
    embeddings: str  # the variant whose vectors were grouped
    items: int
    sizes: Mapping[str, list[int]]
    inertia: Mapping[str, float]  # squared distances to the own group's mean
    seed: int
    data_version: str


def run(params: Params, space: Workspace) -> ClusterReport:
    """Group the items of `space.embedded` into 1 to `clustering.most` clusters and write `space.clustered`.

    There are no more clusters than leave two items for each. Raises UserError where the vectors are missing or damaged,
    or belong to other data than is prepared now.
    """
    verify(require(space.embedded, f"embed --dataset {space.dataset}"))
    embedded = read_json(space.embedded / "report.json")
    again = f"`noise2next embed --dataset {space.dataset}` writes it again"
    data_version = current_data_version(space)
    if embedded["data_version"] != data_version:
        raise UserError(f"{space.embedded}: item vectors of other data than {space.prepared} holds now; {again}")
    items = Vocabulary.load(space.prepared / "items.parquet")
    vectors = item_tables.read(space.embedded / "item_embeddings.parquet", "vector", items, again)
    most = min(params.clustering.most, len(items) // LEAST)
    n_init = params.clustering.n_init
    found = {clusters_column(count): cluster(vectors, count, params.seed, n_init) for count in range(1, most + 1)}
    report = ClusterReport(
        dataset=space.dataset,
        embeddings=embedded["variant"],
        items=len(items),
        sizes={name: one.sizes for name, one in found.items()},
        inertia={name: one.inertia for name, one in found.items()},
        seed=params.seed,
        data_version=data_version,
    )
    with writing(space.clustered) as folder:
        columns = {name: one.labels for name, one in found.items()}
        item_tables.write(folder / "item_clusters.parquet", items, columns)
        write_json(folder / "report.json", report.model_dump(mode="json"))
    log.info("%s: %d items in clusters, %s", space.dataset, len(items), _shown(report))
    return report


def _shown(report: ClusterReport) -> str:
    return ", ".join(f"{name} {'/'.join(map(str, sizes))}" for name, sizes in report.sizes.items())
