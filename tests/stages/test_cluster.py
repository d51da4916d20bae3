"""From a trained model's item vectors to item clusters, and from those to a latent variant."""

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from noise2next.config import Params, Settings
from noise2next.data import item_tables
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact
from noise2next.stages import cluster, embed, pipeline, refused, train
from noise2next.workspace import Workspace, read_json, verify, write_json, writing

USERS, ITEMS = 40, 16
STUB = "tests.models.latent_stub.LatentStub"
LIGHTGCN = "noise2next.models.light_gcn.LightGCN"
POPULAR = "noise2next.models.popularity.MostPop"


def params_of(**changes):
    log = {"path": "log.csv", "format": "delimited", "time_unit": "order", "split": {"kind": "leave_one_out"}}
    return Params.model_validate(
        {
            "datasets": {"shop": {**log, "columns": {"time": "t"}}},
            "variants": {
                "most_pop": {"model": POPULAR},
                "lightgcn": {"model": LIGHTGCN, "options": {"embedding_size": 4, "layers": 1}},
            },
            "latent_variants": {
                "l_stub": {"model": STUB},
                "l_stub_3": {"model": STUB, "options": {"clusters": 3}},
            },
            "clustering": {"most": 4, "n_init": 2},
            "trainer": {"metric": "recall@5", "epochs": 2, "batch_size": 64},
            "evaluation": {"cutoffs": [5]},
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    @contextlib.contextmanager
    def training_run(settings, space, card, params):
        yield SimpleNamespace(run_id="", metrics=lambda *_, **__: None)

    monkeypatch.setattr(train, "training_run", training_run)


@pytest.fixture
def params():
    return params_of()


@pytest.fixture
def space(tmp_path):
    made = Workspace(tmp_path, "shop")
    made.promotion_policy.parent.mkdir()
    made.promotion_policy.write_text("metric: recall@5\nbaseline: {variant: most_pop}\n")
    prepare(made)
    return made


def prepare(space, data_version="v1", n_items=ITEMS):
    draw = np.random.default_rng(0)
    taken = [draw.permutation(n_items)[:3].tolist() for _ in range(USERS)]
    with writing(space.prepared) as folder:
        for part, first, last in (("train", 0, 1), ("valid", 1, 2), ("test", 2, 3)):
            rows = [(user, item) for user, items in enumerate(taken) for item in items[first:last]]
            users, items = (pa.array(column, pa.int32()) for column in zip(*rows, strict=True))
            pq.write_table(pa.table({"user": users, "item": items}), folder / f"{part}.parquet")
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(f"i{item}" for item in range(n_items))).save(folder / "items.parquet")
        write_json(folder / "report.json", {"data_version": data_version})


def trained(params, space, variant="lightgcn"):
    return train.run(params, space, Settings(device="cpu"), variant)


@pytest.fixture
def clustered(params, space):
    trained(params, space)
    embed.run(params, space)
    cluster.run(params, space)
    return space


def rewrite(place, change):
    """The folder with one thing changed, its manifest in order."""
    kept = {path.name: path.read_bytes() for path in place.iterdir() if path.name != "manifest.json"}
    with writing(place) as folder:
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        change(folder)


# --- embed ------------------------------------------------------------------------------------------------------------


def test_each_item_of_the_vocabulary_has_its_vector_by_raw_id(params, space):
    trained(params, space)
    report = embed.run(params, space)
    verify(space.embedded)
    model = Artifact.load(space.model("lightgcn")).model
    table = pq.read_table(space.embedded / "item_embeddings.parquet").to_pydict()
    assert table["item"] == [f"i{item}" for item in range(ITEMS)]
    np.testing.assert_array_equal(np.array(table["vector"], dtype=np.float32), model.item_embeddings())
    assert (report.variant, report.items, report.size, report.data_version) == ("lightgcn", ITEMS, 4, "v1")
    assert read_json(space.embedded / "report.json") == report.model_dump(mode="json")


def test_vectors_are_not_taken_from_a_model_of_other_data(params, space):
    trained(params, space)
    prepare(space, "v2")
    with pytest.raises(UserError, match=r"trained on other data.*noise2next train --dataset shop --variant lightgcn"):
        embed.run(params, space)
    assert not space.embedded.exists()


def test_without_the_model_the_command_that_trains_it_is_named(params, space):
    with pytest.raises(UserError, match="noise2next train --dataset shop --variant lightgcn"):
        embed.run(params, space)


def test_a_model_without_item_vectors_is_refused(space):
    params = params_of(clustering={"embeddings": "most_pop"})
    trained(params, space, "most_pop")
    with pytest.raises(UserError, match="MostPop has no item vectors"):
        embed.run(params, space)


# --- cluster ----------------------------------------------------------------------------------------------------------


def test_there_is_a_set_of_labels_for_each_number_of_clusters(params, clustered):
    verify(clustered.clustered)
    report = read_json(clustered.clustered / "report.json")
    table = pq.read_table(clustered.clustered / "item_clusters.parquet").to_pydict()
    assert list(table) == ["item", "clusters_1", "clusters_2", "clusters_3", "clusters_4"]
    for count in range(1, 5):
        sizes = np.bincount(table[f"clusters_{count}"]).tolist()
        assert report["sizes"][f"clusters_{count}"] == sizes
        assert len(sizes) == count
        assert min(sizes) >= 2
    assert report["data_version"] == "v1"


def test_clustering_again_gives_the_same_bytes(params, clustered):
    before = (clustered.clustered / "item_clusters.parquet").read_bytes()
    cluster.run(params, clustered)
    assert (clustered.clustered / "item_clusters.parquet").read_bytes() == before


def test_vectors_of_other_data_are_refused(params, clustered):
    prepare(clustered, "v2")
    with pytest.raises(UserError, match=r"item vectors of other data.*noise2next embed --dataset shop"):
        cluster.run(params, clustered)


def test_a_small_catalogue_has_no_more_clusters_than_leave_two_items_each(params, space):
    prepare(space, n_items=5)
    trained(params, space)
    embed.run(params, space)
    assert list(cluster.run(params, space).sizes) == ["clusters_1", "clusters_2"]


# --- train ------------------------------------------------------------------------------------------------------------


def test_a_latent_variant_gets_the_labels_of_its_number_of_clusters(params, clustered):
    for variant, column in (("l_stub", "clusters_2"), ("l_stub_3", "clusters_3")):
        trained(params, clustered, variant)
        labels = pq.read_table(clustered.clustered / "item_clusters.parquet").column(column).to_pylist()
        assert Artifact.load(clustered.model(variant)).model.item_clusters.tolist() == labels


def test_labels_follow_their_item_not_their_row(params, clustered):
    trained(params, clustered, "l_stub")
    before = Artifact.load(clustered.model("l_stub")).model.item_clusters

    def turned(folder):
        path = folder / "item_clusters.parquet"
        pq.write_table(pq.read_table(path).take(pa.array(range(ITEMS)[::-1])), path)

    rewrite(clustered.clustered, turned)
    (clustered.model("l_stub") / "manifest.json").unlink()
    trained(params, clustered, "l_stub")
    assert torch.equal(Artifact.load(clustered.model("l_stub")).model.item_clusters, before)


def test_other_labels_are_another_model(params, clustered):
    first = trained(params, clustered, "l_stub").fingerprint
    assert trained(params, clustered, "l_stub").fingerprint == first

    def swapped(folder):
        items, labels = Vocabulary(tuple(f"i{item}" for item in range(ITEMS))), np.arange(ITEMS) % 2
        item_tables.write(folder / "item_clusters.parquet", items, {"clusters_2": labels})

    plain = trained(params, clustered, "most_pop").fingerprint
    rewrite(clustered.clustered, swapped)
    assert trained(params, clustered, "l_stub").fingerprint != first
    assert trained(params, clustered, "most_pop").fingerprint == plain


def test_an_item_without_a_cluster_is_named_with_the_remedy(params, clustered):
    def shortened(folder):
        path = folder / "item_clusters.parquet"
        pq.write_table(pq.read_table(path).slice(0, ITEMS - 1), path)

    rewrite(clustered.clustered, shortened)
    with pytest.raises(UserError, match=r"no row for item 'i15'; `noise2next embed --dataset shop`.*cluster"):
        trained(params, clustered, "l_stub")


def test_clusters_of_other_data_are_refused(params, clustered):
    prepare(clustered, "v2")
    with pytest.raises(UserError, match=r"item clusters of other data.*noise2next embed --dataset shop"):
        trained(params, clustered, "l_stub")


def test_without_clusters_only_latent_variants_are_refused(params, space):
    trained(params, space, "most_pop")
    with pytest.raises(UserError, match="noise2next cluster --dataset shop"):
        trained(params, space, "l_stub")


# --- who may stand where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "entry", "right"),
    [("variants", {"model": STUB}, "latent_variants"), ("latent_variants", {"model": POPULAR}, "variants")],
)
def test_an_entry_in_the_wrong_mapping_is_told_where_it_belongs(space, place, entry, right):
    tree = params_of().model_dump()
    params = Params.model_validate({**tree, place: {**tree[place], "lost": entry}})
    for refuse in (lambda: pipeline.choose(params, space, ["lost"]), lambda: trained(params, space, "lost")):
        with pytest.raises(UserError, match=rf"'lost' stands in {place}; .* belongs in {right}"):
            refuse()


