"""What each asset does: call one stage, and show its report as a person wants to see it.

Heavy imports stand inside the functions, so that the definitions load in a second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, read_json
from orchestration import versions
from orchestration.metadata import by_cutoff, described, table
from orchestration.project import Project

if TYPE_CHECKING:
    from noise2next.evaluation.drift import Finding
    from noise2next.evaluation.report import DrawsReport
    from noise2next.registry.promotion import Decision

UNREAD = (
    "data_version",
    "fingerprint",
    "code_version",
    "bands",
    "trained_bands",
    "elbo_terms",
)  # for machines and plots
SHOWN = ("recall@10", "recall@20", "ndcg@10", "ndcg@20", "mrr@20")  # of the leaderboard; its page has all


def raw_interactions(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Fingerprint the raw files; the sample, which anyone can generate, is generated where it is missing."""
    from noise2next.stages import datasets

    params, space = project.params(), project.space(dataset)
    if dataset == datasets.SAMPLE and not (space.data / params.dataset(dataset).path).exists():
        datasets.sample(space.root)
    files = versions.raw_files(params, space)
    recorded = versions.recorded_files(space)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(versions.of_files(files)),
        metadata={
            "files": len(files),
            "bytes": sum((space.data / name).stat().st_size for name in files),
            "versioned by DVC": _versioned(files, recorded),
            "md5": table({name: {"md5": hashed} for name, hashed in files.items()}, "file"),
        },
    )


