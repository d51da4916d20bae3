"""The training stage over one small prepared workspace, tracking replaced by a recorder."""

import contextlib
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from noise2next.config import Noise, Params, Settings
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.models.artifact import Artifact
from noise2next.stages import train
from noise2next.workspace import Workspace, read_json, verify, write_json, writing

USERS, ITEMS = 60, 20


class Recorder:
    """Stands for an MLflow run."""

    opened = 0

    def __init__(self):
        self.run_id = f"run-{Recorder.opened}"
        self.heard = []

    def metrics(self, values, step=None):
        self.heard.append((step, dict(values)))


@pytest.fixture
def runs(monkeypatch):
    made = []

    @contextlib.contextmanager
    def training_run(settings, space, card, params):
        Recorder.opened += 1
        made.append(Recorder())
        yield made[-1]

    monkeypatch.setattr(train, "training_run", training_run)
    return made


@pytest.fixture
def params():
    log = {"path": "log.csv", "format": "delimited", "time_unit": "order", "split": {"kind": "leave_one_out"}}
    options = {"steps": 3, "hidden": [8]}
    diffrec = "noise2next.models.diffrec.DiffRec"
    return Params.model_validate(
        {
            "datasets": {"shop": {**log, "columns": {"time": "t"}}},
            "variants": {
                "most_pop": {"model": "noise2next.models.popularity.MostPop"},
                "recent_pop": {
                    "model": "noise2next.models.popularity.MostPop",
                    "weighting": {"kind": "exponential"},
                },
                "diffrec": {"model": diffrec, "options": options},
                "t_diffrec": {"model": diffrec, "options": options, "weighting": {"kind": "linear"}},
                "noised_pop": {"model": "noise2next.models.popularity.MostPop", "noise": {"share": 0.5}},
            },
            "trainer": {"metric": "recall@5", "epochs": 3, "batch_size": 16},
            "evaluation": {"cutoffs": [5]},
        }
    )


@pytest.fixture
def space(tmp_path):
    made = Workspace(tmp_path, "shop")
    prepare(made)
    return made


def prepare(space, data_version="v1"):
    draw = np.random.default_rng(0)
    taken = [draw.permutation(ITEMS)[:8] for _ in range(USERS)]
    with writing(space.prepared) as folder:
        for part, first, last in (("train", 0, 6), ("valid", 6, 7), ("test", 7, 8)):
            rows = [(user, item) for user, items in enumerate(taken) for item in items[first:last]]
            users, items = (pa.array(column, pa.int32()) for column in zip(*rows, strict=True))
            pq.write_table(pa.table({"user": users, "item": items}), folder / f"{part}.parquet")
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(f"i{item}" for item in range(ITEMS))).save(folder / "items.parquet")
        write_json(folder / "report.json", {"data_version": data_version})


def run(params, space, variant="diffrec"):
    return train.run(params, space, Settings(device="cpu"), variant)


def weights(space, variant="diffrec"):
    return Artifact.load(space.model(variant)).model.state_dict()


def test_training_leaves_a_verified_artifact_with_its_report(params, space, runs):
    report = run(params, space)
    verify(space.model("diffrec"))
    assert read_json(space.model("diffrec") / "report.json") == report.model_dump(mode="json")
    card = Artifact.load(space.model("diffrec")).card
    assert (card.fingerprint, card.data_version, card.seed) == (report.fingerprint, "v1", 1)
    assert len(report.curve) == report.epochs == 3
    assert report.metrics == report.curve[report.best_epoch - 1].metrics
    assert not space.checkpoint("diffrec").exists()


def test_each_epoch_and_the_run_as_a_whole_are_tracked(params, space, runs):
    report = run(params, space)
    steps = [step for step, _ in runs[0].heard]
    assert steps == [1, 2, 3, None, *range(len(report.elbo_terms))]
    assert {"loss_denoising", "valid_recall@5", "seconds"} <= set(runs[0].heard[0][1])
    assert runs[0].heard[3][1]["best_valid_recall@5"] == report.metrics["recall@5"]
    assert [values["elbo_term"] for _, values in runs[0].heard[4:]] == list(report.elbo_terms)
    assert report.run_id == runs[0].run_id


def test_the_terms_of_the_bound_are_reported_for_each_step(params, space, runs):
    report = run(params, space)
    assert len(report.elbo_terms) == 3
    assert min(report.elbo_terms) > 0
    assert run(params, space, "most_pop").elbo_terms is None


def test_a_model_that_is_trained_on_no_bound_reports_no_terms(params, space, runs, monkeypatch):
    monkeypatch.setattr("noise2next.models.diffrec.DiffRec.elbo_terms", lambda *_: None)
    assert run(params, space).elbo_terms is None


