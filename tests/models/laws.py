"""What holds for every recommender. A model's test file names the class and inherits the rest."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from noise2next.config import (
    EvaluationConfig,
    LeaveOneOut,
    OfficialSplit,
    SplitConfig,
    TrainerConfig,
    UniformWeights,
    Variant,
)
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import judge
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import Clock, Recommender, Trainable, build, model_class, model_config
from noise2next.models.popularity import MostPop
from noise2next.training import checkpoint
from noise2next.training.fit import fit

USERS, ITEMS, TASTES = 160, 48, 4
EVALUATION = EvaluationConfig(cutoffs=(1, 5, 10), memory_mb=64)


def planted(seed: int = 0) -> Split:
    """Four tastes of twelve items each; a user takes nine items of one taste and one at random, two are held out."""
    draw = np.random.default_rng(seed)
    parts: dict[str, list[tuple[int, int]]] = {"train": [], "valid": [], "test": []}
    size = ITEMS // TASTES
    for user in range(USERS):
        taste = draw.choice(size, size=9, replace=False, p=np.linspace(2, 1, size) / np.linspace(2, 1, size).sum())
        chosen = [*(taste + size * (user % TASTES)), int(draw.integers(ITEMS))]
        chosen = list(dict.fromkeys(int(item) for item in chosen))
        for at, item in enumerate(chosen):
            part = "valid" if at == 3 else "test" if at == 4 else "train"
            parts[part].append((user, item))
    return split_of(parts, OfficialSplit(history="train"))


def planted_sequences(seed: int = 0) -> Split:
    """Four tastes of twelve items each on a circle; a user walks on from an item to the next, with a stray item or two.

    Seven steps, the last for test, the one before for validation. Only who reads the order can tell the next item: the
    set of a user's items is a piece of the circle that goes on at both ends.
    """
    draw = np.random.default_rng(seed)
    parts: dict[str, list[tuple[int, int]]] = {"train": [], "valid": [], "test": []}
    size = ITEMS // TASTES
    for user in range(USERS):
        taste, first = user % TASTES, draw.integers(size)
        *early, valid, test = (int(taste * size + (first + step) % size) for step in range(7))
        for item in early:
            parts["train"].append((user, item))
            if draw.random() < 0.1:
                parts["train"].append((user, int((item + draw.integers(size, ITEMS - size)) % ITEMS)))
        parts["valid"].append((user, valid))
        parts["test"].append((user, test))
    return split_of(parts, LeaveOneOut())


def split_of(parts: Mapping[str, list[tuple[int, int]]], config: SplitConfig) -> Split:
    """Rows (user, item) of each part, by user, in each user's order."""
    rows = {name: np.array(pairs) for name, pairs in parts.items()}
    made = {name: Interactions.of(pairs[:, 0], pairs[:, 1], None, USERS) for name, pairs in rows.items()}
    users = Vocabulary(tuple(f"u{user}" for user in range(USERS)))
    items = Vocabulary(tuple(f"i{item}" for item in range(ITEMS)))
    return Split(config, users, items, made["train"], made["valid"], made["test"], False)


def queries_of(split: Split, device: str = "cpu") -> Queries:
    return Queries.of(split.train, split.n_items, split.users.keys, device)


def scores(model: Recommender, queries: Queries) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        model.begin_scoring()
        return model.score(queries)


def recall(model: Recommender, split: Split, cutoff: int = 10, device: str = "cpu") -> float:
    return judge(model, split, UniformWeights(), ["test"], EVALUATION, device)["test"].means()[f"recall@{cutoff}"]


class Stop(Exception):
    """A stand-in for the end of the process."""


