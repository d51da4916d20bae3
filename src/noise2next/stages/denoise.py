"""Draw how a diffusion model's list for a user comes about."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq

from noise2next.config import Frozen, Params, Settings
from noise2next.errors import UserError
from noise2next.evaluation.bump_chart import bump_chart, save
from noise2next.models.base import HasDenoising, model_class
from noise2next.stages.recommend import Opened, Shown, open_model
from noise2next.workspace import Workspace, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

KINDS = ("svg", "png")


class Course(Frozen):
    """An item that makes the list at one of the shown steps, and its rank among all unseen items at each of them."""

    item: str
    name: str
    ranks: list[int]


class DenoisingReport(Shown):
    """The final list, and how it came about: `courses` has its items first, then those that left it."""

    k: int
    steps: list[int]  # the noisiest first
    courses: list[Course]
    path: str | None


def run(
    params: Params, space: Workspace, settings: Settings, user: str, k: int, out: Path, variant: str | None = None
) -> DenoisingReport:
    """Draw the list of `user`, by raw id, into the file `out`, which appears whole or not at all.

    Raises UserError for a file of another kind, for a user who is not known, and for a model without steps.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS or out.is_dir():
        raise UserError(f"{out}: no picture's name; end it in .svg or .png")
    report = _report(open_model(params, space, settings, variant), user, k, str(out))
    if len(report.steps) < 2:
        raise UserError(f"{report.variant}: its list comes about in a single step, so there is no way to draw")
    with replacing(out) as fresh:
        save(picture(report), str(fresh), kind)
    log.info("%s: %d steps of the list of %s", out, len(report.steps), user)
    return report


def example(params: Params, space: Workspace, settings: Settings, variant: str, k: int = 10) -> DenoisingReport | None:
    """The list of the first user, in the order of the vocabulary, whom `evaluate` judged on test.

    None where the variant's lists do not come about in several steps.
    """
    if not issubclass(model_class(params.variant(variant, space.dataset).model), HasDenoising):
        return None
    table = pq.read_table(space.evaluation(variant) / "per_user.parquet", columns=["part", "user"])
    user = table.filter(pc.field("part") == "test").column("user")[0].as_py()
    report = _report(open_model(params, space, settings, variant), user, k, None)
    return report if len(report.steps) > 1 else None


def picture(report: DenoisingReport) -> Figure:
    """The report as a figure."""
    title = f"How the list of user {report.user} comes about ({report.variant}, {report.dataset})"
    names = [one.name for one in report.courses]
    return bump_chart(title, report.steps, names, [one.ranks for one in report.courses], len(report.items), report.k)


def _report(opened: Opened, user: str, k: int, path: str | None) -> DenoisingReport:
    questions = opened.ask_user(user)
    found = opened.package.denoise(questions, k, opened.exclude_seen)
    ids = [opened.package.artifact.items.ids[item] for item in found.items]
    return DenoisingReport(
        items=ids[: found.final],
        names=opened.said(ids[: found.final]),
        user=user,
        known=questions.lengths[0],
        unknown=[],
        k=k,
        steps=found.steps,
        courses=[
            Course(item=item, name=opened.names.get(item, item), ranks=ranks)
            for item, ranks in zip(ids, found.ranks, strict=True)
        ],
        path=path,
        **opened.source.model_dump(),
    )
