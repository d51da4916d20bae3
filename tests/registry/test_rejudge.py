"""A champion of other data, judged on today's users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from noise2next.config import Dataset, EvaluationConfig, GlobalTime, Variant
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary
from noise2next.evaluation.evaluator import judge
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import ClosedForm, build
from noise2next.registry.packaging import Package
from noise2next.registry.rejudge import judge_package, remarks, shared_items

USERS, ITEMS = 60, 30
DATASET = Dataset.model_validate({"path": "s", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"})
CONFIG = EvaluationConfig(cutoffs=(5,))


def part(seed: int, rows: int, start: int) -> Interactions:
    draw = np.random.default_rng(seed)
    users = np.sort(draw.integers(0, USERS, rows))
    return Interactions.of(users, draw.integers(0, ITEMS, rows), start + np.arange(rows), USERS)


SPLIT = Split(
    GlobalTime(),
    Vocabulary(tuple(f"u{user}" for user in range(USERS))),
    Vocabulary(tuple(f"i{item}" for item in range(ITEMS))),
    part(1, 600, 0),
    part(2, 150, 1000),
    part(3, 150, 2000),
    True,
)


def relabelled(split: Split, order: np.ndarray, names: list[str]) -> Split:
    """The same rows where item i has the index order[i], or -1; `names` by new index."""

    def part(one: Interactions) -> Interactions:
        return replace(one, items=np.where(one.items < 0, -1, order[one.items]).astype(np.int32))

    return replace(
        split, items=Vocabulary(tuple(names)), train=part(split.train), valid=part(split.valid), test=part(split.test)
    )


@pytest.fixture(scope="module")
def package() -> Package:
    variant = Variant(name="ease", model="noise2next.models.ease.EASE", options={"l2": 20})
    model = build(variant, ITEMS)
    assert isinstance(model, ClosedForm)
    model.solve(Queries.of(SPLIT.train, ITEMS, SPLIT.users.keys))
    card = ModelCard(dataset="s", variant=variant, n_items=ITEMS, seed=1, data_version="d", fingerprint="f")
    return Package.of(Artifact(model, SPLIT.items, card), SPLIT, DATASET)


def test_on_its_own_split_a_package_is_judged_as_its_model_is(package: Package):
    plain = judge(package.artifact.model, SPLIT, package.artifact.card.variant.weighting, ["test"], CONFIG, "cpu")[
        "test"
    ]
    found = judge_package(package, SPLIT, CONFIG, torch.device("cpu"))
    for name, values in plain.per_user.items():
        np.testing.assert_array_equal(found.per_user[name], values)


def test_another_order_of_the_items_changes_nothing(package: Package):
    order = np.random.default_rng(5).permutation(ITEMS)
    names = [SPLIT.items.ids[item] for item in np.argsort(order)]
    plain = judge_package(package, SPLIT, CONFIG, torch.device("cpu"))
    found = judge_package(package, relabelled(SPLIT, order, names), CONFIG, torch.device("cpu"))
    assert found.users == plain.users
    np.testing.assert_allclose(found.per_user["recall@5"], plain.per_user["recall@5"], atol=1e-6)


def test_an_item_that_the_champion_never_saw_is_never_its_answer(package: Package):
    names = [*(f"i{item}" for item in range(ITEMS - 1)), "brand-new"]  # i29 has made room
    found = judge_package(package, relabelled(SPLIT, np.arange(ITEMS), names), CONFIG, torch.device("cpu"))
    own = judge_package(package, SPLIT, CONFIG, torch.device("cpu"))
    assert found.lists["coverage@5"] <= 1 - 1 / ITEMS
    assert found.users == own.users
    said = remarks(package, relabelled(SPLIT, np.arange(ITEMS), names), "champion")
    assert any("1 of 30 items" in one for one in said)


def test_a_training_that_reaches_into_the_test_window_is_said(package: Package):
    assert remarks(package, SPLIT, "champion") == []
    earlier = replace(SPLIT, test=replace(SPLIT.test, times=SPLIT.test.times - 1900))
    assert any("favours the champion" in one for one in remarks(package, earlier, "champion"))


def test_a_package_of_another_catalogue_shares_nothing(package: Package):
    other = relabelled(SPLIT, np.arange(ITEMS), [f"j{item}" for item in range(ITEMS)])
    assert shared_items(package, other) == 0