class RecommenderLaws:
    """Inherit, and set `model` and what it needs to learn the planted tastes in a few seconds."""

    model: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    trainer: ClassVar[TrainerConfig] = TrainerConfig(epochs=30, batch_size=40, patience=30, metric="recall@10")
    tolerance: ClassVar[float] = 1e-5
    plant: ClassVar[Callable[[], Split]] = staticmethod(planted)
    item_clusters: ClassVar[torch.Tensor] = torch.arange(ITEMS) % 2  # for models that are built from such labels

    def build(self, split: Split) -> Recommender:
        variant = Variant(name="laws", model=self.model, options=self.options)
        inputs = {"user_keys": split.users.keys, "item_clusters": self.item_clusters}
        return build(variant, split.n_items, {name: torch.as_tensor(value) for name, value in inputs.items()})

    def train(
        self,
        split: Split,
        folder: Any,
        seed: int = 3,
        budget: float | None = None,
        device: str = "cpu",
        **changes: Any,
    ) -> Recommender:
        """`budget` in seconds; `changes` are the trainer's."""
        torch.manual_seed(seed)
        model = self.build(split).to(device)
        fit(
            model,
            queries_of(split, device),
            self.trainer.model_copy(update=changes),
            validate=lambda one: judge(one, split, UniformWeights(), ["valid"], EVALUATION, device)["valid"].means(),
            checkpoint=folder / "checkpoint",
            seed=seed,
            device=torch.device(device),
            on_epoch=lambda epoch, values: None,
            progress=False,
            budget_seconds=budget,
        )
        return model

    @pytest.fixture(scope="class")
    def split(self) -> Split:
        return self.plant()

    @pytest.fixture(scope="class")
    def fitted(self, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
        return self.train(split, tmp_path_factory.mktemp("laws"))

    def test_scores_are_a_row_a_query_and_a_column_an_item(self, fitted: Recommender, split: Split) -> None:
        found = scores(fitted, queries_of(split))
        assert found.shape == (USERS, ITEMS)
        assert found.dtype in (torch.float32, torch.float64)
        assert found.isfinite().all()

    def test_a_list_does_not_depend_on_batch_mates(self, fitted: Recommender, split: Split) -> None:
        queries = queries_of(split)
        together = scores(fitted, queries)
        some = torch.tensor([7, 3, 150])
        torch.testing.assert_close(scores(fitted, queries.select(some)), together[some], rtol=0, atol=self.tolerance)
        alone = scores(fitted, queries.select(some[:1]))
        torch.testing.assert_close(alone, together[some[:1]], rtol=0, atol=self.tolerance)

    def test_scoring_twice_gives_the_same_and_changes_nothing(self, fitted: Recommender, split: Split) -> None:
        before = {name: value.clone() for name, value in fitted.state_dict().items()}
        first, second = scores(fitted, queries_of(split)), scores(fitted, queries_of(split))
        assert torch.equal(first, second)
        assert all(torch.equal(value, before[name]) for name, value in fitted.state_dict().items())

    def test_a_history_that_nobody_has_is_scored(self, fitted: Recommender, split: Split) -> None:
        new = Interactions.of(np.zeros(3, dtype=np.int64), np.array([1, 20, 40]), None, 1)
        assert scores(fitted, Queries.of(new, ITEMS, np.array([99]))).isfinite().all()

    def test_an_empty_history_is_scored(self, fitted: Recommender) -> None:
        nothing = Interactions.of(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), None, 1)
        assert scores(fitted, Queries.of(nothing, ITEMS, np.array([99]))).isfinite().all()

    def test_equal_seeds_give_equal_weights(self, fitted: Recommender, split: Split, tmp_path: Any) -> None:
        again = self.train(split, tmp_path)
        assert fitted.state_dict().keys() == again.state_dict().keys()
        for name, value in again.state_dict().items():
            assert torch.equal(value, fitted.state_dict()[name]), name

    def test_a_run_stopped_between_two_batches_resumes_to_the_same_bytes(
        self, split: Split, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not issubclass(model_class(self.model), Trainable):
            pytest.skip("learned in one pass")
        short = {"epochs": 2, "checkpoint_seconds": 0}
        whole = self.train(split, tmp_path / "whole", **short)
        save, saved = checkpoint.save, []

        def save_and_stop(*arguments: Any) -> None:
            save(*arguments)
            saved.append(arguments)
            if len(saved) == 3:
                raise Stop

        monkeypatch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(Stop):
            self.train(split, tmp_path / "stopped", **short)
        monkeypatch.setattr(checkpoint, "save", save)
        resumed = self.train(split, tmp_path / "stopped", **short)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    @pytest.mark.parametrize("batch_size", [10, 100_000], ids=["within an epoch", "after an epoch"])
    def test_a_run_killed_after_its_budget_is_judged_as_if_it_had_not_been(
        self, split: Split, tmp_path: Any, batch_size: int
    ) -> None:
        """The checkpoint is there, the model not yet: the next process judges without another batch."""
        if not issubclass(model_class(self.model), Trainable):
            pytest.skip("learned in one pass")
        sparing = {"epochs": 9, "evaluate_every": 5, "batch_size": batch_size}
        first, again = (self.train(split, tmp_path, budget=0.0, **sparing) for _ in range(2))
        for name, value in first.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name

    def beginner(self, split: Split) -> tuple[Trainable, Queries]:
        """A model about to be trained, and what it is to be trained on."""
        if not issubclass(model_class(self.model), Trainable):
            pytest.skip("learned in one pass")
        model, train = self.build(split), queries_of(split)
        assert isinstance(model, Trainable)
        model.begin_training(train)
        return model, train

    def test_an_epoch_has_as_many_samples_as_it_says(self, split: Split) -> None:
        model, train = self.beginner(split)
        batches = list(model.batches(train, 7, torch.Generator().manual_seed(0)))
        assert len(batches) > 1
        assert sum(len(one) for one in batches) == model.samples(train)

    def test_it_trains_on_bfloat16_products(self, split: Split) -> None:
        model, train = self.beginner(split)
        batch = next(iter(model.batches(train, 40, torch.Generator().manual_seed(0))))
        for phase in model.phases:
            with torch.autocast("cpu", torch.bfloat16):
                terms = model.loss(batch, phase, Clock())
            assert {term.dtype for term in terms.values()} == {torch.float32}
            model.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            moved = [one.grad for one in model.parameters() if one.grad is not None]
            assert moved
            assert all(gradient.isfinite().all() for gradient in moved)

    def test_a_saved_model_comes_back_with_the_same_scores(
        self, fitted: Recommender, split: Split, tmp_path: Any
    ) -> None:
        variant = Variant(name="laws", model=self.model, options=self.options)
        card = ModelCard(
            dataset="planted", variant=variant, n_items=ITEMS, seed=fitted.scoring_seed, data_version="", fingerprint=""
        )
        Artifact(fitted, split.items, card).save(tmp_path / "model", {})
        again = Artifact.load(tmp_path / "model").model
        assert torch.equal(scores(again, queries_of(split)), scores(fitted, queries_of(split)))

    def test_planted_tastes_are_found_better_than_by_popularity(self, fitted: Recommender, split: Split) -> None:
        popular = MostPop(MostPop.Config(), ITEMS)
        popular.solve(queries_of(split))
        assert recall(fitted, split) > recall(popular, split) + 0.2

    @pytest.mark.gpu
    def test_a_gpu_gives_the_same_scores(self, fitted: Recommender, split: Split) -> None:
        """What is drawn in scoring hangs on seed and user, not on the device."""
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        here = scores(fitted, queries_of(split))
        there = scores(copy.deepcopy(fitted).to("cuda"), queries_of(split, "cuda")).cpu()
        torch.testing.assert_close(there, here, rtol=0, atol=1e-3 * float(here.abs().max()))

    @pytest.mark.gpu
    def test_a_gpu_learns_as_much(self, fitted: Recommender, split: Split, tmp_path: Any) -> None:
        """In bfloat16 products, where the GPU has them."""
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        learned = self.train(split, tmp_path, device="cuda")
        assert recall(learned, split, device="cuda") > recall(fitted, split) - 0.1

    def test_an_unknown_option_is_refused(self) -> None:
        assert model_class(self.model)
        with pytest.raises(UserError, match="nonsense"):
            model_config(self.model, {**self.options, "nonsense": 1})


class SequenceLaws(RecommenderLaws):
    """Of models that read the order of a history."""

    plant = staticmethod(planted_sequences)

    def test_the_next_item_of_the_walk_comes_first(self, fitted: Recommender, split: Split) -> None:
        assert recall(fitted, split, cutoff=1) > 0.75  # half of it, at best, without the order

    def test_a_history_read_backwards_scores_otherwise(self, fitted: Recommender) -> None:
        walk = np.array([3, 4, 5, 6])
        there, back = (
            scores(fitted, Queries.of(Interactions.of(np.zeros(4, dtype=np.int64), one, None, 1), ITEMS, np.array([9])))
            for one in (walk, walk[::-1])
        )
        assert there[0, 7] > there[0, 2]
        assert not torch.allclose(there, back, atol=1e-3)

    def test_it_is_kept_from_logs_without_order(self) -> None:
        assert model_class(self.model).reads_order
