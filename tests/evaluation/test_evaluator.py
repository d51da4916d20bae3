"""Who is judged, on what, from which history, and what is left out of the ranking."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from noise2next.config import EvaluationConfig, LinearWeights, OfficialSplit, PerUserRatio, UniformWeights
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import Evaluator, judge
from noise2next.models.base import ModelConfig, Recommender

CONFIG = EvaluationConfig(cutoffs=(1, 3), memory_mb=64)
ITEMS = 6


class Recorder(Recommender):
    """Item 0 first, then 1, and so on; it keeps what it was asked with."""

    Config = ModelConfig

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Queries] = []

    def score(self, queries: Queries) -> Tensor:
        assert not self.training
        self.asked.append(queries)
        return -torch.arange(ITEMS, dtype=torch.float32).expand(len(queries), ITEMS)


class Personal(Recorder):
    """To the first user item 2 first, then 3 and so on around; to the second item 3 first, and so on."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.users = torch.as_tensor(split.users.keys)

    def score(self, queries: Queries) -> Tensor:
        user = (queries.keys[:, None] == self.users).int().argmax(dim=1)
        return super().score(queries).gather(1, (torch.arange(ITEMS) - user[:, None] - 2) % ITEMS)


def part(rows: list[list[int]]) -> Interactions:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return Interactions.of(users, np.array([item for row in rows for item in row], dtype=np.int64), None, len(rows))


def a_split(history: str = "train", mask_seen: bool = True) -> Split:
    """User 0 has all; 1 no test; 2 no history in train; 3 only an unknown item to find."""
    config = OfficialSplit(history=history, mask_seen=mask_seen)
    return Split(
        config,
        Vocabulary(("a", "b", "c", "d")),
        Vocabulary(tuple("stuvwx")),
        train=part([[0, 1], [2], [], [5]]),
        valid=part([[2], [0], [3], []]),
        test=part([[3, 4], [], [0], [-1]]),
        has_clock=False,
    )


def test_users_with_something_to_find_and_something_to_go_by_are_judged() -> None:
    found = judge(Recorder(), a_split(), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    assert found["valid"].users.tolist() == [0, 1]
    assert found["test"].users.tolist() == [0, 3]
    assert (found["valid"].left_out, found["test"].left_out) == (1, 1)


def test_validation_as_history_lets_new_users_be_judged_on_test() -> None:
    found = judge(Recorder(), a_split("train+valid"), UniformWeights(), ["test"], CONFIG, "cpu")["test"]
    assert found.users.tolist() == [0, 2, 3]
    assert found.left_out == 0


def test_lists_leave_out_everything_before_the_part_that_is_judged() -> None:
    found = judge(Recorder(), a_split(), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    assert found["valid"].top[0].tolist() == [2, 3, 4]  # train out
    assert found["test"].top[0].tolist() == [3, 4, 5]  # train and valid out
    assert found["test"].per_user["recall@3"].tolist() == [1.0, 0.0]
    assert found["test"].per_user["recall@1"].tolist() == [0.5, 0.0]


def test_seen_items_stay_in_the_ranking_where_the_split_says_so() -> None:
    found = judge(Recorder(), a_split(mask_seen=False), UniformWeights(), ["test"], CONFIG, "cpu")["test"]
    assert found.top.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("history", ["train", "train+valid"])
def test_both_forms_come_from_one_pass_and_are_what_each_is_alone(history: str) -> None:
    masked, unmasked = (
        replace(a_split(history, mask_seen), test=part([[3, 4], [], [0], [0]])) for mask_seen in (True, False)
    )
    parts, model = ("valid", "test"), Personal(masked)
    found = Evaluator(masked, UniformWeights(), parts, CONFIG, "cpu", unmasked=True).judge(model)
    assert len(model.asked) == (1 if history == "train" else 2)
    alone = [judge(Personal(split), split, UniformWeights(), parts, CONFIG, "cpu") for split in (masked, unmasked)]
    for name in parts:
        left_out, left_in = (one[name] for one in alone)
        assert np.array_equal(found[name].top, left_out.top)
        assert found[name].lists == left_out.lists
        assert left_out.unmasked == {}
        for metric in left_in.per_user:
            assert found[name].unmasked[metric].tolist() == left_in.per_user[metric].tolist()
            assert found[name].per_user[metric].tolist() == left_out.per_user[metric].tolist()
    assert found["test"].unmasked["recall@1"].tolist() != found["test"].per_user["recall@1"].tolist()


def test_parts_that_read_the_same_history_share_one_pass_of_scores() -> None:
    shared, apart = Recorder(), Recorder()
    judge(shared, a_split("train"), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    judge(apart, a_split("train+valid"), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    assert len(shared.asked) == 1
    assert len(apart.asked) == 2


def test_sharing_the_pass_changes_no_number() -> None:
    together = judge(Recorder(), a_split(), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    for name in ("valid", "test"):
        alone = judge(Recorder(), a_split(), UniformWeights(), [name], CONFIG, "cpu")[name]
        assert alone.means() == together[name].means()
        assert alone.lists == together[name].lists
        assert np.array_equal(alone.top, together[name].top)


def test_histories_are_weighted_as_the_variant_says_and_masks_ignore_weights() -> None:
    model = Recorder()
    low = LinearWeights(low=0.25, high=1.0)
    found = judge(model, a_split(), low, ["test"], CONFIG, "cpu")["test"]
    assert model.asked[0].select(torch.tensor([0])).weights.tolist() == [0.25, 1.0]
    assert found.top[0].tolist() == [3, 4, 5]


def test_the_truth_is_never_shown_to_the_model() -> None:
    model = Recorder()
    judge(model, a_split(), UniformWeights(), ["valid", "test"], CONFIG, "cpu")
    histories = {int(key): set(one.items.tolist()) for one in model.asked for key, one in _by_user(one)}
    split = a_split()
    assert histories == {int(split.users.keys[0]): {0, 1}, int(split.users.keys[1]): {2}, int(split.users.keys[3]): {5}}


def _by_user(queries: Queries) -> list[tuple[int, Queries]]:
    return [(int(queries.keys[at]), queries.select(torch.tensor([at]))) for at in range(len(queries))]


def test_the_model_keeps_its_mode_of_training() -> None:
    model = Recorder().train()
    judge(model, a_split(), UniformWeights(), ["valid"], CONFIG, "cpu")
    assert model.training


def test_an_evaluator_serves_again_and_again() -> None:
    evaluator = Evaluator(a_split(), UniformWeights(), ["valid"], CONFIG, "cpu")
    first, second = evaluator.judge(Recorder()), evaluator.judge(Recorder())
    assert first["valid"].means() == second["valid"].means()


def test_a_part_with_nobody_to_judge_is_refused() -> None:
    empty = replace(a_split(), config=PerUserRatio(), test=part([[], [], [], []]))
    with pytest.raises(UserError, match="nobody can be judged"):
        judge(Recorder(), empty, UniformWeights(), ["test"], CONFIG, "cpu")


def test_a_cutoff_beyond_the_catalogue_is_padded() -> None:
    wide = EvaluationConfig(cutoffs=(10,), memory_mb=64)
    found = judge(Recorder(), a_split(), UniformWeights(), ["test"], wide, "cpu")["test"]
    assert found.top[0].tolist() == [3, 4, 5] + [-1] * 7
    assert found.per_user["precision@10"][0] == pytest.approx(0.2)
