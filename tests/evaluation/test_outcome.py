"""What came of recommended lists, by hand; and popularity's on the same users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from noise2next.data.recent import Aftermath
from noise2next.evaluation import outcome


def table(**columns: list) -> pa.Table:
    return pa.table(columns)


def pairs(*rows: str) -> pa.Table:
    """`u:a` each"""
    users, items = zip(*(row.split(":") for row in rows), strict=True)
    return pa.table({"user": pa.array(users, pa.string()), "item": pa.array(items, pa.string())})


LISTS = table(
    user=["u", "u", "u", "v", "v", "w", "w", "w"],
    rank=pa.array([1, 2, 3, 1, 2, 1, 2, 3], pa.int32()),
    item=["a", "b", "c", "d", "a", "a", "b", "c"],
)
CAME = Aftermath(
    later=pairs("u:a", "u:c", "u:new", "v:x", "x:a"),  # w took nothing, x got no list
    before=pairs("u:d", "v:b", "v:c", "x:b"),
    popular=table(item=["b", "d", "c", "a", "x"], users=[3, 2, 2, 1, 1]),
)


def test_recall_and_hits_are_those_of_a_hand():
    found = outcome.judge(LISTS, CAME, 3, mask_seen=True)
    assert found is not None
    np.testing.assert_allclose(found["recall"], [2 / 3, 0])  # u: a and c of a, c, new; v: x was not shown
    np.testing.assert_allclose(found["hit_rate"], [1, 0])
    # popularity: u gets b, c, a (d is seen), v gets d, a, x (b and c are seen)
    np.testing.assert_allclose(found["popularity"], [2 / 3, 1])


def test_what_is_seen_stays_in_popularitys_lists_where_it_may_be_shown():
    found = outcome.judge(LISTS, CAME, 3, mask_seen=False)
    assert found is not None
    np.testing.assert_allclose(found["popularity"], [1 / 3, 0])  # b, d, c for both


def test_users_come_in_blocks_and_the_lists_stay_the_same(monkeypatch: pytest.MonkeyPatch):
    whole = outcome.judge(LISTS, CAME, 3, mask_seen=True)
    monkeypatch.setattr(outcome, "BLOCK_BYTES", 1)
    again = outcome.judge(LISTS, CAME, 3, mask_seen=True)
    assert whole is not None
    assert again is not None
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name])


def test_without_a_later_event_of_a_user_with_a_list_nothing_is_said():
    assert outcome.judge(LISTS, Aftermath(pairs("x:a"), CAME.before, CAME.popular), 3, mask_seen=True) is None


def test_a_season_takes_the_recall_and_leaves_the_lead():
    draw = np.random.default_rng(1)
    recall, popular = (draw.random(5_000) < 0.2).astype(np.float32), (draw.random(5_000) < 0.1).astype(np.float32)
    season = {"recall": recall / 2, "hit_rate": recall, "popularity": popular / 2}
    named, _ = outcome.interval_ends(season, 0.8 * 0.2 / 0.1, 500, 0.95, 0.99, 1)
    assert named["lead"].high > 0
    decay = {**season, "popularity": popular}
    named, highest = outcome.interval_ends(decay, 0.8 * 0.2 / 0.1, 500, 0.95, 0.99, 1)
    assert named["lead"].high < 0
    assert named["recall"].low < named["recall"].mean < highest
