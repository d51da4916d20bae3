"""A leaderboard as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from noise2next.config import METRICS
from noise2next.evaluation import charts
from noise2next.evaluation.report import LeaderboardReport

LISTS = ("coverage", "gini", "novelty", "popularity")


def render(report: LeaderboardReport) -> str:
    """The page as HTML. Every text is escaped; equal reports give equal bytes."""
    surroundings = Environment(
        loader=PackageLoader("noise2next.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters["duration"] = charts.duration
    surroundings.filters["short"] = _short
    surroundings.filters["signed"] = _signed
    ends = [
        end
        for row in report.rows
        for end in (row.metrics[report.main_metric].low, row.metrics[report.main_metric].high)
    ]
    cutoffs = sorted({int(name.partition("@")[2]) for name in report.rows[0].metrics})
    return surroundings.get_template("leaderboard.html").render(
        report=report,
        metrics=METRICS,
        lists=LISTS,
        cutoffs=cutoffs,
        main_cutoff=int(report.main_metric.partition("@")[2]),
        whisker=charts.padded(ends, 0, 96),
        curves=charts.learning_curves(report),
        cost=charts.quality_and_cost(report),
        coverage=charts.quality_and_coverage(report),
    )


def _short(count: float) -> str:
    """2,810 or 3.5 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{count:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