def test_what_is_trained_already_is_not_trained_again(params, space, runs):
    first = run(params, space)
    assert run(params, space) == first
    assert len(runs) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"trainer": {"metric": "recall@5", "epochs": 2, "batch_size": 16}},
        {"trainer": {"metric": "recall@5", "epochs": 3, "batch_size": 20}},
    ],
    ids=["seed", "epochs", "batch size"],
)
def test_another_choice_is_another_run(params, space, runs, change):
    first = run(params, space)
    second = run(Params.model_validate({**params.model_dump(), **change}), space)
    assert first.fingerprint != second.fingerprint
    assert len(runs) == 2


def test_other_data_is_another_run(params, space, runs):
    run(params, space)
    prepare(space, "v2")
    run(params, space)
    assert len(runs) == 2


def test_what_does_not_touch_the_weights_is_the_same_run(params, space, runs):
    run(params, space)
    trainer = {**params.trainer.model_dump(), "checkpoint_seconds": 5}
    run(Params.model_validate({**params.model_dump(), "trainer": trainer}), space)
    assert len(runs) == 1


def test_a_damaged_artifact_is_told_and_trained_again_to_the_same_weights(params, space, runs, caplog):
    run(params, space)
    before = weights(space)
    path = space.model("diffrec") / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        run(params, space)
    assert "is trained again" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in weights(space).items())


def test_the_machine_says_what_auto_precision_means_and_who_names_one_keeps_it(params, space, runs, monkeypatch):
    def precision(**trainer):
        chosen = Params.model_validate({**params.model_dump(), "trainer": {**params.trainer.model_dump(), **trainer}})
        return train.run(chosen, space, Settings(device="cpu"), "diffrec").precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision() == "float32"
    monkeypatch.setenv("NOISE2NEXT_PRECISION", "bfloat16")
    assert precision() == "bfloat16"
    assert precision(precision="float32") == "float32"
    monkeypatch.setenv("NOISE2NEXT_PRECISION", "half")
    with pytest.raises(UserError, match="NOISE2NEXT_PRECISION: 'half' is none; write auto, float32 or bfloat16"):
        precision()


def test_time_weights_reach_the_model(params, space, runs):
    run(params, space)
    run(params, space, "t_diffrec")
    name = "denoiser.decode.weight"
    assert not torch.equal(weights(space)[name], weights(space, "t_diffrec")[name])


def test_noise_reaches_the_model_and_its_seed_and_share_the_fingerprint(params, space, runs):
    plain, noised = run(params, space, "most_pop"), run(params, space, "noised_pop")
    counts = [weights(space, name)["popularity"].sum() for name in ("most_pop", "noised_pop")]
    assert counts == [USERS * 6, USERS * 9]
    assert plain.fingerprint != noised.fingerprint
    more = {"noised_pop": params.variants["noised_pop"].model_copy(update={"noise": Noise(share=0.2)})}
    for other in ({"variants": {**params.variants, **more}}, {"seed": 2}):
        before = weights(space, "noised_pop")["popularity"]
        again = run(params.model_copy(update=other), space, "noised_pop")
        assert again.fingerprint != noised.fingerprint
        assert not torch.equal(weights(space, "noised_pop")["popularity"], before)


def test_a_variant_that_needs_a_clock_is_refused_without_one(params, space, runs):
    with pytest.raises(UserError, match="'recent_pop' cannot be trained on it: exponential weights need a clock"):
        run(params, space, "recent_pop")
    assert not runs


def test_an_unprepared_dataset_is_refused_with_the_command_that_prepares_it(params, tmp_path, runs):
    with pytest.raises(UserError, match="noise2next prepare"):
        run(params, Workspace(Path(tmp_path) / "empty", "shop"))


def test_training_does_not_read_the_test_part(params, space, runs, monkeypatch):
    read = []

    def noted(path, *rest, **named):
        read.append(Path(path).name)
        return pq.ParquetFile(path).read()

    monkeypatch.setattr("noise2next.data.interactions.pq.read_table", noted)
    run(params, space)
    assert {"train.parquet", "valid.parquet"} <= set(read)
    assert "test.parquet" not in read


def test_users_who_come_after_training_change_no_weight(params, space, runs):
    run(params, space)
    before = (space.model("diffrec") / "weights.safetensors").read_bytes()
    users = Vocabulary.load(space.prepared / "users.parquet")
    with writing(space.prepared) as folder:
        for path in space.prepared.iterdir():
            if path.name != "manifest.json":
                shutil.copy(path, folder / path.name)
        Vocabulary((*users.ids, "later1", "later2")).save(folder / "users.parquet")
    shutil.rmtree(space.model("diffrec"))
    run(params, space)
    assert (space.model("diffrec") / "weights.safetensors").read_bytes() == before
