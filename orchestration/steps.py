"""The graph: which asset stands where, what it needs, and what makes it stale."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from noise2next.config import Params
from orchestration import versions, work
from orchestration.project import Project

Work = Callable[[Project, str], dg.MaterializeResult[Any]]


@dataclass(frozen=True)
class Step:
    """One asset: its place in the graph, and the function (project, dataset) that makes it."""

    name: str
    stage: str | None  # the DVC stage of that name; None for the raw log and for what only the registry decides
    group: str
    description: str
    work: Work
    upstream: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    pool: str | None = None
    code_version: str | None = None
    checks: Mapping[str, str] = field(default_factory=dict)  # name: description, of checks that the step itself answers


def steps(params: Params) -> list[Step]:
    """The whole graph: the chain to the split, two assets a variant, the clusters, the table, the champion, its lists.

    Each asset names the one before it; what it reads from further back is part of that one's version (a validation
    holds for its rows, a model for its split). So the groups, collapsed, are one row of boxes, but for the clusters:
    they are made of a trained model, and latent models are made of them; and but for drift, which also asks the newest
    rows before anything is made of them.
    """
    variants = list(params.variants)
    plain = [name for name in variants if name not in params.latent_variants]
    return [
        Step(
            name="raw_interactions",
            stage=None,
            group="ingestion",
            description="The dataset's own files below `data/`, versioned by DVC. Its version is their hash alone.",
            work=work.raw_interactions,
            kinds=frozenset({"dvc", "file"}),
        ),
        Step(
            name="interactions",
            stage="ingest",
            group="ingestion",
            description="The log in one form; what could not be read lies in quarantine with line and reason.",
            work=work.interactions,
            upstream=("raw_interactions",),
            kinds=frozenset({"parquet"}),
            code_version=versions.of_code("ingest"),
        ),
        Step(
            name="validation",
            stage="validate",
            group="validation",
            description="The log held against its contract. A breach stops everything downstream.",
            work=work.validation,
            upstream=("interactions",),
            kinds=frozenset({"greatexpectations"}),
            code_version=versions.of_code("validate"),
            checks={"contract": "Every expectation of the dataset's suite holds."},
        ),
        Step(
            name="split",
            stage="prepare",
            group="preprocessing",
            description="Filtered, ordered and cut into train, validation and test over dense indices.",
            work=work.split,
            upstream=("validation",),
            kinds=frozenset({"duckdb" if params.engine == "duckdb" else "spark", "parquet"}),
            code_version=versions.of_code("prepare"),
        ),
        *[step for name in plain for step in (_model(params, name), _evaluation(params, name))],
        *_clustering(params),
        *[step for name in params.latent_variants for step in (_model(params, name), _evaluation(params, name))],
        Step(
            name="leaderboard",
            stage="leaderboard",
            group="evaluation",
            description="What beat what, with intervals over the same users.",
            work=work.leaderboard,
            upstream=tuple(f"evaluation_{name}" for name in variants),
            kinds=frozenset({"html"}),
            code_version=versions.of_code("leaderboard", params.evaluation.model_dump(mode="json")),
        ),
        Step(
            name="champion",
            stage="register",
            group="registration",
            description="The best variant by validation becomes challenger; the gate decides who serves.",
            work=work.champion,
            upstream=("leaderboard",),
            kinds=frozenset({"mlflow"}),
            code_version=versions.of_code("register"),
        ),
        Step(
            name="recommendations",
            stage=None,  # DVC cannot see where an alias points
            group="recommendation",
            description="The champion's lists for everyone, kept for the day on which they can be judged.",
            work=work.recommendations,
            upstream=("champion",),
            kinds=frozenset({"parquet"}),
            code_version=versions.of_code("recommend", params.recommendations.model_dump(mode="json")),
        ),
        Step(
            name="drift",
            stage=None,
            group="drift",
            description="What came in since the champion was made, what a newer model lists, what came of the lists.",
            work=work.drift,
            upstream=("recommendations", "interactions"),  # in a whole run it comes last
            kinds=frozenset({"scipy"}),
            code_version=versions.of_code("drift", params.drift.model_dump(mode="json")),
            checks={
                "input": "What comes in moves no more than chance and the usual movement explain.",
                "prediction": "A newer model of the champion's variant still recommends much the same.",
                "outcome": "What was recommended is taken as the test window promised, or popularity has fallen too.",
            },
        ),
    ]


def _clustering(params: Params) -> list[Step]:
    """The item vectors and the clusters; nothing where their source is no variant."""
    source = params.clustering.embeddings
    if source not in params.variants:
        return []
    return [
        Step(
            name="item_embeddings",
            stage="embed",
            group="clustering",
            description=f"The item vectors of `{source}`, one row for each item by its raw id.",
            work=work.item_embeddings,
            upstream=(f"model_{source}",),
            kinds=frozenset({"parquet"}),
            code_version=versions.of_code("embed", source),
        ),
        Step(
            name="item_clusters",
            stage="cluster",
            group="clustering",
            description=f"The items in 1 to {params.clustering.most} groups by k-means over their vectors.",
            work=work.item_clusters,
            upstream=("item_embeddings",),
            kinds=frozenset({"scikitlearn", "parquet"}),
            code_version=versions.of_code("cluster", [params.seed, params.clustering.model_dump(mode="json")]),
        ),
    ]


def _model(params: Params, variant: str) -> Step:
    latent = variant in params.latent_variants
    entry = params.variants[variant].model_dump(mode="json", exclude={"search"})
    choices = [params.seed, params.trainer.model_dump(mode="json"), entry]
    return Step(
        name=f"model_{variant}",
        stage="train_latent" if latent else "train",
        group="training",
        description=f"`{params.variants[variant].model}`, {params.variants[variant].weighting.kind} weights.",
        work=lambda project, dataset: work.model(project, dataset, variant),
        upstream=("split", "item_clusters") if latent else ("split",),
        kinds=frozenset({"pytorch"}),
        pool="gpu",
        code_version=versions.of_code("train_latent" if latent else "train", choices),
    )


def _evaluation(params: Params, variant: str) -> Step:
    return Step(
        name=f"evaluation_{variant}",
        stage="evaluate_latent" if variant in params.latent_variants else "evaluate",
        group="evaluation",
        description=f"`{variant}` judged on validation and test by full ranking, user by user.",
        work=lambda project, dataset: work.evaluation(project, dataset, variant),
        upstream=(f"model_{variant}",),
        kinds=frozenset({"parquet"}),
        code_version=versions.of_code("evaluate", params.evaluation.model_dump(mode="json")),
    )
