"""What must hold before the next step may read: checks over the files themselves, one for each dataset."""

from typing import TYPE_CHECKING

import dagster as dg

from noise2next.config import Params
from noise2next.errors import UserError
from noise2next.workspace import read_json, require, verify
from orchestration.metadata import table
from orchestration.project import Project

if TYPE_CHECKING:
    from noise2next.data.interactions import Interactions

YARDSTICK = "most_pop"  # a model that does not beat mere popularity has learned nothing of taste


def checks(params: Params, datasets: dg.PartitionsDefinition[str]) -> list[dg.AssetChecksDefinition]:
    """The leakage check, and for each variant the integrity of its artifact and its floor."""
    variants = list(params.variants)
    floors = [_floor(name, datasets) for name in variants if name != YARDSTICK and YARDSTICK in variants]
    return [_leakage(datasets), *[_integrity(name, datasets) for name in variants], *floors]


def _leakage(datasets: dg.PartitionsDefinition[str]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="split",
        name="leakage",
        blocking=True,
        partitions_def=datasets,
        description="Read from the files: no event at or after the cut in train, no item known only from the future.",
    )
    def leakage(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
        found = _leaks(project, context.partition_key)
        return dg.AssetCheckResult(
            passed=not found, description="; ".join(found) or "nothing of the future in the past"
        )

    return leakage


def _integrity(variant: str, datasets: dg.PartitionsDefinition[str]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=f"model_{variant}",
        name="integrity",
        blocking=True,
        partitions_def=datasets,
        description="Every file of the artifact still has the sha256 of its manifest.",
    )
    def integrity(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
        from noise2next.stages.refused import why_refused

        dataset = context.partition_key
        if reason := why_refused(project.params(), project.space(dataset), variant):
            return dg.AssetCheckResult(passed=True, description=f"left out: {reason}")
        try:
            files = verify(require(project.space(dataset).model(variant), "train"))
        except UserError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        return dg.AssetCheckResult(passed=True, metadata={"sha256": table(files, "file", "sha256")})

    return integrity


def _floor(variant: str, datasets: dg.PartitionsDefinition[str]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=f"evaluation_{variant}",
        name="beats_popularity",
        additional_deps=[f"evaluation_{YARDSTICK}"],
        partitions_def=datasets,
        description=f"Better than `{YARDSTICK}` on validation; a warning only, the gate decides.",
    )
    def beats_popularity(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
        from noise2next.stages.refused import why_refused

        params, dataset = project.params(), context.partition_key
        if reason := why_refused(params, project.space(dataset), variant):
            return dg.AssetCheckResult(passed=True, description=f"left out: {reason}")
        metric = params.trainer.metric
        own, floor = (_on_validation(project, dataset, name, metric) for name in (variant, YARDSTICK))
        return dg.AssetCheckResult(
            passed=own >= floor,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{metric} {own:.4f} on validation, {YARDSTICK} {floor:.4f}",
        )

    return beats_popularity


def _leaks(project: Project, dataset: str) -> list[str]:
    """What of the future stands in the past of the written parts, one sentence a finding."""
    import numpy as np

    from noise2next.data.interactions import Split

    entry = project.params().dataset(dataset)
    split = Split.load(project.space(dataset).prepared, entry.split, entry.has_clock)
    found = []
    if len(np.unique(split.train.items)) < split.n_items:
        found.append("items.parquet has items without a row in train.parquet")
    if entry.split.kind == "global_time":
        ends = {"train": _last(split.train), "valid": _last(split.valid)}
        starts = {"train": _first(split.valid), "valid": _first(split.test)}
        found += [
            f"{part}.parquet has events at or after the next window's first"
            for part in ends
            if ends[part] >= starts[part]
        ]
    return found


def _first(part: "Interactions") -> int:
    return int(part.times.min()) if part.times is not None and len(part) else 2**63 - 1


def _last(part: "Interactions") -> int:
    return int(part.times.max()) if part.times is not None and len(part) else -(2**63)


def _on_validation(project: Project, dataset: str, variant: str, metric: str) -> float:
    report = read_json(require(project.space(dataset).evaluation(variant), "evaluate") / "report.json")
    return float(report["metrics"]["valid"][metric]["mean"])
