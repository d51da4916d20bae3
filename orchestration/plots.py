"""Small pictures for an asset's page: drawn without a display, embedded in markdown."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noise2next.config import Weighting
    from noise2next.data.interactions import Split
    from noise2next.evaluation.drift import Finding
    from noise2next.evaluation.outcome import OutcomeReport
    from noise2next.evaluation.report import DrawsReport
    from noise2next.evaluation.significance import Interval
    from noise2next.registry.promotion import Decision
    from noise2next.stages.denoise import DenoisingReport
    from noise2next.training.checkpoint import EpochRecord

PARTS = {"train": "#4c6ef5", "valid": "#f59f00", "test": "#e8590c"}
INK, FAINT = "#343a40", "#dee2e6"
DAY = 86_400_000_000  # microseconds


def popularity(split: "Split") -> dg.MarkdownMetadataValue:
    """How train's interactions fall on its items, most popular first, both axes logarithmic."""
    counts = np.sort(np.bincount(split.train.items, minlength=split.n_items))[::-1]
    figure, axes = _canvas("Popularity of items in train", "item, by popularity", "interactions")
    axes.loglog(np.arange(1, len(counts) + 1), np.maximum(counts, 1), color=PARTS["train"], linewidth=2)
    head = counts[: max(1, len(counts) // 5)].sum() / max(1, counts.sum())
    axes.text(0.03, 0.06, f"a fifth of the items has {head:.0%} of the rows", transform=axes.transAxes, color=INK)
    return _embedded(figure)


def activity(split: "Split") -> dg.MarkdownMetadataValue:
    """Interactions over time where there is a clock, else histories by length; one colour a part."""
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    times = {name: part.times for name, part in parts.items() if part.times is not None and len(part.times)}
    if split.has_clock and len(times) == len(parts):
        moments = {name: values.astype("datetime64[us]").astype(object) for name, values in times.items()}
        first, last = min(one.min() for one in times.values()), max(one.max() for one in times.values())
        edges = list(np.linspace(first, last, 61).astype("datetime64[us]").astype(object))
        figure, axes = _canvas("Activity", "", "interactions")
        axes.hist(list(moments.values()), bins=edges, stacked=True, color=list(PARTS.values()), label=list(PARTS))
        figure.autofmt_xdate(rotation=0, ha="center")
    else:
        lengths = split.train.lengths[split.train.lengths > 0]
        figure, axes = _canvas("Length of histories in train", "interactions of a user", "users")
        axes.hist(np.log10(lengths), bins=40, color=PARTS["train"], label="train")
        ticks = np.arange(0, np.ceil(np.log10(lengths.max())) + 1)
        axes.set_xticks(ticks, [f"{10**tick:,.0f}" for tick in ticks])
    axes.legend(frameon=False)
    return _embedded(figure)


def time_weights(split: "Split", weightings: "Mapping[str, Weighting]") -> dg.MarkdownMetadataValue | None:
    """Mean weight by age (clock) or by place in the history, a line for each variant that weighs; None: no one does."""
    from noise2next.data.weighting import refusal, weigh

    shown: dict[Weighting, list[str]] = {}
    for name, one in weightings.items():
        if one.kind != "uniform" and refusal(one, split.has_clock, split.train.times is not None) is None:
            shown.setdefault(one, []).append(name)
    if not shown:
        return None
    ages, label = _ages(split)
    edges = np.quantile(ages, np.linspace(0, 1, 31))
    bins = np.clip(np.searchsorted(edges, ages, side="right") - 1, 0, 29)
    filled = np.bincount(bins, minlength=30) > 0
    middle = np.bincount(bins, ages, 30)[filled] / np.bincount(bins, minlength=30)[filled]
    figure, axes = _canvas("Time weights of train's interactions", label, "mean weight")
    for weighting, names in shown.items():
        weights = weigh(split.train, weighting, split.has_clock).weights
        mean = np.bincount(bins, weights, 30)[filled] / np.bincount(bins, minlength=30)[filled]
        axes.plot(middle, mean, linewidth=2, label=f"{weighting.kind}: {', '.join(names)}")
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _embedded(figure)


def learning_curve(curve: "Sequence[EpochRecord]", metric: str, best: int) -> dg.MarkdownMetadataValue:
    """Loss terms left, the validation metric right, over the epochs; a dotted line at the epoch that was kept."""
    figure, (left, right) = _panels(2)
    _dress(left, "training loss", "epoch", "")
    for term in curve[0].loss:
        left.plot([one.epoch for one in curve], [one.loss[term] for one in curve], linewidth=2, label=term)
    judged = [one for one in curve if metric in one.metrics]
    _dress(right, f"{metric} on validation", "epoch", "")
    right.plot(
        [one.epoch for one in judged], [one.metrics[metric] for one in judged], color=PARTS["valid"], linewidth=2
    )
    right.axvline(best, color=INK, linewidth=1, linestyle=":")
    if len(curve[0].loss) > 1:
        left.legend(frameon=False)
    return _embedded(figure)


def clusters(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> dg.MarkdownMetadataValue:
    """Items in the plane of their vectors' two main directions, coloured by cluster; vectors [I, D], labels [I]."""
    centred = vectors - vectors.mean(axis=0)
    _, strength, directions = np.linalg.svd(centred, full_matrices=False)
    plane, share = centred @ directions[:2].T, strength[:2] ** 2 / max(1e-30, float((strength**2).sum()))
    x, y = (f"direction {one + 1}, {share[one]:.0%} of variance" for one in (0, 1))
    figure, axes = _canvas("Items by cluster", x, y, height=3.6)
    for label in np.unique(labels):
        own = plane[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=6, alpha=0.6, linewidths=0, label=f"cluster {label}: {len(own):,} items")
    axes.legend(frameon=False)
    return _embedded(figure)


def intervals(rows: "Mapping[str, Interval]", title: str) -> dg.MarkdownMetadataValue:
    """A point and its interval for each name, the first on top."""
    figure, axes = _canvas(title, "", "", height=0.9 + 0.3 * len(rows))
    place = np.arange(len(rows))
    axes.hlines(
        place, [one.low for one in rows.values()], [one.high for one in rows.values()], color=FAINT, linewidth=6
    )
    axes.scatter([one.mean for one in rows.values()], place, color=PARTS["train"], zorder=3)
    axes.set_yticks(place, list(rows))
    axes.invert_yaxis()
    return _embedded(figure)


def resampled_gain(decision: "Decision") -> dg.MarkdownMetadataValue:
    """The main metric's gain over the champion, users resampled: its lower bound, and dotted the limit."""
    main = decision.main
    assert decision.gains is not None
    assert main is not None
    edges, counts = decision.gains.edges, decision.gains.counts
    figure, axes = _canvas(
        f"{decision.policy.bootstrap.level:.0%} lower bound {main.observed:+.4f}, limit {main.limit:+.4f}",
        f"gain in {decision.policy.metric}",
        "resamplings",
    )
    axes.stairs(counts, edges, fill=True, color=PARTS["train"], alpha=0.45)
    axes.axvline(main.observed, color=PARTS["train"], linewidth=2)
    axes.axvline(main.limit, color=INK, linewidth=1.2, linestyle=":")
    return _embedded(figure)


def gains(decision: "Decision") -> dg.MarkdownMetadataValue:
    """Each gain's interval relative to the champion's mean, or else the baseline's; a stroke at each limit."""
    compared = decision.over_champion or decision.checks
    shown = [(one, one.gain) for one in compared if one.gain is not None and one.gain.theirs > 0]
    figure, axes = _canvas("Comparisons, user by user", "gain, % of the other's mean", "", 1.2 + 0.34 * len(shown))
    for place, (check, gain) in enumerate(shown):
        low, high, mean, limit = (
            100 * value / gain.theirs for value in (gain.low, gain.high, gain.mine - gain.theirs, check.limit)
        )
        colour = PARTS["train"] if check.passed else PARTS["test"]
        axes.hlines(place, low, high, color=colour, linewidth=4, alpha=0.5)
        axes.scatter(mean, place, color=colour, zorder=3)
        axes.scatter(limit, place, color=INK, marker="|", s=140)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(shown)), [check.name for check, _ in shown])
    axes.invert_yaxis()
    return _embedded(figure)


def reliability(draws: "DrawsReport") -> dg.MarkdownMetadataValue:
    """How often an item was taken, by the share of the draws that list it; a point's size is its number of pairs."""
    figure, axes = _canvas("Shares of draws against hits on test", "share of the draws that list the item", "hit rate")
    shares, rates = [one.mean_share for one in draws.bins], [one.hit_rate for one in draws.bins]
    most = max(one.pairs for one in draws.bins)
    axes.plot(shares, rates, color=PARTS["test"], linewidth=1.5)
    axes.scatter(shares, rates, [10 + 110 * one.pairs / most for one in draws.bins], color=PARTS["test"], zorder=3)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, max(1e-3, 1.25 * max(rates)))
    return _embedded(figure)


