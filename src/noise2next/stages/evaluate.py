"""Judge a trained variant on validation and test, user by user."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noise2next.config import EvaluationConfig, Params, Settings
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.evaluation import lists
from noise2next.evaluation.draws import judge_draws
from noise2next.evaluation.evaluator import Evaluator, Judgement, Part
from noise2next.evaluation.report import EvaluationReport
from noise2next.evaluation.significance import Interval, intervals, resampled_means
from noise2next.models.artifact import Artifact, ModelCard
from noise2next.models.base import ClosedForm, Recommender
from noise2next.registry.tracking import resume_run
from noise2next.stages.tables import column
from noise2next.training.device import choose_device, keep_freed_memory
from noise2next.workspace import Workspace, read_json, require, write_json, writing

log = logging.getLogger(__name__)

PARTS: tuple[Part, ...] = ("valid", "test")
SHOWN = 20  # places of a list that the popularity plot looks at


def run(params: Params, space: Workspace, settings: Settings, variant: str, unmasked: bool = False) -> EvaluationReport:
    """Judge the model of `variant` and write `space.evaluation(variant)`: per_user.parquet and report.json.

    With `unmasked` the first has every metric once more, `ndcg@10 unmasked`, with what was seen left in the ranking.
    Raises UserError when the model is missing or damaged, or was trained on other data than is prepared now.
    """
    began = time.monotonic()
    dataset = params.dataset(space.dataset)
    device = choose_device(settings.device)
    keep_freed_memory(device)
    place = space.model(variant)
    artifact = Artifact.load(place, device)
    refuse_other_data(space, artifact.card, place)
    split = Split.load(space.prepared, dataset.split, dataset.has_clock)
    trained = artifact.card.variant
    evaluator = Evaluator(
        split,
        trained.weighting,
        PARTS,
        params.evaluation,
        device,
        trained.noise,
        artifact.card.seed,
        unmasked=unmasked,
    )
    found = evaluator.judge(artifact.model)
    drawn = None
    if artifact.model.stochastic:
        cutoff = int(params.trainer.metric.partition("@")[2])
        drawn = judge_draws(artifact.model, evaluator.asked("test"), cutoff, params.evaluation, params.seed)
    report = EvaluationReport(
        dataset=space.dataset,
        variant=variant,
        model=trained.model,
        options=dict(trained.options),
        weighting=trained.weighting,
        noise=trained.noise,
        split=split.config.kind,
        history=split.config.history,
        mask_seen=split.config.mask_seen,
        data_version=artifact.card.data_version,
        fingerprint=artifact.card.fingerprint,
        code_version=artifact.card.code_version,
        seed=artifact.card.seed,
        parameters=_learned_numbers(artifact.model),
        users={part: len(judgement.users) for part, judgement in found.items()},
        left_out={part: judgement.left_out for part, judgement in found.items()},
        metrics={part: _intervals(judgement, params.evaluation, params.seed) for part, judgement in found.items()},
        confidence=params.evaluation.confidence,
        bootstrap_samples=params.evaluation.bootstrap_samples,
        lists={part: judgement.lists for part, judgement in found.items()},
        bands=_bands(split, found["test"]),
        trained_bands=_trained_bands(split),
        draws=drawn,
        seconds=time.monotonic() - began,
    )
    with writing(space.evaluation(variant)) as folder:
        _write_users(folder / "per_user.parquet", split, found)
        write_json(folder / "report.json", report.model_dump(mode="json"))
    with resume_run(settings, space, read_json(place / "report.json")["run_id"]) as tracked:
        tracked.metrics({f"test_{name}": value for name, value in found["test"].means().items()})
        tracked.metrics({f"test_{name}": value for name, value in found["test"].lists.items()})
    log.info("%s: test %s %.4f", variant, params.trainer.metric, found["test"].means()[params.trainer.metric])
    return report


def refuse_other_data(space: Workspace, card: ModelCard, place: Path) -> None:
    """Raise UserError unless the model was trained on the data that is prepared now."""
    if card.data_version != current_data_version(space):
        raise UserError(
            f"{place}: trained on other data than {space.prepared} holds now; "
            f"`noise2next train --dataset {space.dataset} --variant {card.variant.name}` trains it again"
        )


def current_data_version(space: Workspace) -> str:
    """Of the prepared split."""
    return str(read_json(require(space.prepared, "prepare") / "report.json")["data_version"])


def _learned_numbers(model: Recommender) -> int:
    """What a closed form solves are its buffers; beside the parameters of the others they only serve training."""
    learned = model.state_dict().values() if isinstance(model, ClosedForm) else model.parameters()
    return sum(value.numel() for value in learned)


def _intervals(judgement: Judgement, config: EvaluationConfig, seed: int) -> dict[str, Interval]:
    values = np.stack(list(judgement.per_user.values()), axis=1)
    resampled = resampled_means(values, config.bootstrap_samples, seed)
    return dict(zip(judgement.per_user, intervals(values, resampled, config.confidence), strict=True))


def _bands(split: Split, judgement: Judgement) -> list[float]:
    shown = lists.exposure(judgement.top[:, :SHOWN], split.n_items)
    return lists.band_shares(shown, lists.popularity(split.train, split.n_items))


def _trained_bands(split: Split) -> list[float]:
    popularity = lists.popularity(split.train, split.n_items)
    return lists.band_shares(popularity, popularity)


def _write_users(path: Path, split: Split, found: Mapping[Part, Judgement]) -> None:
    """Rows (part, user as a raw id, then a column a metric)."""
    raw = np.asarray(split.users.ids, dtype=object)
    tables = [
        pa.table(
            {
                "part": pa.array([part] * len(judgement.users), pa.string()),
                "user": pa.array(raw[judgement.users], pa.string()),
                **judgement.per_user,
                **{column(metric, "unmasked"): values for metric, values in judgement.unmasked.items()},
            }
        )
        for part, judgement in found.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)
