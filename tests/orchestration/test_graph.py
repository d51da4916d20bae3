"""Dagster's graph over a small project: it loads, it is selected by name, it runs, it stops where it must."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from orchestration.definitions import definitions

from noise2next.data import sample
from noise2next.errors import UserError
from noise2next.workspace import Workspace, digest, read_json

PARAMS = """
seed: 1
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
    k_core: 3
  counted:                       # the same log without its clock: no exponential weights
    path: shop/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: order
    split: {kind: leave_one_out}
  elsewhere:                     # named, but its log was never fetched
    path: elsewhere/log.csv
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
trainer: {epochs: 2, batch_size: 200}
evaluation: {cutoffs: [10, 20], bootstrap_samples: 50}
clustering: {most: 3, n_init: 2}
latent_variants:
  latent: {model: tests.models.latent_stub.LatentStub, options: {clusters: 2}}
variants:
  lightgcn:
    model: noise2next.models.light_gcn.LightGCN
    options: {embedding_size: 8, layers: 1}
    trainer: {batch_size: 2048}
  most_pop: {model: noise2next.models.popularity.MostPop}
  recent_pop: {model: noise2next.models.popularity.MostPop, weighting: {kind: exponential, half_life_days: 30}}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
  diffrec: {model: noise2next.models.diffrec.DiffRec, options: {steps: 3, hidden: [16], sampling_noise: true}}
"""
MODELS = {f"model_{name}" for name in ("lightgcn", "most_pop", "recent_pop", "ease", "diffrec", "latent")}
CHAIN = ["raw_interactions", "interactions", "validation", "split"]
LAST = ["champion", "recommendations", "drift"]


@pytest.fixture(scope="module")
def project(tmp_path_factory, repository):
    """A project's folder with a short log, nothing derived yet."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text(PARAMS)
    (root / "mlflow").mkdir()
    shutil.copy(repository / "mlflow" / "promotion.yaml", root / "mlflow")
    sample.write(root / "all.csv", seed=5)
    lines = (root / "all.csv").read_text().splitlines(keepends=True)
    (root / "data" / "shop").mkdir(parents=True)
    (root / "data" / "shop" / "log.csv").write_text(lines[0] + "".join(lines[-12_000:]))
    return root


