"""What `dagster dev` loads: the graph for the datasets and variants that params.yaml names at that moment."""

import warnings
from pathlib import Path

import dagster as dg

from noise2next.config import load_params
from noise2next.workspace import Workspace
from orchestration import automation
from orchestration.assets import asset
from orchestration.checks import checks
from orchestration.project import Project, project_root
from orchestration.steps import steps


@dg.definitions
def noise2next() -> dg.Definitions:
    """The one thing that Dagster calls in this module."""
    return definitions(project_root())


def definitions(root: Path) -> dg.Definitions:
    """Assets, checks, jobs and automation over the project in `root`.

    Raises UserError where params.yaml is not in order, or the gate's policy where a dataset trains itself.
    """
    space = Workspace(root, "")
    params = load_params(space.params)
    datasets = dg.StaticPartitionsDefinition(list(params.datasets))
    graph = steps(params)
    wanted, asked = automation.wanted(params, space, graph), automation.jobs(datasets)
    with warnings.catch_warnings():
        # Dagster calls checks over partitions and conditions of one's own unfinished; the version is pinned, and tests
        # materialise the one and evaluate the other.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = [asset(step, datasets, automation.freshness(step, params, wanted)) for step in graph]
        held = checks(params, datasets)
        sensors = automation.sensors(params, wanted, asked)
    return dg.Definitions(
        assets=assets,
        asset_checks=held,
        jobs=[
            dg.define_asset_job(
                "pipeline",
                selection=dg.AssetSelection.all(),
                partitions_def=datasets,
                description="From the raw log to a champion.",
            ),
            dg.define_asset_job(
                "data",
                selection=dg.AssetSelection.groups("ingestion", "validation", "preprocessing"),
                partitions_def=datasets,
                description="From the raw log to the split; no model is trained.",
            ),
            dg.define_asset_job(
                "watch",
                selection=dg.AssetSelection.assets("raw_interactions", "interactions", "drift"),
                partitions_def=datasets,
                description="Read the log anew and ask whether it has drifted from the champion; nothing is trained.",
            ),
            *asked,
        ],
        sensors=sensors,
        schedules=automation.schedules(params, wanted),
        resources={"project": Project(root=str(root))},
        # Each run is a process of its own already; one more for every step would cost 4 to 6 seconds of imports each.
        executor=dg.in_process_executor,
    )
