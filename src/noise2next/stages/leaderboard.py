"""One table of what beat what, as a document and as a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pyarrow.compute as pc
import pyarrow.parquet as pq

from noise2next.config import Dataset, Params
from noise2next.errors import UserError
from noise2next.evaluation.board import Entry, compare
from noise2next.evaluation.page import render
from noise2next.evaluation.report import CurvePoint, EvaluationReport, LeaderboardReport, Training
from noise2next.models.artifact import read_card
from noise2next.models.base import ClosedForm, model_class
from noise2next.stages.evaluate import current_data_version
from noise2next.stages.train import TrainReport
from noise2next.workspace import MANIFEST, Workspace, read_json, write_json, writing

log = logging.getLogger(__name__)


def run(params: Params, space: Workspace, variants: Sequence[str] | None = None) -> LeaderboardReport:
    """Compare every evaluated variant, or those named, and write leaderboard.json and leaderboard.html.

    What was evaluated on other data, another split or history, or before its model was trained again, is left out and
    the report says why. Raises UserError when nothing is left, or a named variant is unknown or left out.
    """
    dataset = params.dataset(space.dataset)
    for name in variants or ():
        params.variant(name, space.dataset)
    entries, left_out = _collect(params, space, dataset, _names(params, space) if variants is None else variants)
    if variants is not None and left_out:
        name, reason = next(iter(left_out.items()))
        remedy = f"`noise2next evaluate --dataset {space.dataset} --variant {name}`"
        raise UserError(f"{space.evaluation(name)}: {reason}; {remedy} mends it")
    if not entries:
        raise UserError(f"{space.artifacts / 'evaluate'}: no evaluation to compare; `noise2next evaluate` makes one")
    prepared = read_json(space.prepared / "report.json")
    notes = [*prepared["notes"], *_changed(params, space, entries)]
    items = prepared["items_in_train"]
    report = compare(entries, params.trainer.metric, params.evaluation, params.seed, items, left_out, notes)
    with writing(space.leaderboard) as folder:
        write_json(folder / "leaderboard.json", report.model_dump(mode="json"))
        (folder / "leaderboard.html").write_text(render(report), encoding="utf-8")
    for at, row in enumerate(report.rows, start=1):
        log.info("%d. %s %s %.4f", at, row.variant, report.main_metric, row.metrics[report.main_metric].mean)
    return report


def _names(params: Params, space: Workspace) -> list[str]:
    """Every variant that has been trained or evaluated."""
    places = {name: (space.model(name), space.evaluation(name)) for name in params.variants}
    return [name for name, found in places.items() if any((place / MANIFEST).is_file() for place in found)]


def _collect(
    params: Params, space: Workspace, dataset: Dataset, names: Sequence[str]
) -> tuple[list[Entry], dict[str, str]]:
    """The comparable evaluations among `names`, and why the others are not."""
    metric, data_version = params.trainer.metric, current_data_version(space)
    entries, left_out = [], {}
    for name in names:
        place = space.evaluation(name)
        if not (place / MANIFEST).is_file():
            left_out[name] = "it has not been evaluated"
            continue
        evaluation = EvaluationReport.model_validate(read_json(place / "report.json"))
        reason = stale(evaluation, space, dataset, data_version, metric)
        asked = (params.evaluation.confidence, params.evaluation.bootstrap_samples)
        if reason is None and (evaluation.confidence, evaluation.bootstrap_samples) != asked:
            reason = "it was evaluated with another confidence or number of bootstrap samples than params.yaml has now"
        if reason is not None:
            left_out[name] = reason
            continue
        table = pq.read_table(place / "per_user.parquet", columns=["part", metric])
        values = table.filter(pc.field("part") == "test").column(metric).to_numpy()
        simple = issubclass(model_class(evaluation.model), ClosedForm)
        entries.append(Entry(evaluation, _training(space, name, metric), simple, values))
    return entries, left_out


def stale(
    evaluation: EvaluationReport, space: Workspace, dataset: Dataset, data_version: str, metric: str
) -> str | None:
    """Why an evaluation may not stand beside the others, or None."""
    split = dataset.split
    model = space.model(evaluation.variant)
    if evaluation.data_version != data_version:
        return "it was evaluated on other data than is prepared now"
    if (evaluation.split, evaluation.history, evaluation.mask_seen) != (split.kind, split.history, split.mask_seen):
        return "it was evaluated on another split, history or masking than params.yaml has now"
    if not (model / MANIFEST).is_file() or read_card(model).fingerprint != evaluation.fingerprint:
        return "its model has changed since it was evaluated"
    if metric not in evaluation.metrics["test"]:
        return f"it was evaluated without {metric}; evaluation.cutoffs must have that place"
    return None


def _training(space: Workspace, variant: str, metric: str) -> Training:
    report = TrainReport.model_validate(read_json(space.model(variant) / "report.json"))
    return Training(
        seconds=report.seconds,
        epochs=report.epochs,
        best_epoch=report.best_epoch,
        device=report.device,
        curve=[
            CurvePoint(epoch=one.epoch, loss=sum(one.loss.values()), metric=one.metrics.get(metric))
            for one in report.curve
        ],
    )


def _changed(params: Params, space: Workspace, entries: Sequence[Entry]) -> list[str]:
    """A sentence for each row whose model was made with other choices than params.yaml has now."""
    said = []
    for entry in entries:
        trained = entry.evaluation
        asked = params.variant(trained.variant, space.dataset)
        now = (asked.model, dict(asked.options), asked.weighting, asked.noise, params.seed)
        if (trained.model, trained.options, trained.weighting, trained.noise, trained.seed) != now:
            said.append(f"{trained.variant} was trained with other options or another seed than params.yaml has now")
    return said
