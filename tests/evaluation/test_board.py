"""The table: its order, its choice, its paired differences, and what it must say aloud."""

from html.parser import HTMLParser

import numpy as np
import pytest
from numpy.typing import NDArray

from noise2next.config import EvaluationConfig, Noise, UniformWeights
from noise2next.errors import UserError
from noise2next.evaluation.board import Entry, compare
from noise2next.evaluation.charts import Scale, duration
from noise2next.evaluation.metrics import METRICS
from noise2next.evaluation.page import LISTS, render
from noise2next.evaluation.report import (
    CurvePoint,
    DrawsReport,
    EvaluationReport,
    LeaderboardReport,
    ShareBin,
    Training,
)
from noise2next.evaluation.significance import Interval, paired_difference

CONFIG = EvaluationConfig(cutoffs=(5, 20), bootstrap_samples=300)
USERS = 200
NOISE = np.random.default_rng(0).normal(0.3, 0.1, USERS)


def entry(
    name: str, shift: float, valid: float, simple: bool = False, jitter: float = 0.01, **changes: object
) -> Entry:
    values = (NOISE + shift + np.random.default_rng(len(name)).normal(0, jitter, USERS)).astype(np.float32)
    mean = float(values.mean(dtype=np.float64))
    test = {
        f"{metric}@{k}": Interval(mean=mean, low=mean - 0.02, high=mean + 0.02) for metric in METRICS for k in (5, 20)
    }
    report = EvaluationReport(
        dataset="shop",
        variant=name,
        model="noise2next.models.ease.EASE" if simple else "noise2next.models.diffrec.DiffRec",
        options={"l2": 5.0} if simple else {"steps": 5},
        weighting=UniformWeights(),
        split="global_time",
        history="train+valid",
        mask_seen=True,
        data_version="d" * 64,
        fingerprint=name,
        code_version="0",
        seed=1,
        parameters=12345,
        users={"valid": USERS, "test": USERS},
        left_out={"valid": 0, "test": 3},
        metrics={"valid": {key: Interval(mean=valid, low=valid, high=valid) for key in test}, "test": test},
        confidence=CONFIG.confidence,
        bootstrap_samples=CONFIG.bootstrap_samples,
        lists={part: {f"{one}@{k}": 0.5 for one in LISTS for k in (5, 20)} for part in ("valid", "test")},
        bands=[0.1] * 10,
        trained_bands=[0.1] * 10,
        seconds=1.0,
    ).model_copy(update=changes)
    curve = [] if simple else [CurvePoint(epoch=at + 1, loss=9.0 - at, metric=0.1 * at) for at in range(5)]
    training = Training(
        seconds=0.02 if simple else 75.0, epochs=len(curve), best_epoch=len(curve), device="cpu", curve=curve
    )
    return Entry(report, training, simple, values)


def board(*entries: Entry, left_out: dict[str, str] | None = None, notes: tuple[str, ...] = ()) -> LeaderboardReport:
    return compare(entries, "recall@20", CONFIG, 1, 50, left_out or {}, notes)


def test_rows_are_ordered_by_test_and_the_choice_is_validations() -> None:
    found = board(entry("low", -0.1, 0.9), entry("high", 0.1, 0.2), entry("middle", 0.0, 0.3))
    assert [row.variant for row in found.rows] == ["high", "middle", "low"]
    assert found.chosen == "low"
    assert any(note.startswith("low is chosen because it is best on validation") for note in found.notes)


def test_differences_are_paired_by_user() -> None:
    one, two = entry("high", 0.1, 0.5), entry("low", 0.05, 0.4)
    found = board(one, two)
    assert found.rows[0].versus_best is None
    expected = paired_difference(two.values, one.values, CONFIG.bootstrap_samples, CONFIG.confidence, seed=1)
    difference = found.rows[1].versus_best
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert difference.high - difference.low < 0.005  # the spread between users, 0.1, cancels out


def test_a_simple_baseline_that_wins_is_named() -> None:
    found = board(
        entry("ease", 0.1, 0.5, simple=True), entry("diffrec", 0.0, 0.4), entry("most_pop", -0.2, 0.1, simple=True)
    )
    said = [note for note in found.notes if "simple baseline" in note]
    assert len(said) == 1
    assert said[0].startswith("ease, a simple baseline, is ahead on test recall@20 of diffrec by 0.1")
    assert "most_pop" not in said[0]


