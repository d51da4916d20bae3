"""Three doors, one house: the command line, DVC and Dagster run the same stages, and rerun what changed and no more."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from orchestration import versions
from orchestration.steps import steps
from ruamel.yaml import YAML

from noise2next import cli
from noise2next.config import load_params
from noise2next.data import sample
from noise2next.stages import targets
from noise2next.workspace import Workspace, read_json

LATENT = {"train_latent": "train", "evaluate_latent": "evaluate"}  # the same command, for what waits for the clusters
STAGES = ["ingest", "validate", "prepare", "train", "evaluate", "embed", "cluster", *LATENT, "leaderboard", "register"]
PER_VARIANT = {"train", "evaluate"}

PARAMS = """
seed: 1
engine: duckdb
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
  counted:
    path: counted/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: order
    split: {kind: leave_one_out}
trainer: {epochs: 1, metric: recall@20}
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
clustering: {embeddings: lightgcn, most: 3, n_init: 2}
latent_variants:
  latent: {model: a.Latent, options: {clusters: 2}}
variants:
  lightgcn: {model: noise2next.models.light_gcn.LightGCN, options: {layers: 1, embedding_size: 4}}
  most_pop: {model: noise2next.models.popularity.MostPop}
  recent_pop: {model: noise2next.models.popularity.MostPop, weighting: {kind: exponential, half_life_days: 30}}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""

# Stands for `noise2next` on the path: writes the stage's folder, its content decided by what the stage may depend on.
STAND_IN = """#!/bin/sh
stage=$1 dataset=$3 variant=
[ "$4" = --variant ] && variant=$5
place=artifacts/$dataset/$stage${variant:+/$variant}
mkdir -p "$place"
case $stage in
  train) grep "^  $variant:" params.yaml > "$place/made" ;;
  evaluate) cp "artifacts/$dataset/train/$variant/made" "$place/made" ;;
  leaderboard) cat "artifacts/$dataset/evaluate/"*/made > "$place/made" ;;
  embed) cp "artifacts/$dataset/train/lightgcn/made" "$place/made" ;;
  cluster) cp "artifacts/$dataset/embed/made" "$place/made" ;;
  ingest) cat "data/$dataset/"* > "$place/made" ;;
  *) echo "$stage" > "$place/made" ;;
esac
"""