def drift(findings: "Sequence[Finding]") -> dg.MarkdownMetadataValue | None:
    """Each question's values over its limit of today: earlier stretches faint, today's filled; None: nothing judged."""
    judged = [
        (one.name, one.value / one.limit, [value / one.limit for value in one.past], one.alarmed)
        for one in findings
        if one.about == "input" and one.value is not None and one.limit
    ]
    if not judged:
        return None
    figure, axes = _canvas("Input, as a share of today's limit", "", "", height=0.9 + 0.3 * len(judged))
    for place, (_, today, past, alarmed) in enumerate(judged):
        axes.scatter(past, [place] * len(past), color=FAINT)
        axes.scatter(today, place, color=PARTS["test"] if alarmed else PARTS["train"], zorder=3)
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(judged)), [name for name, *_ in judged])
    axes.invert_yaxis()
    return _embedded(figure)


def outcomes(reports: "Sequence[OutcomeReport]") -> dg.MarkdownMetadataValue | None:
    """What came of each kept table, beside popularity on the same users; None where nothing has come yet."""
    if not reports:
        return None
    rows = {}
    for one in reports:
        rows[f"version {one.model_version} ({one.variant})"] = one.recall
        rows[f"popularity, same users as {one.model_version}"] = one.popularity
    return intervals(rows, f"recall@{reports[-1].k} of later events")


def denoising(report: "DenoisingReport") -> dg.MarkdownMetadataValue:
    """One user's list through the reverse chain."""
    from noise2next.stages.denoise import picture

    return _embedded(picture(report))


def _ages(split: "Split") -> tuple[NDArray[np.float64], str]:
    train = split.train
    if split.has_clock and train.times is not None:
        return (train.times.max() - train.times) / DAY, "days before the newest interaction"
    later = np.repeat(train.indptr[1:], train.lengths) - 1 - np.arange(len(train))
    return later.astype(np.float64), "interactions of the user that follow"


def _canvas(title: str, x: str, y: str, height: float = 2.6) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, x, y)
    return figure, axes


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * count, 2.6), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def _dress(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _embedded(figure: "Figure") -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")
