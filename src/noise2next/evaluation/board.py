"""From evaluations to one table: who is ahead, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noise2next.config import EvaluationConfig
from noise2next.errors import UserError
from noise2next.evaluation.report import EvaluationReport, LeaderboardReport, LeaderboardRow, Training
from noise2next.evaluation.significance import Interval, intervals, resampled_means


@dataclass(frozen=True)
class Entry:
    """A variant's evaluation, how it was learned, and its users' main metric on test: values [M]."""

    evaluation: EvaluationReport
    training: Training
    simple: bool
    values: NDArray[np.float32]


def compare(
    entries: Sequence[Entry],
    main_metric: str,
    config: EvaluationConfig,
    seed: int,
    items: int,
    left_out: Mapping[str, str],
    notes: Sequence[str],
) -> LeaderboardReport:
    """Order `entries`, all of one dataset, split, history and data version, by test; the choice is validation's.

    Raises UserError for a main metric that was not measured, ValueError for entries that cannot be compared.
    """
    first = entries[0].evaluation
    if main_metric not in first.metrics["test"]:
        raise UserError(
            f"params.yaml: trainer.metric {main_metric!r} is not measured; evaluation.cutoffs are "
            f"{', '.join(map(str, config.cutoffs))}"
        )
    if len({_terms(entry.evaluation) for entry in entries}) > 1 or len({len(entry.values) for entry in entries}) > 1:
        raise ValueError("entries differ in dataset, split, history, data version or users")
    ranked = sorted(entries, key=lambda entry: (-_mean(entry, "test", main_metric), entry.evaluation.variant))
    chosen = min(entries, key=lambda entry: (-_mean(entry, "valid", main_metric), entry.evaluation.variant))
    values = np.stack([entry.values for entry in ranked], axis=1).astype(np.float64)  # [M, rows], best first
    resampled = resampled_means(values, config.bootstrap_samples, seed)
    behind = intervals(values - values[:, :1], resampled - resampled[:, :1], config.confidence)
    said = [
        *notes,
        *_of_one_seed(entries),
        *_noised(ranked),
        *_simple_ahead(ranked, values, resampled, main_metric, config.confidence),
        *_not_the_best(chosen, ranked, behind, main_metric, config.confidence),
        *_unjudged(first),
    ]
    return LeaderboardReport(
        dataset=first.dataset,
        split=first.split,
        history=first.history,
        mask_seen=first.mask_seen,
        data_version=first.data_version,
        users=first.users,
        items=items,
        main_metric=main_metric,
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
        chosen=chosen.evaluation.variant,
        trained_bands=first.trained_bands,
        rows=[_row(entry, None if at == 0 else behind[at]) for at, entry in enumerate(ranked)],
        left_out=dict(left_out),
        notes=said,
    )


def _terms(evaluation: EvaluationReport) -> tuple[object, ...]:
    return (
        evaluation.dataset,
        evaluation.split,
        evaluation.history,
        evaluation.mask_seen,
        evaluation.data_version,
        evaluation.users["test"],
    )


def _mean(entry: Entry, part: str, metric: str) -> float:
    return entry.evaluation.metrics[part][metric].mean


def _row(entry: Entry, versus_best: Interval | None) -> LeaderboardRow:
    evaluation, training = entry.evaluation, entry.training
    return LeaderboardRow(
        variant=evaluation.variant,
        model=evaluation.model,
        simple=entry.simple,
        options=evaluation.options,
        weighting=evaluation.weighting,
        noise=evaluation.noise,
        metrics=evaluation.metrics["test"],
        valid=evaluation.metrics["valid"],
        lists=evaluation.lists["test"],
        versus_best=versus_best,
        bands=evaluation.bands,
        draws=evaluation.draws,
        parameters=evaluation.parameters,
        seconds_training=training.seconds,
        seconds_evaluation=evaluation.seconds,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
        device=training.device,
        curve=training.curve,
        seed=evaluation.seed,
        data_version=evaluation.data_version,
        code_version=evaluation.code_version,
        fingerprint=evaluation.fingerprint,
    )


def _simple_ahead(
    ranked: Sequence[Entry],
    values: NDArray[np.float64],
    resampled: NDArray[np.float64],
    metric: str,
    confidence: float,
) -> list[str]:
    """A sentence of all learned models that the best simple one is ahead of."""
    best = next((at for at, entry in enumerate(ranked) if entry.simple), None)
    if best is None:
        return []
    behind = [at for at in range(best + 1, len(ranked)) if not ranked[at].simple]
    if not behind:
        return []
    gaps = intervals(values[:, [best]] - values[:, behind], resampled[:, [best]] - resampled[:, behind], confidence)
    each = [
        f"{ranked[at].evaluation.variant} by {_said(gap, confidence)}" for at, gap in zip(behind, gaps, strict=True)
    ]
    return [f"{ranked[best].evaluation.variant}, a simple baseline, is ahead on test {metric} of {'; '.join(each)}"]


def _not_the_best(
    chosen: Entry, ranked: Sequence[Entry], behind: Sequence[Interval], metric: str, confidence: float
) -> list[str]:
    at = ranked.index(chosen)
    if at == 0:
        return []
    lead = Interval(mean=-behind[at].mean, low=-behind[at].high, high=-behind[at].low)
    return [
        f"{chosen.evaluation.variant} is chosen because it is best on validation; on test "
        f"{ranked[0].evaluation.variant} is ahead of it on {metric} by {_said(lead, confidence)}"
    ]


def _said(gap: Interval, confidence: float) -> str:
    sure = "" if gap.low > 0 else ", which may be chance"
    return f"{gap.mean:.4f} ({confidence:.0%} interval {gap.low:.4f} to {gap.high:.4f}{sure})"


def _of_one_seed(entries: Sequence[Entry]) -> list[str]:
    if all(entry.simple for entry in entries):
        return []
    return ["intervals are over users, for one seed a model: another seed would move the trained models too"]


def _noised(ranked: Sequence[Entry]) -> list[str]:
    """A sentence of all rows that stand for an experiment."""
    noised = [
        f"{entry.evaluation.variant} {entry.evaluation.noise.share:.0%}"
        for entry in ranked
        if entry.evaluation.noise is not None
    ]
    if not noised:
        return []
    return [
        "some rows read false positives at random, in training and when they are judged; in share of a user's real "
        f"interactions: {', '.join(noised)}"
    ]


def _unjudged(evaluation: EvaluationReport) -> list[str]:
    return [
        f"{count:,} users of the {part} part have no history to go by and are not judged"
        for part, count in evaluation.left_out.items()
        if count
    ]
