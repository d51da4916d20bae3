"""A stream that has not changed is left in peace, one that has is told of, and the shares are exact."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from noise2next.config import DriftConfig
from noise2next.data.recent import DAY, Recent
from noise2next.evaluation import drift

USERS, ITEMS, STRETCHES = 300, 80, 6
CONFIG = DriftConfig(least_rows=50, least_users=20)


def stream(seed: int, moving: float = 0.0) -> list[np.ndarray]:
    """Six stretches of rows (user, item); with `moving` the items turn by such a share from stretch to stretch."""
    draw = np.random.default_rng(seed)
    zeal, taste = draw.lognormal(0, 1, USERS), draw.integers(0, 4, USERS)
    made = []
    for stretch in range(STRETCHES):
        users = draw.choice(USERS, 3_000, p=zeal / zeal.sum())
        popular = (ITEMS * draw.random(3_000) ** 3).astype(np.int64)
        turn = round(moving * ITEMS * stretch)
        made.append(np.stack([users, (popular + 7 * taste[users] + turn) % ITEMS], axis=1))
    return made


def recent(rows: list[np.ndarray]) -> Recent:
    """As the engine gives it: a row for each user and item of each stretch."""
    flat = np.concatenate([np.insert(one, 0, stretch, axis=1) for stretch, one in enumerate(rows)])
    pairs, counts = np.unique(flat, axis=0, return_counts=True)
    stretches, users, items = pairs.T
    first = [np.full(codes.max() + 1, STRETCHES) for codes in (users, items)]
    np.minimum.at(first[0], users, stretches)
    np.minimum.at(first[1], items, stretches)
    new = [one[codes] == stretches for one, codes in zip(first, (users, items), strict=True)]
    starts = np.arange(len(rows)) * 28 * DAY
    return Recent(28 * DAY, starts, users, items, stretches, counts, *new)


def alarmed(rows: list[np.ndarray], seed: int = 1) -> set[str]:
    found = recent(rows)
    assert drift.too_small(found, CONFIG) is None
    return {one.name for one in drift.compare(found, CONFIG, seed) if one.alarmed}


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_that_has_not_changed_is_not_alarmed(seed: int):
    assert alarmed(stream(seed)) == set()


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_that_moves_as_it_always_does_is_not_alarmed_though_it_is_beyond_chance(seed: int):
    findings = drift.compare(recent(stream(seed, moving=0.05)), CONFIG, 1)
    mix = next(one for one in findings if one.name == "item_mix")
    assert mix.value is not None and mix.chance is not None  # noqa: PT018 - for the reader of types
    assert mix.value > mix.chance
    assert not any(one.alarmed for one in findings)


def replaced(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    gone = np.isin(rows[:, 1], draw.permutation(ITEMS)[: round(0.3 * ITEMS)])
    return np.where(gone[:, None] & [False, True], rows + ITEMS, rows)


def mixed_up(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.stack([rows[:, 0], draw.permutation(ITEMS)[rows[:, 1]]], axis=1)


def halved(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return rows[draw.random(len(rows)) < 0.5]


def poisoned(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    hit = draw.random(len(rows)) < 1 / 3
    rows[hit] = np.stack([draw.integers(0, USERS, hit.sum()), draw.integers(0, ITEMS, hit.sum())], axis=1)
    return rows


def new_people(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return rows + np.where(draw.permutation(USERS)[rows[:, 0]] < USERS // 2, USERS, 0)[:, None] * [1, 0]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (replaced, {"item_mix", "new_items"}),
        (mixed_up, {"item_mix"}),
        (halved, {"activity", "volume"}),
        (poisoned, {"popularity"}),
        (new_people, {"new_users"}),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_change_is_alarmed_by_the_question_it_belongs_to(seed: int, change, names: set[str]):
    rows = stream(seed)
    rows[-1] = change(rows[-1], np.random.default_rng(seed))
    assert names <= alarmed(rows)


def test_the_share_of_new_items_is_exact_and_counts_only_what_several_people_took():
    rows = stream(3)
    rows[-1][:40] = [[user, ITEMS] for user in range(40)]  # forty people take one new item
    rows[-1][40:90] = [[5, ITEMS + 1 + stray] for stray in range(50)]  # one person takes fifty that nobody else has
    rows[-1] = np.unique(rows[-1], axis=0)
    found = {one.name: one for one in drift.compare(recent(rows), CONFIG, 1)}
    assert found["new_items"].value == 40 / len(rows[-1])
    assert found["new_items"].before == 0
    assert not found["new_items"].alarmed
    strays = drift.compare(recent(rows), CONFIG.model_copy(update={"least_item_users": 1}), 1)
    assert next(one for one in strays if one.name == "new_items").value == 90 / len(rows[-1])


def test_the_share_of_new_users_is_exact():
    rows = stream(4)
    rows[-1][:30, 0] = USERS + np.arange(30)
    found = {one.name: one for one in drift.compare(recent(rows), CONFIG, 1)}
    known = np.unique(np.concatenate(rows[:-1])[:, 0])
    active = np.unique(rows[-1][:, 0])
    assert found["new_users"].value == (~np.isin(active, known)).sum() / len(active)


def test_users_and_not_rows_are_what_chance_moves():
    """Thirty people with one item each, and a hundred rows of it, are thirty observations and not three thousand."""
    rows = [np.repeat(np.stack([np.arange(30), draw.integers(0, 10, 30)], axis=1), 100, axis=0) for draw in [
        np.random.default_rng(seed) for seed in range(STRETCHES)
    ]]  # fmt: skip
    findings = drift.compare(recent(rows), CONFIG, 1)
    mix = next(one for one in findings if one.name == "item_mix")
    by_rows = np.sqrt(9 / (8 * np.log(2) * 3_000) * 2)  # what the distance of two such samples of rows would be
    assert mix.value is not None
    assert mix.value > 4 * by_rows
    assert not mix.alarmed


def test_a_distance_is_zero_where_nothing_differs():
    rows = [stream(6)[0]] * STRETCHES
    found = {one.name: one for one in drift.compare(recent(rows), CONFIG, 1)}
    for name in ("item_mix", "popularity", "activity", "volume"):
        assert found[name].value == pytest.approx(0, abs=1e-6)


def test_halving_is_one_doubling_of_volume():
    rows = stream(7)
    rows[-1] = np.repeat(rows[-2], 2, axis=0)
    found = {one.name: one for one in drift.compare(recent(rows), CONFIG, 1)}
    assert found["volume"].value == pytest.approx(1)
    assert found["activity"].value == pytest.approx(1)
    assert found["item_mix"].value == pytest.approx(0, abs=1e-6)


def test_equal_seeds_give_equal_findings():
    found = recent(stream(2))
    assert drift.compare(found, CONFIG, 5) == drift.compare(found, CONFIG, 5)


def test_draws_that_do_not_fit_into_memory_at_once_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """Block by block the coins fall otherwise, so what is found by chance is much alike and not the same."""
    found = recent(stream(2))
    whole = drift.compare(found, CONFIG, 5)
    monkeypatch.setattr(drift, "DRAWS_BYTES", 1 << 16)
    for one, other in zip(whole, drift.compare(found, CONFIG, 5), strict=True):
        assert one.value == other.value
        assert one.chance == pytest.approx(other.chance, rel=0.3, abs=0.02)


def test_too_little_is_not_judged():
    rows = stream(1)
    rows[-1] = rows[-1][:40]
    assert "only 40 rows of" in (drift.too_small(recent(rows), CONFIG) or "")


def test_an_earlier_stretch_that_holds_too_little_says_nothing_of_what_is_usual():
    rows = stream(1)
    rows[2] = rows[2][:5]
    (mix, *_) = drift.compare(recent(rows), CONFIG, 1)
    assert len(mix.past) == 2  # of four pairs two hold it
    assert not mix.alarmed


def test_too_few_draws_for_the_level_are_refused():
    with pytest.raises(ValidationError, match="takes 6000 or more"):
        DriftConfig(level=0.999, draws=1_000)
