"""One asset for each step, all over the same partitions: the datasets of params.yaml."""

from typing import Any

import dagster as dg

from orchestration.project import Project, plain_failures
from orchestration.steps import Step

# A fault of the machine may pass; a person's mistake is a Failure that allows no second try.
SECOND_TRY = dg.RetryPolicy(max_retries=1, delay=5)


def asset(
    step: Step,
    datasets: dg.PartitionsDefinition[str],
    condition: dg.AutomationCondition[Any] | None = None,
) -> dg.AssetsDefinition:
    """The asset that runs `step` for the dataset of its partition, by itself when `condition` holds."""

    @dg.asset(
        name=step.name,
        group_name=step.group,
        description=step.description,
        deps=step.upstream,
        kinds=set(step.kinds),
        pool=step.pool,
        code_version=step.code_version,
        partitions_def=datasets,
        automation_condition=condition,
        retry_policy=SECOND_TRY,
        check_specs=[
            dg.AssetCheckSpec(name, asset=step.name, description=description, blocking=True, partitions_def=datasets)
            for name, description in step.checks.items()
        ],
        metadata={"stage": step.stage} if step.stage else None,
    )
    def compute(context: dg.AssetExecutionContext, project: Project) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with plain_failures():
            return step.work(project, context.partition_key)

    return compute