@pytest.fixture(scope="module")
def instance():
    """Dagster's memory."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(root, dataset, instance, selection=None):
    """The job over one dataset, or its assets that `selection` names."""
    job = definitions(root).resolve_job_def("pipeline")
    keys = None if selection is None else [dg.AssetKey(name) for name in selection]
    return job.execute_in_process(partition_key=dataset, instance=instance, raise_on_error=False, asset_selection=keys)


@pytest.fixture(scope="module")
def finished(project, instance):
    """The whole graph, once."""
    return run(project, "shop", instance)


def materialised(result):
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def shown(result, asset):
    [event] = [one for one in result.get_asset_materialization_events() if one.asset_key == dg.AssetKey(asset)]
    return event.materialization.metadata


def checks(result):
    return {(one.asset_key.to_user_string(), one.check_name): one for one in result.get_asset_check_evaluations()}


def test_the_whole_graph_ends_in_a_champion(project, finished):
    assert finished.success
    assert materialised(finished) == {key.to_user_string() for key in definitions(project).resolve_all_asset_keys()}
    assert read_json(Workspace(project, "shop").registration / "report.json")["promoted"]


def test_a_model_that_draws_shows_what_its_draws_are_good_for_and_how_a_list_comes_about(finished):
    pictures = ("shares and hits", "a list, step by step")
    drawn, plain = shown(finished, "evaluation_diffrec"), shown(finished, "evaluation_ease")
    assert all("data:image/png;base64," in drawn[name].md_str for name in pictures)
    assert not set(pictures) & set(plain)
    assert "coverage@20, all draws" in drawn["draws"].md_str


def test_every_check_is_answered_and_holds(finished):
    answers = checks(finished)
    own = {"contract", "leakage", "integrity", "beats_popularity"}
    assert {name for _, name in answers} == own | {"input", "prediction", "outcome"}
    assert all(one.passed or one.severity == dg.AssetCheckSeverity.WARN for one in answers.values())


def test_each_asset_shows_what_a_person_acts_on(finished):
    for asset, names in {
        "raw_interactions": {"files", "bytes", "versioned by DVC"},
        "interactions": {"read", "accepted", "quarantined"},
        "split": {"activity", "popularity", "time weights"},
        "model_diffrec": {"learning curve", "validation", "MLflow run"},
        "item_embeddings": {"variant", "items", "size"},
        "item_clusters": {"two clusters", "sizes"},
        "leaderboard": {"leaderboard", "page"},
        "champion": {"summary", "gate", "reasons", "comparisons", "decision", "page"},
        "recommendations": {"users", "rows", "k", "folder"},
        "drift": {"findings", "drifted", "champion"},
    }.items():
        assert names <= shown(finished, asset).keys()
    assert shown(finished, "split")["popularity"].value.startswith("![plot](data:image/png;base64,")
    assert "| most_pop |" in shown(finished, "leaderboard")["leaderboard"].value
    champion = shown(finished, "champion")
    assert champion["comparisons"].value.startswith("![plot](data:image/png;base64,")
    assert "| integrity | yes |" in champion["gate"].value
    assert "| asked by |" in champion["decision"].value
    assert Path(champion["page"].path).is_file()
    assert shown(finished, "item_clusters")["two clusters"].value.startswith("![plot](data:image/png;base64,")
    assert "| clusters_3 |" in shown(finished, "item_clusters")["sizes"].value


def test_the_ui_page_of_a_run_is_linked(finished):
    assert "/#/experiments/" in shown(finished, "model_most_pop")["MLflow run"].value


def test_a_variant_that_the_dataset_cannot_have_is_left_out_with_its_reason_and_the_rest_goes_on(project):
    result = run(project, "counted", dg.DagsterInstance.ephemeral())
    assert result.success
    assert "need a clock" in shown(result, "model_recent_pop")["left out"].value
    assert "need a clock" in shown(result, "evaluation_recent_pop")["left out"].value
    assert "recent_pop" not in shown(result, "leaderboard")["leaderboard"].value
    assert not Workspace(project, "counted").model("recent_pop").exists()


def test_a_breach_of_the_contract_stops_everything_downstream_and_leaves_the_champion(project, finished, tmp_path):
    assert finished.success
    root = tmp_path / "project"
    shutil.copytree(project, root)
    space = Workspace(root, "shop")
    before = {place: digest(place) for place in (space.prepared, space.leaderboard, space.registration)}
    log = space.data / "shop" / "log.csv"
    log.write_text(log.read_text() + "u1,i1,not a time\n" * 1_000)
    result = run(root, "shop", dg.DagsterInstance.ephemeral())
    assert not result.success
    assert materialised(result) == {"raw_interactions", "interactions", "validation"}
    breach = checks(result)["validation", "contract"]
    assert not breach.passed
    assert "quarantine.parquet" in breach.description
    assert {place: digest(place) for place in before} == before


def test_a_log_that_has_drifted_is_a_warning_with_its_picture_and_nothing_is_trained(project, finished, tmp_path):
    assert finished.success
    root = tmp_path / "project"
    shutil.copytree(project, root)
    log = root / "data" / "shop" / "log.csv"
    lines = log.read_text().splitlines()[1:]
    last = max(int(line.rpartition(",")[2]) for line in lines)
    # a week in which the users of before take what nobody has had
    users = [line.partition(",")[0] for line in lines[-2_000:]]
    new = [f"{user},new{at % 30},{last + 1 + 300 * at}\n" for at, user in enumerate(users)]
    log.write_text(log.read_text() + "".join(new))
    result = (
        definitions(root)
        .resolve_job_def("watch")
        .execute_in_process(partition_key="shop", instance=dg.DagsterInstance.ephemeral(), raise_on_error=False)
    )
    assert result.success
    assert materialised(result) == {"raw_interactions", "interactions", "drift"}
    answer = checks(result)["drift", "input"]
    assert not answer.passed
    assert answer.severity == dg.AssetCheckSeverity.WARN
    assert "new_items" in answer.description
    assert "data:image/png;base64," in shown(result, "drift")["input"].md_str
    assert "data:image/png;base64," in shown(result, "drift")["outcome"].md_str
    report = read_json(Workspace(root, "shop").drift / "report.json")
    assert report["drifted"]
    assert any("new_items" in reason for reason in report["reasons"])


def test_a_damaged_artifact_stops_what_would_read_it(project, finished):
    assert finished.success
    weights = Workspace(project, "shop").model("most_pop") / "weights.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        assert not integrity(project).passed
    finally:
        weights.write_bytes(kept)
    assert integrity(project).passed


def integrity(root):
    check = dg.AssetCheckKey(dg.AssetKey("model_most_pop"), "integrity")
    job = definitions(root).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.get_subset(asset_selection=set(), asset_check_selection={check}).execute_in_process(
            partition_key="shop", instance=instance, raise_on_error=False
        )
    return checks(result)["model_most_pop", "integrity"]


def test_a_model_below_popularity_is_a_warning_and_stops_nothing(finished):
    floor = checks(finished)["evaluation_diffrec", "beats_popularity"]
    assert not floor.passed  # after two epochs
    assert floor.severity == dg.AssetCheckSeverity.WARN
    assert "champion" in materialised(finished)


def test_a_dataset_whose_log_is_missing_loads_and_fails_with_one_sentence(project):
    result = run(project, "elsewhere", dg.DagsterInstance.ephemeral(), CHAIN)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert failure.step_key == "raw_interactions"
    assert "elsewhere/log.csv: no such log" in said.description
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)


def test_a_mistake_in_params_is_told_when_the_definitions_load(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS + "colour: blue\n")
    with pytest.raises(UserError, match="colour: unknown key"):
        definitions(tmp_path)


def test_raw_interactions_has_the_version_of_its_own_files_only(project):
    def version():
        result = run(project, "shop", dg.DagsterInstance.ephemeral(), ["raw_interactions"])
        [event] = result.get_asset_materialization_events()
        return event.materialization.tags["dagster/data_version"]

    first = version()
    (project / "data" / "other").mkdir(exist_ok=True)
    (project / "data" / "other" / "log.csv").write_text("another shop's new day\n")
    assert version() == first
    log = project / "data" / "shop" / "log.csv"
    kept = log.read_bytes()
    log.write_bytes(kept + b"u1,i1,1700000000\n")
    try:
        assert version() != first
    finally:
        log.write_bytes(kept)


def stale(root, instance):
    """The assets of the dataset `shop` that Dagster would make again."""
    graph = definitions(root).resolve_asset_graph()
    status = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    keys = graph.materializable_asset_keys
    return {key.to_user_string() for key in keys if status.get_status(key, "shop") != StaleStatus.FRESH}


def test_only_what_hangs_on_a_change_is_stale(project, finished, instance):
    assert finished.success
    assert stale(project, instance) == set()
    run(project, "shop", instance, ["split"])  # made again, to the same bytes
    assert stale(project, instance) == set()
    params = project / "params.yaml"
    kept = params.read_text()
    params.write_text(kept.replace("l2: 100", "l2: 200"))
    try:
        assert stale(project, instance) >= {"model_ease"}
        assert not stale(project, instance) & {*CHAIN, "model_diffrec", "evaluation_diffrec"}
    finally:
        params.write_text(kept)


def test_only_latent_models_hang_on_the_clusters(project):
    assets = definitions(project).resolve_asset_graph()
    above = {
        node.key.to_user_string(): {key.to_user_string() for key in node.parent_keys} for node in assets.asset_nodes
    }
    assert above["item_embeddings"] == {"model_lightgcn"}
    assert above["item_clusters"] == {"item_embeddings"}
    assert above["model_latent"] == {"split", "item_clusters"}
    assert {name for name, parents in above.items() if "item_clusters" in parents} == {"model_latent"}


def test_a_changed_option_changes_the_code_version_of_its_own_model_only(project, tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS.replace("steps: 3", "steps: 4"))
    before, after = (
        {spec.key.to_user_string(): spec.code_version for spec in definitions(root).resolve_all_asset_specs()}
        for root in (project, tmp_path)
    )
    assert {name for name in before if before[name] != after[name]} == {"model_diffrec"}


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ('group:"training"', MODELS),
        ('+key:"split"', set(CHAIN)),
        ('key:"model_diffrec"+ and not group:"training"', {"evaluation_diffrec", "leaderboard", *LAST}),
    ],
)
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_assets_are_selected_by_a_string(project, selection, names):
    """DVC and Dagster want different antlr runtimes; only selection strings show when they do not get on."""
    chosen = dg.AssetSelection.from_string(selection).resolve(definitions(project).resolve_asset_graph())
    assert {key.to_user_string() for key in chosen} == names


def test_the_groups_are_one_row_of_boxes(project):
    assets = definitions(project).resolve_asset_graph()
    group = {node.key: node.group_name for node in assets.asset_nodes}
    arrows = {(group[above], group[node.key]) for node in assets.asset_nodes for above in node.parent_keys}
    row = ["ingestion", "validation", "preprocessing", "training", "evaluation", "registration"]
    row += ["recommendation", "drift"]
    aside = {("training", "clustering"), ("clustering", "training")}  # made of one model, and what others are made of
    aside |= {("ingestion", "drift")}  # which asks the newest rows before anything is made of them
    assert {arrow for arrow in arrows if len(set(arrow)) == 2} == set(itertools.pairwise(row)) | aside


def test_training_shares_the_pool_gpu(project):
    assets = definitions(project).resolve_asset_graph()
    pools = {node.key.to_user_string(): node.pools for node in assets.asset_nodes}
    assert {name for name, pool in pools.items() if pool == {"gpu"}} == MODELS


def test_the_definitions_load_without_the_heavy_libraries(project):
    heavy = ["torch", "mlflow", "great_expectations", "ibis", "matplotlib"]
    program = f"import sys, orchestration.definitions as d; d.noise2next(); print(sys.modules.keys() & set({heavy}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_pyspark_does_not_end_a_spawned_run_worker():
    """It ends a process whose main module has neither file nor spec, as that of `-c`; Great Expectations imports it."""
    pytest.importorskip("pyspark")
    program = "import noise2next.data.validation\nprint('here')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "here", done.stderr


def test_without_a_champion_the_run_is_green_and_says_that_nothing_was_judged(project, instance, tmp_path):
    shutil.copy(project / "params.yaml", tmp_path)
    result = run(tmp_path, "shop", instance, ["recommendations", "drift"])
    assert result.success
    assert shown(result, "recommendations")["left out"].value == "noise2next-shop has no champion"
    checks = result.get_asset_check_evaluations()
    assert {one.check_name: one.description for one in checks} == dict.fromkeys(
        ("input", "prediction", "outcome"), "not judged: noise2next-shop has no champion"
    )