def interactions(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Ingest; show what was read and what lies in quarantine."""
    from noise2next.stages import ingest

    space = project.space(dataset)
    report = ingest.run(project.params(), space)
    return _made(
        space.ingested,
        {
            **described(report, leave_out=("dataset", "reasons", "files", "data_version")),
            "reasons of quarantine": table(report.reasons, "reason", "rows") if report.reasons else "none",
            "quarantine": dg.MetadataValue.path(space.ingested / "quarantine.parquet"),
        },
    )


def validation(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """A breach is shown as a failed blocking check, with the report that names it; nothing downstream runs."""
    from noise2next.data.validation_report import ValidationReport
    from noise2next.stages import validate

    space = project.space(dataset)
    before = _written(space.validation)
    try:
        report, sentence = validate.run(project.params(), space), None
    except UserError as error:
        if _written(space.validation) == before:  # stopped before it could judge
            raise
        report, sentence = ValidationReport.model_validate(read_json(space.validation / "report.json")), str(error)
    contract = dg.AssetCheckResult(
        check_name="contract",
        passed=report.success and sentence is None,
        description=sentence or f"all {len(report.expectations)} expectations hold",
        metadata={"warnings": dg.MetadataValue.md("\n".join(f"- {one}" for one in report.warnings) or "none")},
    )
    expectations = {
        one.name: {"met": one.success, "blocking": one.blocking, "expected": one.expected, "observed": one.observed}
        for one in report.expectations
    }
    return dg.MaterializeResult(
        data_version=dg.DataVersion(
            versions.of_files({"interactions": versions.of_output(space.ingested), "contract": str(report.success)})
        ),
        check_results=[contract],
        metadata={
            **described(report, leave_out=("dataset", "expectations", "docs")),
            "expectations": table(expectations, "expectation"),
            "page": dg.MetadataValue.path(space.validation / "docs" / "index.html"),
        },
    )


def split(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Prepare; show when things happen, what is popular, and how the variants weigh time."""
    from noise2next.data.interactions import Split
    from noise2next.stages import prepare
    from orchestration import plots

    params, space = project.params(), project.space(dataset)
    report = prepare.run(params, space)
    entry = params.dataset(dataset)
    made = Split.load(space.prepared, entry.split, entry.has_clock)
    weights = plots.time_weights(made, {name: params.variant(name, dataset).weighting for name in params.variants})
    return _made(
        space.prepared,
        {
            "activity": plots.activity(made),
            "popularity": plots.popularity(made),
            **({} if weights is None else {"time weights": weights}),
            **described(report, leave_out=("dataset", "data_version", "leakage")),
        },
    )


def model(project: Project, dataset: str, variant: str) -> dg.MaterializeResult[Any]:
    """Train one variant; show how it learned and where its MLflow run is."""
    from noise2next.registry.tracking import run_page
    from noise2next.stages import train
    from noise2next.stages.refused import why_refused
    from orchestration import plots

    params, space = project.params(), project.space(dataset)
    if reason := why_refused(params, space, variant):
        return _left_out(reason)
    report = train.run(params, space, project.settings(), variant)
    metric = params.trainer_for(params.variant(variant, dataset)).metric
    curve = plots.learning_curve(report.curve, metric, report.best_epoch) if report.curve else None
    return _made(
        space.model(variant),
        {
            **({} if curve is None else {"learning curve": curve}),
            "validation": by_cutoff(report.metrics),
            "MLflow run": dg.MetadataValue.url(run_page(project.settings(), space, report.run_id)),
            **described(report, leave_out=("dataset", "variant", *UNREAD, "curve", "metrics", "run_id")),
        },
    )


def item_embeddings(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Write the item vectors of the variant that the clusters are made of."""
    from noise2next.stages import embed
    from noise2next.stages.refused import why_refused

    params, space = project.params(), project.space(dataset)
    if reason := why_refused(params, space, params.clustering.embeddings):
        return _left_out(reason)
    report = embed.run(params, space)
    return _made(space.embedded, described(report, leave_out=("dataset", *UNREAD)))


def item_clusters(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Group the items; show where the groups lie and how large they are."""
    from noise2next.data import item_tables
    from noise2next.data.vocabulary import Vocabulary
    from noise2next.stages import cluster
    from noise2next.stages.refused import why_refused
    from orchestration import plots

    params, space = project.params(), project.space(dataset)
    if reason := why_refused(params, space, params.clustering.embeddings):
        return _left_out(reason)
    report = cluster.run(params, space)
    items, pair = Vocabulary.load(space.prepared / "items.parquet"), item_tables.clusters_column(2)
    shown = {}
    if pair in report.sizes:
        vectors = item_tables.read(space.embedded / "item_embeddings.parquet", "vector", items, "embed again")
        labels = item_tables.read(space.clustered / "item_clusters.parquet", pair, items, "cluster again")
        shown["two clusters"] = plots.clusters(vectors, labels)
    sizes = {
        name: {f"cluster {one}": size for one, size in enumerate(found)} | {"inertia": report.inertia[name]}
        for name, found in report.sizes.items()
    }
    return _made(
        space.clustered,
        {
            **shown,
            "sizes": table(sizes, "labels"),
            **described(report, leave_out=("dataset", "sizes", "inertia", *UNREAD)),
        },
    )


def evaluation(project: Project, dataset: str, variant: str) -> dg.MaterializeResult[Any]:
    """Judge one variant; show every metric on both parts, what its draws are worth, and one list as it comes about."""
    from noise2next.stages import denoise, evaluate
    from noise2next.stages.refused import why_refused
    from orchestration import plots

    params, space = project.params(), project.space(dataset)
    if reason := why_refused(params, space, variant):
        return _left_out(reason)
    report = evaluate.run(params, space, project.settings(), variant)
    metric = params.trainer.metric
    main = {part: found[metric].model_dump() for part, found in report.metrics.items()}
    drawn = {} if report.draws is None else _of_draws(report.draws)
    example = denoise.example(params, space, project.settings(), variant)
    return _made(
        space.evaluation(variant),
        {
            metric.replace("@", " at "): table(main, "part"),
            "test": by_cutoff({name: one.mean for name, one in report.metrics["test"].items()}),
            "lists of test": by_cutoff(report.lists["test"]),
            **drawn,
            **({} if example is None else {"a list, step by step": plots.denoising(example)}),
            **described(report, leave_out=("dataset", "variant", *UNREAD, "metrics", "lists", "draws")),
        },
    )


def _of_draws(draws: "DrawsReport") -> dict[str, Any]:
    """The shares of a stochastic model's draws against hits, and what the draws gain."""
    from orchestration import plots

    bins = {
        f"above {one.above:.0%} to {one.up_to:.0%}": one.model_dump(exclude={"above", "up_to"}) for one in draws.bins
    }
    accuracy = {
        name: {"one draw": draws.one_draw[name], "by share": draws.by_share[name], "gain": gain.model_dump()}
        for name, gain in draws.gain.items()
    }
    facts = draws.model_dump(include={"draws", "users", "auc", "calibration_error", "diversity", "distinct"})
    facts |= {f"coverage@{draws.cutoff}, {name}": share for name, share in draws.coverage.items()}
    return {
        "shares and hits": plots.reliability(draws),
        "shares and hits by bin": table(bins, "share of the draws"),
        "accuracy by share of draws": table(accuracy, "metric"),
        "draws": table(facts, ""),
    }


def leaderboard(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Compare the variants; show the table."""
    from noise2next.stages import leaderboard as stage
    from orchestration import plots

    space = project.space(dataset)
    report = stage.run(project.params(), space)
    rows = {
        row.variant: {
            **{name: row.metrics[name].mean for name in SHOWN if name in row.metrics},
            "coverage@20": row.lists.get("coverage@20", ""),
            "training, s": row.seconds_training,
        }
        for row in report.rows
    }
    intervals = {row.variant: row.metrics[report.main_metric] for row in report.rows}
    return _made(
        space.leaderboard,
        {
            "leaderboard": table(rows, "variant"),
            report.main_metric.replace("@", " at "): plots.intervals(intervals, f"{report.main_metric} on test"),
            "page": dg.MetadataValue.path(space.leaderboard / "leaderboard.html"),
            **described(report, leave_out=("dataset", "rows", *UNREAD)),
        },
    )


def champion(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Offer the best variant to the gate; show what it asked and who is champion now."""
    from noise2next.stages import register

    space = project.space(dataset)
    report = register.run(project.params(), space, project.settings())
    asked = [] if report.decision is None else report.decision.checks
    gate = {
        one.name: {"passed": one.passed, "observed": one.observed, "limit": one.limit, "in words": one.sentence}
        for one in asked
    }
    return _made(
        space.registration,
        {
            "summary": report.summary,
            **({} if report.decision is None else _of_decision(report.decision)),
            **({"gate": table(gate, "question")} if gate else {}),
            **(
                {} if report.decision is None else {"page": dg.MetadataValue.path(space.registration / "decision.html")}
            ),
            **described(report, leave_out=("dataset", "summary", "decision")),
        },
        versions.of_files({report.model: str(report.champion)}),  # who serves, not when the gate was asked
    )


def _of_decision(decision: "Decision") -> dict[str, Any]:
    """Who asked whom about what, why it was so decided, and the gains as pictures."""
    from orchestration import plots

    occasion = decision.occasion
    facts = {
        "asked by": occasion.by,
        "when": occasion.when,
        "judged on data version": occasion.data_version,
        "challenger": f"version {decision.challenger.version}, {decision.challenger.variant}",
        "its data version": decision.challenger.data_version,
        **(
            {}
            if decision.champion is None
            else {
                "champion": f"version {decision.champion.version}, {decision.champion.variant}",
                "the champion's data version": decision.champion.data_version,
            }
        ),
    }
    drawn = {} if decision.gains is None else {"gain over the champion": plots.resampled_gain(decision)}
    compared = {} if not any(check.gain for check in decision.checks) else {"comparisons": plots.gains(decision)}
    return {
        "reasons": dg.MetadataValue.md("\n".join(f"- {one}" for one in decision.reasons)),
        **drawn,
        **compared,
        "decision": table(facts, ""),
    }


def recommendations(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Write the champion's lists for everyone, or leave them as they are; show how many there are."""
    from noise2next.stages import recommend

    if reason := _no_champion(project, dataset):
        return _left_out(reason)
    report = recommend.run(project.params(), project.space(dataset), project.settings())
    return _made(Path(report.path).parent, described(report, leave_out=("dataset", *UNREAD)))


def drift(project: Project, dataset: str) -> dg.MaterializeResult[Any]:
    """Judge what has come since; an alarm is a failed check that warns, and stops nothing."""
    from noise2next.stages import drift as stage
    from orchestration import plots

    kinds = ("input", "prediction", "outcome")
    if reason := _no_champion(project, dataset):
        unjudged = f"not judged: {reason}"
        return _left_out(
            reason, [dg.AssetCheckResult(passed=True, check_name=kind, description=unjudged) for kind in kinds]
        )
    space = project.space(dataset)
    report = stage.run(project.params(), space, project.settings())
    columns = ("value", "before", "chance", "usual", "limit", "alarmed")
    rows = {one.name: {name: _blank(getattr(one, name)) for name in columns} for one in report.findings}
    pictures = {
        "input": plots.drift(report.findings),
        "outcome": plots.outcomes(report.outcomes),
    }
    return dg.MaterializeResult(
        data_version=dg.DataVersion(versions.of_output(space.drift)),
        check_results=[_answered(report.findings, about) for about in kinds],
        metadata={
            **{name: picture for name, picture in pictures.items() if picture is not None},
            "findings": table(rows, "question"),
            **described(report, leave_out=("dataset", "findings", *UNREAD)),
            "folder": dg.MetadataValue.path(space.drift),
        },
    )


def _answered(findings: "Sequence[Finding]", about: str) -> dg.AssetCheckResult:
    """The findings of one kind as the check of that name, which says how many of them could be judged."""
    mine = [one for one in findings if one.about == about]
    judged = {one.name: one.value for one in mine if one.value is not None}
    return dg.AssetCheckResult(
        check_name=about,
        passed=not any(one.alarmed for one in mine),
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join(one.sentence for one in mine)
        if judged or not mine
        else f"not judged: {mine[0].sentence}",
        metadata={**judged, "judged": f"{len(judged)} of {len(mine)}"},
    )


def _blank(value: Any) -> Any:
    return "" if value is None else value


def _no_champion(project: Project, dataset: str) -> str | None:
    """Why nothing can be made of a champion; a gate that let nobody through is no fault of the run."""
    from noise2next.registry.versions import ModelRegistry

    registry = ModelRegistry(project.settings(), project.space(dataset))
    return None if registry.at("champion") else f"{registry.name} has no champion"


def _left_out(reason: str, checks: "Sequence[dg.AssetCheckResult]" = ()) -> dg.MaterializeResult[Any]:
    """Stands where a model would: were nothing emitted, Dagster would skip all that follows, the leaderboard too."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion("left out"), metadata={"left out": reason}, check_results=list(checks)
    )


def _made(place: Path, metadata: Mapping[str, Any], version: str | None = None) -> dg.MaterializeResult[Any]:
    """What a stage wrote at `place`, in the version of its files unless another is given."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version or versions.of_output(place)),
        metadata={**metadata, "folder": dg.MetadataValue.path(place)},
    )


def _versioned(files: Mapping[str, str], recorded: Mapping[str, str]) -> str:
    """Whether what lies in data/ is what data.dvc pins."""
    if not recorded:
        return "unknown: DVC's cache has no listing of data/"
    if all(recorded.get(name) == hashed for name, hashed in files.items()):
        return "yes"
    return "no: run `dvc add data` and commit data.dvc"


def _written(place: Path) -> int | None:
    """When an output folder appeared; None where there is none."""
    manifest = place / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else None
