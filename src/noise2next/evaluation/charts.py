"""Where things go in a plot: scales, ticks and places in SVG units. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from noise2next.evaluation.report import LeaderboardReport

WIDTH, HEIGHT = 600, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 14, 42
TIMES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36000.0)  # seconds a person reads at a glance
LABEL_HEIGHT, LETTER = 14, 7.4  # of a label's text, in SVG units


@dataclass(frozen=True)
class Tick:
    """A grid line and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Values from low to high on places from start to stop, evenly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(max(x, 1e-12)) if self.log else x for x in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 2)

    def ticks(self) -> list[Tick]:
        """Grid lines at round values, all labels with the same decimals."""
        step = _round_step((self.high - self.low) / 5)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self(place * step), f"{place * step:.{decimals}f}") for place in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """A curve of one row: `points` as SVG writes them; dashed for a level without a curve."""

    series: int
    points: str
    dashed: bool
    title: str


@dataclass
class Dot:
    """A marked value of one row, with whiskers from low to high where they are known, and a label."""

    series: int
    x: float
    y: float
    title: str
    simple: bool = False
    low: float | None = None
    high: float | None = None
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """One plot."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def learning_curves(report: LeaderboardReport) -> Chart | None:
    """Validation by epoch for models that learn in epochs, levels for the others; None when nothing has epochs."""
    metric = report.main_metric
    curves = {
        at: [(point.epoch, point.metric) for point in row.curve if point.metric is not None]
        for at, row in enumerate(report.rows)
    }
    learned = {at: curve for at, curve in curves.items() if curve}
    if not learned:
        return None
    levels = {at: row.valid[metric].mean for at, row in enumerate(report.rows) if at not in learned}
    settled = [value for curve in learned.values() for _, value in curve[len(curve) // 4 :]]
    x = Scale(0, max(epoch for curve in learned.values() for epoch, _ in curve), LEFT, WIDTH - RIGHT)
    y = padded([*settled, *levels.values()], HEIGHT - BOTTOM, TOP)
    lines, dots = [], []
    for at, value in levels.items():
        title = f"{report.rows[at].variant}: {value:.4f}"
        lines.append(Line(at, f"{LEFT},{y(value)} {WIDTH - RIGHT},{y(value)}", True, title))
    for at, curve in learned.items():
        row = report.rows[at]
        points = " ".join(f"{x(epoch)},{y(value)}" for epoch, value in curve)
        lines.append(Line(at, points, False, row.variant))
        best = row.valid[metric].mean
        dots.append(Dot(at, x(row.best_epoch), y(best), f"{row.variant}: {best:.4f} at epoch {row.best_epoch}"))
    return Chart(x.ticks(), y.ticks(), "epoch", f"{metric} on validation", lines, dots)


def quality_and_cost(report: LeaderboardReport) -> Chart:
    """The main metric on test, with its interval, against the seconds of training."""
    seconds = [max(row.seconds_training, TIMES[0]) for row in report.rows]
    x = Scale(min(seconds) / 1.5, max(seconds) * 1.5, LEFT, WIDTH - RIGHT, log=True)
    x_ticks = [Tick(x(time), duration(time)) for time in TIMES if x.low <= time <= x.high]
    return _quality(report, x, seconds, [duration(one) for one in seconds], x_ticks, "training time")


def quality_and_coverage(report: LeaderboardReport) -> Chart:
    """The main metric on test, with its interval, against the share of the catalogue that the lists show."""
    name = report.main_metric.replace(report.main_metric.partition("@")[0], "coverage")
    shares = [100 * row.lists[name] for row in report.rows]
    x = Scale(0, min(100.0, max(1.0, *shares) * 1.1), LEFT, WIDTH - RIGHT)
    return _quality(report, x, shares, [f"{share:.1f} %" for share in shares], x.ticks(), f"{name}, % of the catalogue")


def _quality(
    report: LeaderboardReport, x: Scale, values: Sequence[float], said: Sequence[str], ticks: list[Tick], label: str
) -> Chart:
    metric = report.main_metric
    ends = [end for row in report.rows for end in (row.metrics[metric].low, row.metrics[metric].high)]
    y = padded(ends, HEIGHT - BOTTOM, TOP)
    dots = []
    for at, (row, value, text) in enumerate(zip(report.rows, values, said, strict=True)):
        found = row.metrics[metric]
        title = f"{row.variant}: {found.mean:.4f} ({found.low:.4f} to {found.high:.4f}), {text}"
        reach = y(found.low), y(found.high)
        dots.append(Dot(at, x(value), y(found.mean), title, row.simple, *reach, label=row.variant))
    _place_labels(dots)
    return Chart(ticks, y.ticks(), label, f"{metric} on test", dots=dots)


def duration(seconds: float) -> str:
    """Short and readable: 20 ms, 1.2 s, 3.5 min, 2.1 h."""
    if seconds < 0.995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{two_digits(seconds)} s"
    if seconds < 3570:
        return f"{two_digits(seconds / 60)} min"
    return f"{two_digits(seconds / 3600)} h"


def two_digits(amount: float) -> str:
    """Two digits, or a whole number where that has more: 0.41, 3.5, 128."""
    return f"{amount:.2g}" if amount < 9.95 else f"{amount:.0f}"


def padded(values: Sequence[float], start: float, stop: float) -> Scale:
    """A scale with a little room around `values`, however close together they are."""
    low, high = min(values), max(values)
    room = (high - low or high or 1.0) * 0.08
    return Scale(max(0.0, low - room), high + room, start, stop)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _place_labels(dots: list[Dot]) -> None:
    """Beside their dots, never on one another, and where it can be helped not on a dot."""
    placed = [(dot.x - 8, dot.x + 8, dot.y + 4) for dot in dots]  # left, right, y of what is there
    for dot in sorted(dots, key=lambda one: one.y):
        width = LETTER * len(dot.label)
        left = dot.x + 10 + width > WIDTH - RIGHT
        dot.anchor, dot.label_x = ("end", dot.x - 10) if left else ("start", dot.x + 10)
        start, stop = (dot.label_x - width, dot.label_x) if left else (dot.label_x, dot.label_x + width)
        dot.label_y = dot.y + 4
        for other_start, other_stop, other_y in sorted(placed, key=lambda one: one[2]):
            if start < other_stop and other_start < stop and abs(dot.label_y - other_y) < LABEL_HEIGHT:
                dot.label_y = round(other_y + LABEL_HEIGHT, 2)
        placed.append((start, stop, dot.label_y))