@pytest.fixture(scope="module")
def pipeline(repository):
    """dvc.yaml as written."""
    return YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def untouched(repository, tmp_path_factory):
    """A copy of what DVC reads, two small logs, and a stand-in for the program."""
    tmp_path = tmp_path_factory.mktemp("untouched") / "project"
    tmp_path.mkdir()
    for name in (".dvcignore", "dvc.yaml"):
        shutil.copy(repository / name, tmp_path)
    shutil.copytree(repository / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "*.local"))
    shutil.copytree(repository / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mlflow").mkdir()
    shutil.copy(repository / "mlflow" / "promotion.yaml", tmp_path / "mlflow")
    (tmp_path / ".gitignore").write_text("/data\n/artifacts\n/mlflow.db*\n/mlartifacts\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    sample.write(tmp_path / "all.csv", seed=5)
    lines = (tmp_path / "all.csv").read_text().splitlines(keepends=True)
    for name in ("shop", "counted"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "log.csv").write_text(lines[0] + "".join(lines[-6_000:]))
    program = tmp_path / "bin" / "noise2next"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    dvc(tmp_path, "add", "--quiet", "data")
    return tmp_path


@pytest.fixture(scope="module")
def run_once(untouched, tmp_path_factory):
    """The folder after a first `dvc repro`, and what that ran."""
    root = tmp_path_factory.mktemp("run") / "project"
    shutil.copytree(untouched, root)
    return root, rerun(root)


@pytest.fixture
def project(run_once, tmp_path):
    """A copy of it, free to change."""
    return shutil.copytree(run_once[0], tmp_path / "project")


def dvc(root: Path, *arguments: str, path: str | None = None) -> str:
    first = path or str(root / "bin")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env={**os.environ, "PATH": f"{first}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rerun(root: Path, **options: str) -> set[str]:
    """The stages that `dvc repro` runs."""
    said = dvc(root, "repro", **options)
    return {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- the doors agree --------------------------------------------------------------------------------------------------


def test_dvc_has_the_stages_in_their_order(pipeline):
    assert list(pipeline) == STAGES


def test_each_stage_is_a_command(pipeline):
    commands = typer.main.get_command(cli.app).commands
    assert set(STAGES) - LATENT.keys() <= commands.keys()
    for stage, entry in pipeline.items():
        program, command, *options = entry.get("do", entry)["cmd"].split()
        assert (program, command) == ("noise2next", LATENT.get(stage, stage))
        known = {name for one in commands[command].params for name in one.opts}
        assert {option for option in options if option.startswith("--")} <= known


def test_each_stage_is_a_module_with_run():
    for stage in STAGES:
        assert callable(importlib.import_module(f"noise2next.stages.{LATENT.get(stage, stage)}").run)


def test_each_stage_is_an_asset_for_each_variant_where_dvc_has_one(repository, pipeline):
    params = load_params(repository / "params.yaml")
    latent = len(params.latent_variants)
    assets = steps(params)
    assert list(dict.fromkeys(one.stage for one in assets if one.stage)) == [
        stage for stage in STAGES if latent or stage not in LATENT
    ]
    for stage in STAGES:
        count = latent if stage in LATENT else len(params.variants) - latent if stage in PER_VARIANT else 1
        assert sum(one.stage == stage for one in assets) == count
        assert ("variant" in pipeline[stage].get("matrix", {})) == (stage in PER_VARIANT | LATENT.keys())


def test_dvc_and_dagster_watch_the_same_code(pipeline):
    for stage, entry in pipeline.items():
        deps = entry.get("do", entry)["deps"]
        code = {one.removeprefix("src/noise2next/") for one in deps if one.startswith("src/")}
        assert code == set(versions.CODE[stage])


def test_all_of_data_that_models_import_is_watched():
    found = {
        f"data/{name}.py"
        for path in (versions.SOURCE / "models").glob("*.py")
        for name in re.findall(r"from noise2next\.data\.(\w+) import", path.read_text())
    }
    assert found
    assert found <= set(versions.TRAIN)
    assert found <= set(versions.EVALUATE)


def test_dvc_waits_where_dagster_waits(pipeline):
    """What an asset stands on is what the stage reads; DVC's leaderboard reads all that was evaluated."""
    reads = {
        stage: {one.split("/")[2] for one in entry.get("do", entry)["deps"] if one.startswith("artifacts/")}
        for stage, entry in pipeline.items()
    }
    assert reads["validate"] == {"ingest"}
    assert reads["prepare"] == {"ingest", "validate"}
    assert reads["train"] == {"prepare"}
    assert reads["evaluate"] == {"prepare", "train"}
    assert reads["embed"] == {"prepare", "train"}
    assert reads["cluster"] == {"prepare", "embed"}
    assert reads["train_latent"] == {"prepare", "cluster"}
    assert reads["evaluate_latent"] == {"prepare", "train"}
    assert "evaluate" in reads["leaderboard"]
    assert "leaderboard" in reads["register"]


def test_what_dvc_keeps_is_what_the_workspace_says(pipeline):
    space = Workspace(Path(), "${item.dataset}")
    places = {
        "ingest": Workspace(Path(), "${key}").ingested,
        "validate": space.validation,
        "prepare": space.prepared,
        "train": space.model("${item.variant}"),
        "evaluate": space.evaluation("${item.variant}"),
        "embed": space.embedded,
        "cluster": space.clustered,
        "train_latent": space.model("${item.variant}"),
        "evaluate_latent": space.evaluation("${item.variant}"),
        "leaderboard": space.leaderboard,
        "register": space.registration,
    }
    for stage, entry in pipeline.items():
        [out] = entry.get("do", entry)["outs"]
        assert (next(iter(out)) if isinstance(out, dict) else out) == places[stage].as_posix()


def test_the_embedded_sample_is_what_data_dvc_pins(repository, tmp_path):
    """A fresh clone needs no remote: the command writes the very bytes."""
    pinned = YAML(typ="safe").load(repository / "data.dvc")["outs"][0]
    if pinned["nfiles"] > 1:
        pytest.skip("data.dvc pins logs of your own beside the sample")
    log = tmp_path / "interactions.csv"
    sample.write(log, 1)
    listing = [{"md5": hashlib.md5(log.read_bytes()).hexdigest(), "relpath": "sample/interactions.csv"}]
    assert pinned["size"] == log.stat().st_size
    assert pinned["md5"] == hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def test_the_targets_of_chosen_variants_are_stages_that_dvc_knows(untouched):
    space = Workspace(untouched, "shop")
    known = dvc(untouched, "stage", "list", "--name-only").split()
    named = targets.run(load_params(space.params), space, ["ease", "most_pop"]).stages
    assert named
    assert set(named) <= set(known)
    assert {name.partition("@")[0] for name in known} == set(STAGES)
    assert "evaluate_latent@shop-latent" in known


# --- what dvc repro runs ----------------------------------------------------------------------------------------------


def test_dvc_repro_runs_every_dataset_and_variant_of_params(run_once):
    datasets, variants = ("shop", "counted"), ("lightgcn", "most_pop", "recent_pop", "ease")
    many = PER_VARIANT | LATENT.keys()
    once = {f"{stage}@{dataset}" for stage in STAGES if stage not in many for dataset in datasets}
    each = {f"{stage}@{dataset}-{name}" for stage in PER_VARIANT for dataset in datasets for name in variants}
    late = {f"{stage}@{dataset}-latent" for stage in LATENT for dataset in datasets}
    assert run_once[1] == once | each | late


def test_dvc_repro_runs_nothing_when_nothing_changed(project):
    assert rerun(project) == set()


def test_a_changed_option_reruns_its_variant_and_what_ranks_it(project):
    edit(project / "params.yaml", "{l2: 100}", "{l2: 200}")
    datasets = ("shop", "counted")
    assert rerun(project) == {
        *(f"{stage}@{dataset}-ease" for stage in PER_VARIANT for dataset in datasets),
        *(f"{stage}@{dataset}" for stage in ("leaderboard", "register") for dataset in datasets),
    }
    # The run cache may bring back files, never an alias: going back asks the gate again.
    edit(project / "params.yaml", "{l2: 200}", "{l2: 100}")
    assert rerun(project) == {f"register@{dataset}" for dataset in datasets}


def test_a_dataset_with_new_rows_leaves_the_others_alone(project):
    log = project / "data" / "counted" / "log.csv"
    log.write_text(log.read_text() + "u0001,i0001,1700000000\n")
    dvc(project, "add", "--quiet", "data")
    again = rerun(project)
    assert "ingest@counted" in again
    assert all("@counted" in stage for stage in again)


def test_an_entry_in_params_is_enough_for_a_new_variant(project):
    with (project / "params.yaml").open("a") as params:
        params.write("  t_ease: {model: noise2next.models.ease.EASE, weighting: {kind: linear}}\n")
    again = rerun(project)
    assert {"train@shop-t_ease", "evaluate@shop-t_ease", "leaderboard@shop", "register@shop"} <= again
    assert "train@shop-ease" not in again


def test_other_item_vectors_rerun_the_clusters_and_what_is_trained_on_them(project):
    edit(project / "params.yaml", "embedding_size: 4", "embedding_size: 8")
    again = rerun(project)
    assert {"train@shop-lightgcn", "embed@shop", "cluster@shop", "train_latent@shop-latent"} <= again
    assert not {"train@shop-ease", "train@shop-most_pop", "evaluate@shop-ease"} & again


@pytest.mark.slow
def test_dvc_repro_ends_in_a_champion_and_leaves_out_what_cannot_be(untouched, tmp_path):
    project = shutil.copytree(untouched, tmp_path / "project")
    edit(
        project / "params.yaml",
        "latent_variants:\n  latent: {model: a.Latent, options: {clusters: 2}}",
        "latent_variants: {}",
    )
    programs = str(Path(sys.executable).parent)
    assert "train@counted-recent_pop" in rerun(project, path=programs)
    assert rerun(project, path=programs) == set()
    for dataset in ("shop", "counted"):
        assert read_json(Workspace(project, dataset).registration / "report.json")["champion"] == "1"
    assert list(Workspace(project, "counted").model("recent_pop").iterdir()) == []
    assert "recent_pop" not in (Workspace(project, "counted").leaderboard / "leaderboard.json").read_text()
