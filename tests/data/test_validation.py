import os
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.config import Columns, Dataset, LeaveOneOut, OfficialSplit, RandomRatio
from noise2next.data import validation
from noise2next.data.validation import validate
from noise2next.data.validation_report import percent

DAY = 86_400_000_000
CLOCK = Dataset(path="log.csv", format="delimited", columns=Columns(time="t", rating="r"), time_unit="s", k_core=2)
BARE = Dataset(path="log.csv", format="delimited", split=RandomRatio())
OFFICIAL = Dataset(path="log.zip", format="diffrec", split=OfficialSplit(history="train"))


def rows(dataset, n=60, **columns):
    """`n` rows of ten users and six items in the columns that `dataset` promises, some replaced by `columns`."""
    made = {
        "user": [f"u{k % 10}" for k in range(n)],
        "item": [f"i{k % 6}" for k in range(n)],
        "row": np.arange(n) * 3,
    }
    if dataset.has_order:
        made["time"] = np.arange(n) * DAY
    if dataset.columns.rating is not None:
        made["rating"] = pa.array([1.0 + k % 5 for k in range(n)], pa.float64())
    if dataset.split.kind == "official":
        made["split"] = [("train", "valid", "test")[k % 3] for k in range(n)]
    return pa.table({name: column for name, column in {**made, **columns}.items() if column is not None})


def ingested(table, **figures):
    report = {"read": len(table), "accepted": len(table), "quarantined": 0, "bad_share": 0.0, "reasons": {}}
    report |= {"users": 10, "items": 6, "time_from": "1970-01-01T00:00:00+00:00", "time_to": None}
    return report | figures


def judge(tmp_path, dataset, table, **figures):
    pq.write_table(table, tmp_path / "interactions.parquet")
    return validate("shop", dataset, tmp_path / "interactions.parquet", ingested(table, **figures), tmp_path)


def missed(report):
    return [one.name for one in report.expectations if not one.success]


@pytest.mark.parametrize("dataset", [CLOCK, BARE, OFFICIAL], ids=["clock", "bare", "official"])
def test_a_log_that_keeps_its_promises_passes(tmp_path, dataset):
    report, _ = judge(tmp_path, dataset, rows(dataset))
    assert missed(report) == []
    assert report.success
    assert report.breaches == report.warnings == ()
    assert report.remedy is None


def test_every_expectation_says_in_words_what_it_means_and_what_was_seen(tmp_path):
    report, _ = judge(tmp_path, CLOCK, rows(CLOCK))
    assert len({one.name for one in report.expectations}) == len(report.expectations) > 15
    for one in report.expectations:
        assert one.meaning.endswith(".")
        assert one.expected
        assert one.observed


