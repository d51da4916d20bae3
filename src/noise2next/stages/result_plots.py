"""The plots beside a table of results, as SVG: equal results give equal bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from noise2next.stages.tables import UNITS, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noise2next.stages.results import Results

INK, FAINT, SIMPLE, LEARNED, PUBLISHED = "#343a40", "#dee2e6", "#868e96", "#4c6ef5", "#e8590c"
APART = 0.28  # between the forms of one row, in rows


def rows(found: Results) -> bytes:
    """Each row's main metric with its interval over users, and the published figure as a tick."""
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(found.rows) * len(found.forms)), layout="constrained")
    axes = figure.add_subplot()
    unit = UNITS[found.unit]
    for at, form in enumerate(found.forms):
        name = column(found.main, form)
        offset = (at - (len(found.forms) - 1) / 2) * APART
        for place, row in enumerate(found.rows):
            low, high = row.interval[name]
            colour, y = SIMPLE if row.simple else LEARNED, place + offset
            axes.plot([low * unit, high * unit], [y, y], color=colour, linewidth=1.5)
            filled = colour if form == "masked" else "white"
            axes.plot(row.mean[name] * unit, y, "o", color=colour, markerfacecolor=filled, markersize=6)
            published = (row.references or {}).get("published", {})
            if name in published:
                axes.plot(published[name] * unit, y, "|", color=PUBLISHED, markersize=13, markeredgewidth=2.2)
    axes.set_yticks(range(len(found.rows)), [row.variant for row in found.rows])
    axes.set_ylim(len(found.rows) - 0.5, -0.5)
    axes.set_xlabel(f"{found.main} on test" + (", percent" if found.unit == "percent" else ""))
    axes.grid(axis="x", color=FAINT)
    _legend(figure, axes, found)
    return _svg(figure, found)


def curves(found: Results) -> bytes | None:
    """The main metric on validation by epoch, of the runs that their budget ended; None where there is none."""
    stopped = [(row.variant, run) for row in found.rows for run in row.runs if run.stopped == "budget"]
    if not stopped:
        return None
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, run in stopped:
        epochs, values = zip(*run.curve, strict=True)
        axes.plot(epochs, [value * UNITS[found.unit] for value in values], "o-", label=f"{name}, seed {run.seed}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{found.main} on validation")
    axes.grid(color=FAINT)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, found)


def _legend(figure: Figure, axes: Axes, found: Results) -> None:
    marks: dict[str, dict[str, Any]] = {
        "learned": {"color": LEARNED, "marker": "o"},
        "closed form": {"color": SIMPLE, "marker": "o"},
        "published": {"color": PUBLISHED, "marker": "|", "markersize": 13, "markeredgewidth": 2.2},
    }
    if len(found.forms) > 1:
        marks["seen items stay in"] = {"color": INK, "marker": "o", "markerfacecolor": "white"}
    for label, look in marks.items():
        axes.plot([], [], linestyle="none", label=label, **look)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(marks))


def _svg(figure: Figure, found: Results) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": found.table, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
