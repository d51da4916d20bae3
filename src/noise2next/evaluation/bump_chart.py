"""A list's way through the reverse chain as a picture: steps from left to right, ranks from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

COLOURS = ("#3b5bdb", "#e8590c", "#2b8a3e", "#ae3ec9", "#c2255c", "#1098ad", "#b07d00", "#7048e8", "#5c940d", "#495057")
INK, QUIET, FAINT, GROUND = "#212529", "#868e96", "#ced4da", "#f4f5f7"
LONGEST_LABEL = 40
DEPTHS = tuple(factor * 10**power for power in range(1, 8) for factor in (2, 5, 10))  # marked ranks: 20, 50, 100, ...
APART = 0.45  # of labels, in ranks, so that they can be read


def bump_chart(
    title: str, steps: Sequence[int], names: Sequence[str], ranks: Sequence[Sequence[int]], final: int, k: int
) -> Figure:
    """One line an item, ranks [n][S] over `steps` [S]: the first `final` are coloured and named, the others faint.

    Ranks up to k are evenly spaced; below that they lie closer the deeper they are, on a shaded ground. An item that
    is in the list at the first step is named there too; one that comes from further down has its rank there.
    """
    deepest = max(max(course) for course in ranks)
    bottom = _place(deepest, k) + 1.0 if deepest > k else k + 0.5
    figure = Figure(figsize=(4.6 + 0.62 * len(steps), 1.4 + 0.32 * bottom), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, len(steps) - 1)
    axes.set_ylim(bottom, 0.4)
    if deepest > k:
        _below(axes, k, deepest, len(steps) - 1)
    for at, course in reversed(list(enumerate(ranks))):
        stays = at < final
        _line(axes, [_place(rank, k) for rank in course], _colour(at) if stays else FAINT, 2.4 if stays else 1.3)
    taken: list[float] = []
    for at, (name, course) in enumerate(zip(names, ranks, strict=True)):
        first, last = _place(course[0], k), _place(course[-1], k)
        if at < final:
            _label(axes, len(steps) - 1, last, f"{_wide(course[-1], k)}  {_cut(name)}", _colour(at), "left")
        if course[0] <= k:
            _label(
                axes, 0, first, f"{_cut(name)}  {_wide(course[0], k)}", _colour(at) if at < final else QUIET, "right"
            )
        elif at < final and all(abs(first - other) >= APART for other in taken):
            _label(axes, 0, first, f"{course[0]:,}", _colour(at), "right")
            taken.append(first)
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set_yticks([])
    axes.tick_params(length=0, colors=QUIET, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step of the reverse chain, from the noisiest to the last", color=QUIET, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    return figure


def save(figure: Figure, path: str, kind: str) -> None:
    """As `svg` or `png`; equal figures give equal bytes."""
    with rc_context({"svg.hashsalt": "noise2next"}):
        figure.savefig(path, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def _place(rank: int, k: int) -> float:
    """Even up to k; from there on the slope, 1 at k, falls as 1 / depth."""
    return float(rank) if rank <= k else k + math.log1p(rank - k)


def _below(axes: Axes, k: int, deepest: int, width: int) -> None:
    axes.axhspan(k + 0.5, _place(deepest, k) + 1.0, color=GROUND, linewidth=0, zorder=0)
    axes.text(width - 0.1, _place(deepest, k) + 0.75, f"below the top {k}", color=QUIET, fontsize=8.5, ha="right")
    for depth in DEPTHS:
        if 1.5 * k < depth <= deepest:
            axes.axhline(_place(depth, k), color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
            _label(axes, width, _place(depth, k), f"{depth:,}", QUIET, "left")


def _line(axes: Axes, places: Sequence[float], colour: str, width: float) -> None:
    """Level at each step, bent between steps."""
    points, codes = [(0.0, places[0])], [Curve.MOVETO]
    for at, (before, after) in enumerate(pairwise(places)):
        points += [(at + 0.5, before), (at + 0.5, after), (at + 1.0, after)]
        codes += [Curve.CURVE4] * 3
    order = 3 if colour != FAINT else 2
    axes.add_patch(
        PathPatch(Curve(points, codes), fill=False, edgecolor=colour, linewidth=width, capstyle="round", zorder=order)
    )
    axes.scatter(range(len(places)), places, s=7 * width, color=colour, zorder=order, clip_on=False, linewidths=0)


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _label(axes: Axes, x: float, y: float, text: str, colour: str, side: str) -> None:
    shift = 8 if side == "left" else -8
    axes.annotate(
        text,
        (x, y),
        xytext=(shift, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=9,
        color=colour,
        annotation_clip=False,
        parse_math=False,
    )


def _wide(rank: int, k: int) -> str:
    """The rank as wide as k is, so that names stand below one another."""
    return str(rank).rjust(len(str(k)), "\N{FIGURE SPACE}")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