STRANGE = ["dev", *["train", "valid", "test"] * 19, "test", "test"]
BREACHES = {
    "rows lost": (CLOCK, {}, {"read": 61}, "unaccounted", "rows neither accepted nor quarantined (1 of 60)"),
    "another file": (CLOCK, {}, {"read": 59, "accepted": 59}, "rows", "60 rows and the ingestion reported 59"),
    "one user": (CLOCK, {"user": ["u"] * 60}, {}, "users", "too few users (1)"),
    "one item": (CLOCK, {"item": ["i"] * 60}, {}, "items", "too few items (1)"),
    "a nameless user": (
        CLOCK,
        {"user": [None, *["u", "v"] * 29, "u"]},
        {},
        "user_present",
        "rows without a user (1 of 60)",
    ),
    "an empty item": (CLOCK, {"item": ["", *["i", "j"] * 29, "i"]}, {}, "item_named", "rows without an item (1 of 60)"),
    "out of order": (
        CLOCK,
        {"row": [1, 0, *range(2, 60)]},
        {},
        "out_of_order",
        "rows out of the order of reading (1 of 60)",
    ),
    "a row twice": (
        CLOCK,
        {"row": [0, 0, *range(2, 60)]},
        {},
        "out_of_order",
        "rows out of the order of reading (1 of 60)",
    ),
    "no time": (
        CLOCK,
        {"time": pa.array([None, *range(59)], pa.int64())},
        {},
        "time_present",
        "rows without a time (1 of 60)",
    ),
    "before 1970": (CLOCK, {"time": [-1, *range(59)]}, {}, "time_in_range", "rows older than 1970 (1 of 60)"),
    "tomorrow": (
        CLOCK,
        {"time": [*range(59), time.time_ns() // 1000 + 3 * DAY]},
        {},
        "future_times",
        "rows in the future (1 of 60)",
    ),
    "one moment": (CLOCK, {"time": [7] * 60}, {}, "days", "all rows have the same time, which global_time cannot cut"),
    "an infinite rating": (
        CLOCK,
        {"rating": [np.inf, *[1.0] * 59]},
        {},
        "rating_in_range",
        "ratings that are NaN or infinite (1 of 60)",
    ),
    "a rating of NaN": (
        CLOCK,
        {"rating": [np.nan, *[1.0] * 59]},
        {},
        "endless_ratings",
        "ratings that are NaN or infinite (1 of 60)",
    ),
    "nothing liked": (
        CLOCK.model_copy(update={"positive": "rating >= 4"}),
        {"rating": [3.5] * 60},
        {},
        "positive_rows",
        "no row has rating >= 4",
    ),
    "a core too high": (CLOCK.model_copy(update={"k_core": 7}), {}, {}, "users_of_core", "no user has k_core 7 rows"),
    "histories too short": (
        Dataset(path="x", format="delimited", time_unit="order", columns=Columns(time="t"), split=LeaveOneOut()),
        {"user": [f"u{k // 2}" for k in range(60)]},
        {},
        "users_of_three",
        "no user has the three rows that leave_one_out cuts",
    ),
    "an unknown part": (OFFICIAL, {"split": STRANGE}, {}, "split_known", "rows of no part (1 of 60)"),
    "no test part": (OFFICIAL, {"split": ["train", "valid"] * 30}, {}, "test_rows", "the part test is empty"),
}


@pytest.mark.parametrize("case", BREACHES)
def test_a_breach_is_found_and_told(tmp_path, case):
    dataset, columns, figures, name, said = BREACHES[case]
    report, pages = judge(tmp_path, dataset, rows(dataset, **columns), **figures)
    assert not report.success
    assert name in missed(report)
    assert [said in breach for breach in report.breaches].count(True) == 1, report.breaches
    assert report.remedy
    assert "The contract is broken" in pages["index.html"]


@pytest.mark.parametrize(("share", "holds"), [(0.01, True), (0.0101, False), (1.0, False)])
def test_unreadable_rows_break_the_contract_only_above_max_bad_share(tmp_path, share, holds):
    table = rows(CLOCK)
    read = 10_000
    figures = {"read": read, "quarantined": read - len(table), "bad_share": share}
    report, _ = judge(tmp_path, CLOCK, table, **figures)
    assert report.success is holds
    if not holds:
        assert report.breaches[0].endswith("% of 10,000 rows are unreadable, above max_bad_share 1.0 %")
        assert "max_bad_share" in report.remedy


def test_duplicates_are_worth_knowing_and_break_nothing(tmp_path):
    report, pages = judge(tmp_path, CLOCK, rows(CLOCK), read=100, quarantined=40, bad_share=0.0)
    assert report.success
    assert report.warnings == ("40.0 % of the rows are exact duplicates, which were set aside",)
    assert "Worth knowing" in pages["index.html"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"time": None}, "time: not there"),
        ({"rating": [1] * 60}, "rating: int64 in place of double"),
        ({"user": list(range(60))}, "user: int64 in place of string"),
    ],
)
def test_columns_that_are_not_the_promised_ones_end_the_judgement(tmp_path, columns, said):
    report, _ = judge(tmp_path, CLOCK, rows(CLOCK, **columns))
    assert missed(report) == ["wrong_columns"]
    assert said in report.breaches[0]


def test_a_log_above_the_budget_is_judged_on_all_rows_by_its_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "ROW_BUDGET", 59)
    report, pages = judge(tmp_path, CLOCK, rows(CLOCK, user=[None, *["u", "v"] * 29, "u"]))
    assert "interactions.html" not in pages
    assert "above the 59" in report.row_checks
    assert {one.table for one in report.expectations} == {"profile"}
    assert report.breaches == ("there are rows without a user (1 of 60)",)


def test_an_empty_log_is_refused_with_figures(tmp_path):
    report, _ = judge(tmp_path, CLOCK, rows(CLOCK).slice(0, 0))
    assert "there are too few users (0)" in report.breaches


def test_no_page_asks_the_net_for_anything(tmp_path):
    _, pages = judge(tmp_path, CLOCK, rows(CLOCK))
    assert set(pages) == {"index.html", "profile.html", "interactions.html"}
    for page in pages.values():
        assert not re.search(r"https?:|<script|<link|<img|@import|url\(", page)
        for link in re.findall(r'href="([^"]+)"', page):
            assert link in pages


def test_a_reason_from_a_log_cannot_write_into_the_page(tmp_path):
    _, pages = judge(tmp_path, CLOCK, rows(CLOCK), reasons={"<script>alert(1)</script>": 1})
    assert "<script>" not in pages["index.html"]


def test_equal_logs_get_equal_reports_and_pages(tmp_path):
    assert judge(tmp_path, CLOCK, rows(CLOCK)) == judge(tmp_path, CLOCK, rows(CLOCK))


def test_great_expectations_reports_to_no_one():
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_per_cent_keeps_the_digit_that_tells():
    assert [percent(share) for share in (0.3, 0.01, 1 / 3, 0.0104, 0.0)] == [
        "30.0 %",
        "1.0 %",
        "33.3 %",
        "1.04 %",
        "0.0 %",
    ]
