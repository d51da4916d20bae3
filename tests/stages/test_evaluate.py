"""The evaluation stage and the leaderboard stage over one small prepared workspace, tracking replaced by a recorder."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.config import Noise, Params, Settings, UniformWeights, Variant
from noise2next.data.interactions import Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import judge
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import ClosedForm, build
from noise2next.models.diffrec import DiffRec
from noise2next.models.ease import EASE
from noise2next.stages import evaluate, leaderboard
from noise2next.workspace import Workspace, read_json, verify, write_json, writing

USERS, ITEMS = 60, 20


def prepare(space: Workspace, data_version: str = "v1", seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    with writing(space.prepared) as folder:
        taken = [draw.permutation(ITEMS)[:8] for _ in range(USERS)]
        for part, first, last in (("train", 0, 5), ("valid", 5, 6), ("test", 6, 8)):
            rows = [(user, item) for user, items in enumerate(taken) for item in items[first:last]]
            users, items = (pa.array(column, pa.int32()) for column in zip(*rows, strict=True))
            pq.write_table(pa.table({"user": users, "item": items}), folder / f"{part}.parquet")
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(f"i{item}" for item in range(ITEMS))).save(folder / "items.parquet")
        write_json(
            folder / "report.json", {"data_version": data_version, "items_in_train": ITEMS, "notes": ["mind the gap"]}
        )


def train(params: Params, space: Workspace, name: str, fingerprint: str = "f1", data_version: str = "v1") -> None:
    variant: Variant = params.variant(name, space.dataset)
    split = Split.load(space.prepared, params.dataset(space.dataset).split, False)
    model = build(variant, split.n_items)
    assert isinstance(model, ClosedForm)
    model.solve(Queries.of(split.train, split.n_items, split.users.keys))
    card = ModelCard(
        dataset=space.dataset,
        variant=variant,
        n_items=ITEMS,
        seed=1,
        data_version=data_version,
        fingerprint=fingerprint,
    )
    report = {
        "epochs": 0,
        "best_epoch": 0,
        "stopped": "solved",
        "metrics": {},
        "seconds": 0.5,
        "curve": [],
        "device": "cpu",
        "precision": "float32",
        "peak_memory_mb": 1.0,
        "dataset": space.dataset,
        "variant": name,
        "seed": 1,
        "fingerprint": fingerprint,
        "run_id": f"run-{name}",
    }
    Artifact(model, split.items, card).save(space.model(name), report)


@pytest.fixture
def params() -> Params:
    entry = {"path": "log.csv", "format": "delimited", "time_unit": "order", "split": {"kind": "leave_one_out"}}
    return Params.model_validate(
        {
            "datasets": {"shop": {**entry, "columns": {"time": "t"}}},
            "variants": {
                "most_pop": {"model": "noise2next.models.popularity.MostPop"},
                "ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 10}},
            },
            "trainer": {"metric": "recall@5"},
            "evaluation": {"cutoffs": [5, 10], "bootstrap_samples": 50},
        }
    )


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, "shop")
    prepare(made)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path, device="cpu")


@pytest.fixture(autouse=True)
def tracked(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """What went to each tracked run."""
    runs: dict[str, dict[str, float]] = {}

    class Log:
        def __init__(self, run_id: str) -> None:
            self.run_id = run_id

        def metrics(self, values: dict[str, float], step: int | None = None) -> None:
            runs.setdefault(self.run_id, {}).update(values)

    @contextlib.contextmanager
    def resume(settings: Settings, space: Workspace, run_id: str) -> Iterator[Log]:
        yield Log(run_id)

    monkeypatch.setattr(evaluate, "resume_run", resume)
    return runs


def both(params: Params, space: Workspace, settings: Settings) -> None:
    for name in params.variants:
        train(params, space, name)
        evaluate.run(params, space, settings, name)


class TestEvaluate:
    def test_the_users_table_has_the_means_of_the_report(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        train(params, space, "ease")
        report = evaluate.run(params, space, settings, "ease")
        table = pq.read_table(space.evaluation("ease") / "per_user.parquet").to_pandas()
        assert set(table["user"]) == {f"u{user}" for user in range(USERS)}
        for part in ("valid", "test"):
            rows = table[table["part"] == part]
            assert len(rows) == report.users[part] == USERS
            for name, interval in report.metrics[part].items():
                assert rows[name].mean() == pytest.approx(interval.mean, abs=1e-6)
                assert interval.low <= interval.mean <= interval.high
        verify(space.evaluation("ease"))
        assert read_json(space.evaluation("ease") / "report.json") == report.model_dump(mode="json")

    def test_test_metrics_go_to_the_runs_of_the_model(
        self, params: Params, space: Workspace, settings: Settings, tracked: dict[str, dict[str, float]]
    ) -> None:
        train(params, space, "ease")
        report = evaluate.run(params, space, settings, "ease")
        assert tracked["run-ease"]["test_recall@5"] == pytest.approx(report.metrics["test"]["recall@5"].mean)
        assert tracked["run-ease"]["test_coverage@10"] == report.lists["test"]["coverage@10"]

    def test_a_model_of_other_data_is_refused_and_nothing_changes(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        train(params, space, "ease")
        evaluate.run(params, space, settings, "ease")
        before = (space.evaluation("ease") / "report.json").read_bytes()
        prepare(space, data_version="v2", seed=1)
        with pytest.raises(UserError, match="other data"):
            evaluate.run(params, space, settings, "ease")
        assert (space.evaluation("ease") / "report.json").read_bytes() == before

    def test_a_damaged_model_is_refused(self, params: Params, space: Workspace, settings: Settings) -> None:
        train(params, space, "ease")
        weights = space.model("ease") / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        with pytest.raises(UserError, match="sha256"):
            evaluate.run(params, space, settings, "ease")

    def test_a_model_that_is_not_there_names_the_command(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        with pytest.raises(UserError, match="noise2next train"):
            evaluate.run(params, space, settings, "ease")

    def test_what_only_serves_training_is_not_counted_as_learned(self) -> None:
        diffrec = DiffRec(DiffRec.Config(hidden=(4,)), ITEMS)  # its step sampler remembers losses besides
        layers = (ITEMS + 10) * 4 + 4, 10 * 10 + 10, 4 * ITEMS + ITEMS
        assert evaluate._learned_numbers(diffrec) == sum(layers)
        assert evaluate._learned_numbers(EASE(EASE.Config(), ITEMS)) == ITEMS * ITEMS

    def test_histories_are_noised_as_in_training_and_the_report_says_so(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        noisy = params.variants["ease"].model_copy(update={"noise": Noise(share=0.6)})
        params = params.model_copy(update={"variants": {"ease": noisy}})
        train(params, space, "ease")
        report = evaluate.run(params, space, settings, "ease")
        assert report.noise == Noise(share=0.6)
        split = Split.load(space.prepared, params.dataset("shop").split, False)
        model, config = Artifact.load(space.model("ease")).model, params.evaluation
        found = judge(model, split, UniformWeights(), ["test"], config, "cpu", Noise(share=0.6), 1)["test"].means()
        assert {name: value.mean for name, value in report.metrics["test"].items()} == pytest.approx(found)
        assert found != judge(model, split, UniformWeights(), ["test"], config, "cpu")["test"].means()

    def test_evaluating_twice_says_the_same(self, params: Params, space: Workspace, settings: Settings) -> None:
        train(params, space, "ease")
        first, second = (evaluate.run(params, space, settings, "ease") for _ in range(2))
        assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})


class TestLeaderboard:
    def test_it_ranks_what_was_evaluated_and_writes_page_and_document(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        both(params, space, settings)
        report = leaderboard.run(params, space)
        assert {row.variant for row in report.rows} == {"most_pop", "ease"}
        means = [row.metrics["recall@5"].mean for row in report.rows]
        assert means == sorted(means, reverse=True)
        document: dict[str, Any] = json.loads((space.leaderboard / "leaderboard.json").read_text())
        assert document == report.model_dump(mode="json")
        assert set(document["rows"][0]["metrics"]["recall@5"]) == {"mean", "low", "high"}
        assert "<!doctype html>" in (space.leaderboard / "leaderboard.html").read_text()
        assert "mind the gap" in report.notes

    def test_evaluations_of_other_data_are_left_out_and_named(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        both(params, space, settings)
        prepare(space, data_version="v2")
        train(params, space, "ease", fingerprint="f2", data_version="v2")
        evaluate.run(params, space, settings, "ease")
        report = leaderboard.run(params, space)
        assert [row.variant for row in report.rows] == ["ease"]
        assert "other data" in report.left_out["most_pop"]

    def test_a_model_trained_again_but_not_evaluated_again_is_left_out(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        both(params, space, settings)
        train(params, space, "ease", fingerprint="f2")
        assert "changed since" in leaderboard.run(params, space).left_out["ease"]

    def test_another_history_is_never_mixed_in(self, params: Params, space: Workspace, settings: Settings) -> None:
        both(params, space, settings)
        entry = params.datasets["shop"]
        split = entry.split.model_copy(update={"history": "train"})
        other = params.model_copy(update={"datasets": {"shop": entry.model_copy(update={"split": split})}})
        evaluate.run(other, space, settings, "ease")
        report = leaderboard.run(other, space)
        assert [row.variant for row in report.rows] == ["ease"]
        assert "history" in report.left_out["most_pop"]

    def test_only_named_variants_are_compared(self, params: Params, space: Workspace, settings: Settings) -> None:
        both(params, space, settings)
        assert [row.variant for row in leaderboard.run(params, space, ["ease"]).rows] == ["ease"]

    def test_a_named_variant_without_evaluation_is_refused(
        self, params: Params, space: Workspace, settings: Settings
    ) -> None:
        train(params, space, "ease")
        evaluate.run(params, space, settings, "ease")
        with pytest.raises(UserError, match="noise2next evaluate --dataset shop --variant most_pop"):
            leaderboard.run(params, space, ["ease", "most_pop"])
        with pytest.raises(UserError, match="no variant 'nonsense'"):
            leaderboard.run(params, space, ["nonsense"])

    def test_nothing_to_compare_names_the_command(self, params: Params, space: Workspace) -> None:
        with pytest.raises(UserError, match="noise2next evaluate"):
            leaderboard.run(params, space)