def test_a_lead_that_may_be_chance_says_so() -> None:
    found = board(entry("ease", 0.0005, 0.5, simple=True, jitter=0.05), entry("diffrec", 0.0, 0.4, jitter=0.05))
    said = [note for note in found.notes if "simple baseline" in note]
    assert len(said) == 1
    assert "may be chance" in said[0]
    assert board(entry("ease", 0, 0.4, simple=True), entry("diffrec", 0.1, 0.5)).notes == [
        "intervals are over users, for one seed a model: another seed would move the trained models too",
        "3 users of the test part have no history to go by and are not judged",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "other"},
        {"split": "leave_one_out"},
        {"history": "train"},
        {"mask_seen": False},
        {"data_version": "e"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_cannot_be_compared_is_never_mixed(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="entries differ"):
        board(entry("one", 0, 0.1), entry("two", 0, 0.1, **changes))


def test_a_row_with_noise_says_so() -> None:
    found = board(entry("plain", 0.1, 0.9), entry("noised", 0.0, 0.5, noise=Noise(share=0.3)))
    (said,) = (note for note in found.notes if "false positives" in note)
    assert said.startswith("some rows read false positives at random")
    assert said.endswith("noised 30%")
    assert said.replace("'", "&#39;") in render(found)
    assert "noise: 0.3" in render(found)


def test_a_main_metric_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UserError, match="recall@7"):
        compare([entry("one", 0, 0.1)], "recall@7", CONFIG, 1, 50, {}, [])


class _Page(HTMLParser):
    """Counts what opens and closes, and collects addresses that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "line", "rect", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect", "circle", "polyline"):
            return
        assert self.open.pop() == tag


@pytest.fixture
def report() -> LeaderboardReport:
    left_out = {"old": "it was evaluated on other data than is prepared now"}
    return board(
        entry("ease", 0.1, 0.5, simple=True), entry("diffrec", 0.0, 0.4), left_out=left_out, notes=("a <b>note</b>",)
    )


def test_the_page_is_whole_and_needs_nothing_else(report: LeaderboardReport) -> None:
    text = render(report)
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert "http://" not in text
    assert "https://" not in text


def test_the_page_tells_every_row_every_note_and_who_is_left_out(report: LeaderboardReport) -> None:
    text = render(report)
    for wanted in ("ease", "diffrec", "chosen", "old</b> is not in the table", "learning curves", "ahead on test"):
        assert wanted in text
    assert "<b>note</b>" not in text
    assert "&lt;b&gt;note" in text


def test_a_model_that_draws_has_its_draws_on_the_page(report: LeaderboardReport) -> None:
    drawn = DrawsReport(
        draws=10,
        users=77,
        cutoff=20,
        bins=[ShareBin(above=0.9, up_to=1, pairs=5, mean_share=1, hit_rate=0.2)],
        auc=None,
        calibration_error=0.8,
        by_share={"recall@20": 0.2},
        one_draw={"recall@20": 0.1},
        gain={"recall@20": Interval(mean=0.1, low=0.05, high=0.15)},
        diversity=0.25,
        distinct=30.5,
        coverage={"one draw": 0.1, "by share": 0.12, "all draws": 0.2},
    )
    text = render(board(entry("ease", 0.1, 0.5, simple=True), entry("diffrec", 0.0, 0.4, draws=drawn)))
    page = _Page()
    page.feed(text)
    assert page.open == []
    for wanted in ("What draws are good for", "+0.1000", "<td>77</td>", "25 %", "20.0 %"):
        assert wanted in text
    assert "What draws are good for" not in render(report)


def test_equal_reports_give_equal_pages(report: LeaderboardReport) -> None:
    assert render(report) == render(report.model_copy())


def test_one_row_and_no_curves_still_make_a_page() -> None:
    text = render(board(entry("ease", 0.0, 0.3, simple=True)))
    assert "learning curves" not in text
    assert "quality against cost" in text


def test_a_model_that_finds_nothing_still_makes_a_page() -> None:
    nothing = entry("diffrec", 0, 0)
    zero = Interval(mean=0, low=0, high=0)
    flat = {part: dict.fromkeys(names, zero) for part, names in nothing.evaluation.metrics.items()}
    lists = {part: dict.fromkeys(names, 0.0) for part, names in nothing.evaluation.lists.items()}
    evaluation = nothing.evaluation.model_copy(update={"metrics": flat, "lists": lists})
    blank: NDArray[np.float32] = np.zeros(USERS, dtype=np.float32)
    training = nothing.training.model_copy(update={"seconds": 0.0})
    assert "diffrec" in render(board(Entry(evaluation, training, False, blank)))


def test_scales_put_their_ends_at_their_ends() -> None:
    even, log = Scale(2, 4, 100, 0), Scale(0.01, 100, 0, 40, log=True)
    assert (even(2), even(4), even(3)) == (100, 0, 50)
    assert (log(0.01), log(100), log(1)) == (0, 40, 20)
    assert [tick.label for tick in even.ticks()] == ["2.0", "2.5", "3.0", "3.5", "4.0"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.02, "20 ms"), (1.24, "1.2 s"), (59, "59 s"), (90, "1.5 min"), (7500, "2.1 h")]
)
def test_durations_read_at_a_glance(seconds: float, said: str) -> None:
    assert duration(seconds) == said