def test_a_catalogue_too_small_for_the_clusters_has_no_latent_variant(params, space):
    prepare(space, n_items=5)
    assert refused.why_refused(params, space, "l_stub") is None
    reason = refused.why_refused(params, space, "l_stub_3")
    assert reason == "it needs 2 items for each of its 3 clusters, and the catalogue has 5 in all"


def test_more_clusters_than_are_made_are_refused(space):
    with pytest.raises(UserError, match=r"'l_stub_3' wants 3 clusters; raise clustering.most"):
        refused.why_refused(params_of(clustering={"most": 2}), space, "l_stub_3")


def test_where_the_source_of_the_vectors_is_refused_so_are_the_latent_variants(space):
    clock = {"kind": "exponential"}
    lightgcn = {"model": LIGHTGCN, "weighting": clock}
    params = params_of(variants={"most_pop": {"model": POPULAR}, "lightgcn": lightgcn})
    chosen, skipped = pipeline.choose(params, space, None)
    assert chosen == ["most_pop"]
    assert "they need lightgcn: exponential weights need a clock" in skipped["l_stub"]
    with pytest.raises(UserError, match=r"'l_stub' cannot be trained on it: .*need a clock"):
        pipeline.choose(params, space, ["l_stub"])


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """The stages as `run` calls them, none of them doing anything."""
    called = []
    for name in ("ingest", "validate", "prepare", "embed", "cluster"):
        monkeypatch.setattr(getattr(pipeline, name), "run", lambda *_, name=name: called.append(name))
    monkeypatch.setattr(pipeline.train, "run", lambda *given: called.append(given[3]))
    monkeypatch.setattr(pipeline.evaluate, "run", lambda *given: None)
    monkeypatch.setattr(pipeline.tracking, "probe", lambda *_: None)
    monkeypatch.setattr(pipeline, "leaderboard", SimpleNamespace(run=lambda *_: None))
    monkeypatch.setattr(pipeline, "register", SimpleNamespace(run=lambda *_: None))
    monkeypatch.setattr(pipeline, "PipelineReport", SimpleNamespace)
    return called


