"""A decision of the gate as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from noise2next.evaluation.charts import Scale, Tick
from noise2next.registry.promotion import Check, Decision

WIDTH = 600
ALL = 100  # percent of a mean, the most that can be lost
LEFT, RIGHT, TOP, BOTTOM = 22, 22, 14, 42
HISTOGRAM_HEIGHT = 300
ROW_HEIGHT = 46


@dataclass(frozen=True)
class Bar:
    """One bin."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Distribution:
    """The gain over the champion, resampled: bars, and where its bound and the limit are."""

    bars: list[Bar]
    ticks: list[Tick]
    bound: float
    limit: float
    height: int = HISTOGRAM_HEIGHT


@dataclass(frozen=True)
class Row:
    """One gain, relative to the other's mean: its interval, its middle, and the limit that the left end must reach."""

    name: str
    passed: bool
    y: float
    low: float
    high: float
    mean: float
    limit: float
    title: str


@dataclass(frozen=True)
class Intervals:
    """All gains on one scale."""

    rows: list[Row]
    ticks: list[Tick]
    zero: float
    height: int


def render(decision: Decision) -> str:
    """The page as HTML. Every text is escaped; equal decisions give equal bytes."""
    surroundings = Environment(
        loader=ChoiceLoader(
            [PackageLoader("noise2next.registry", ""), PackageLoader("noise2next.evaluation", "")]  # the style
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return surroundings.get_template("decision.html").render(
        decision=decision,
        distribution=_distribution(decision),
        intervals=_intervals(decision.over_champion or decision.checks),
        width=WIDTH,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        below=BOTTOM,
    )


def _distribution(decision: Decision) -> Distribution | None:
    """None where nothing was compared."""
    main = decision.main
    if decision.gains is None or main is None:
        return None
    edges, counts = decision.gains.edges, decision.gains.counts
    bound = max(main.observed, 2 * edges[0] - edges[-1])  # where few lists have changed, it is far away
    x = _wide([*edges, bound, main.limit, 0.0])
    y = Scale(0, max(counts), HISTOGRAM_HEIGHT - BOTTOM, TOP)
    bars = [
        Bar(x(low), y(count), round(x(high) - x(low), 2), round(HISTOGRAM_HEIGHT - BOTTOM - y(count), 2))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return Distribution(bars, x.ticks(), x(bound), x(main.limit))


def _intervals(checks: Sequence[Check]) -> Intervals | None:
    """None where no check is of a gain over a mean above zero."""
    shown = [(check, check.gain) for check in checks if check.gain is not None and check.gain.theirs > 0]
    if not shown:
        return None
    shares = [
        [100 * value / gain.theirs for value in (gain.low, gain.mine - gain.theirs, gain.high, check.limit)]
        for check, gain in shown
    ]
    # Where few lists have changed, a bound is as far away as a mean can be: it is drawn to the end of the scale.
    lows = [low for low, *_ in shares if low > -ALL]
    highs = [high for (_, gain), (_, _, high, _) in zip(shown, shares, strict=True) if gain.high < 1 - gain.theirs]
    x = _wide([0.0, *lows, *highs, *(value for _, mean, _, limit in shares for value in (mean, limit))])
    rows = [
        Row(
            name=check.name,
            passed=check.passed,
            y=TOP + ROW_HEIGHT * place + 30,
            low=x(max(low, x.low)),
            mean=x(mean),
            high=x(min(high, x.high)),
            limit=x(limit),
            title=f"{mean:+.1f} % ({low:+.1f} to {high:+.1f}), limit {limit:+.1f}, {gain.users:,} users",
        )
        for place, ((check, gain), (low, mean, high, limit)) in enumerate(zip(shown, shares, strict=True))
    ]
    return Intervals(rows, x.ticks(), x(0.0), TOP + ROW_HEIGHT * len(rows) + BOTTOM)


def _wide(values: Sequence[float]) -> Scale:
    """A scale over the width with a little room around `values`."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low or 1.0)
    return Scale(low - room, high + room, LEFT, WIDTH - RIGHT)