CHAIN = ["ingest", "validate", "prepare"]


def go(params, space, variants):
    return pipeline.run(params, space, Settings(root=space.root), variants)


def test_the_source_comes_before_the_clusters_and_these_before_latent_variants(params, space, steps):
    assert go(params, space, None).required == {}
    assert steps == [*CHAIN, "most_pop", "lightgcn", "embed", "cluster", "l_stub", "l_stub_3"]


def test_a_latent_variant_alone_has_its_source_trained_and_says_so(params, space, steps, caplog):
    with caplog.at_level(logging.INFO):
        report = go(params, space, ["most_pop", "l_stub"])
    assert steps == [*CHAIN, "lightgcn", "most_pop", "embed", "cluster", "l_stub"]
    assert report.trained == ["lightgcn", "most_pop", "l_stub"]
    assert report.required == {"lightgcn": "the item clusters of l_stub are made of its item vectors"}
    assert "lightgcn is trained too" in caplog.text


@pytest.mark.parametrize("variants", [None, ["lightgcn"]])
def test_a_baseline_that_the_dataset_cannot_have_is_left_out(space, steps, variants):
    params = params_of(
        variants={"recent": {"model": POPULAR, "weighting": {"kind": "exponential"}}, "lightgcn": {"model": LIGHTGCN}},
        latent_variants={},
    )
    space.promotion_policy.write_text("metric: recall@5\nbaseline: {variant: recent}\n")
    assert go(params, space, variants).trained == ["lightgcn"]


def test_a_baseline_that_needs_the_clusters_is_trained_after_them(params, space, steps):
    space.promotion_policy.write_text("metric: recall@5\nbaseline: {variant: l_stub}\n")
    assert set(go(params, space, ["most_pop"]).required) == {"lightgcn", "l_stub"}
    assert steps == [*CHAIN, "lightgcn", "most_pop", "embed", "cluster", "l_stub"]


def test_what_the_gate_asks_every_champion_to_beat_is_trained_too(params, space, steps):
    report = go(params, space, ["lightgcn"])
    assert report.trained == ["most_pop", "lightgcn"]
    assert report.required == {"most_pop": "the gate asks every champion to beat it"}


def test_without_latent_variants_nothing_is_clustered(params, space, steps):
    go(params, space, ["lightgcn", "most_pop"])
    assert steps == [*CHAIN, "lightgcn", "most_pop"]
