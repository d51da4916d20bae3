"""Train one variant: the prepared split in, a model artifact out."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from typing import Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor

from noise2next.config import Params, Settings, TrainerConfig, Variant
from noise2next.data import item_tables
from noise2next.data.interactions import Split
from noise2next.data.item_tables import clusters_column
from noise2next.data.noise import reading
from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import Evaluator
from noise2next.models.artifact import Artifact, ModelCard, code_version, read_card
from noise2next.models.base import Recommender, build, model_config
from noise2next.registry.tracking import training_run
from noise2next.stages.evaluate import current_data_version
from noise2next.stages.refused import why_refused
from noise2next.training.device import choose_device, matmul_dtype
from noise2next.training.fit import FitReport, fit
from noise2next.training.seeding import seed_everything
from noise2next.training.trainer import Validate
from noise2next.workspace import MANIFEST, Workspace, read_json, require, verify

log = logging.getLogger(__name__)

ELBO_USERS = 400  # enough to see the shape of the terms


class TrainReport(FitReport):
    """How a variant was trained; `report.json` in its artifact."""

    dataset: str
    variant: str
    seed: int
    fingerprint: str
    run_id: str  # in MLflow
    elbo_terms: tuple[float, ...] | None = None  # [T], the evidence bound's terms; None: trained on no such bound


@runtime_checkable
class HasElboTerms(Protocol):
    """A diffusion model that can say what each step's term of the evidence bound is."""

    def elbo_terms(self, queries: Queries) -> Tensor | None:
        """[T], or None where its loss is no bound."""


def run(
    params: Params,
    space: Workspace,
    settings: Settings,
    variant: str,
    progress: bool = False,
    budget_seconds: float | None = None,
) -> TrainReport:
    """Train `variant` on `space.dataset`, chosen on validation, and save its artifact.

    What is there already under the same data, options, seed and code is not trained again. A killed run is continued,
    and so is one that a smaller budget ended. Raises UserError for a variant that this dataset cannot have.
    """
    dataset = params.dataset(space.dataset)
    chosen = params.variant(variant, space.dataset)
    trainer = settings.trainer(params.trainer_for(chosen))
    reason = why_refused(params, space, variant)
    if reason is not None:
        raise UserError(f"{space.dataset}: variant {variant!r} cannot be trained on it: {reason}")
    split = Split.load(space.prepared, dataset.split, dataset.has_clock, with_test=False)
    device = choose_device(settings.device)
    clusters = item_clusters(params, space, chosen, split)
    card = _card(params, space, chosen, trainer, split, device, clusters)
    finished = _finished(space, card, budget_seconds)
    if finished is not None:
        log.info("%s: %s is trained already, fingerprint %s", space.dataset, variant, card.fingerprint[:12])
        return finished
    model, train, validate = begin(params, chosen, split, device, clusters)
    with training_run(settings, space, card, params) as tracked:
        fitted = fit(
            model,
            train,
            trainer,
            validate=validate,
            checkpoint=space.checkpoint(variant),
            seed=params.seed,
            device=device,
            on_epoch=lambda epoch, values: tracked.metrics(values, step=epoch),
            progress=progress,
            identity=card.fingerprint,
            budget_seconds=budget_seconds,
        )
        report = TrainReport(
            **dict(fitted),
            dataset=space.dataset,
            variant=variant,
            seed=params.seed,
            fingerprint=card.fingerprint,
            run_id=tracked.run_id,
            elbo_terms=_elbo_terms(model, train),
        )
        tracked.metrics(_summary(report))
        for step, term in enumerate(report.elbo_terms or ()):
            tracked.metrics({"elbo_term": term}, step=step)
        Artifact(model.cpu(), split.items, card).save(space.model(variant), report.model_dump(mode="json"))
    if report.stopped != "budget":
        shutil.rmtree(space.checkpoint(variant), ignore_errors=True)
    log.info("%s: %s trained in %.1f s, validation %s", space.dataset, variant, report.seconds, _shown(report, trainer))
    return report


def begin(
    params: Params, variant: Variant, split: Split, device: torch.device, clusters: dict[str, Tensor]
) -> tuple[Recommender, Queries, Validate]:
    """A fresh model, the histories it learns from, and what judges it on validation; see `item_clusters`."""
    histories = reading(split.train, split, variant.weighting, variant.noise, params.seed)
    everyone = Queries.of(histories, split.n_items, split.users.keys, device)
    train = everyone.select(everyone.lengths.nonzero().squeeze(1))  # who comes only later is not there yet
    evaluator = Evaluator(split, variant.weighting, ["valid"], params.evaluation, device, variant.noise, params.seed)
    seed_everything(params.seed)
    model = build(variant, split.n_items, {"user_keys": train.keys, **clusters}).to(device)
    return model, train, lambda model: evaluator.judge(model)["valid"].means()


def item_clusters(params: Params, space: Workspace, variant: Variant, split: Split) -> dict[str, Tensor]:
    """`item_clusters` [I] for a latent variant, in the order of the split's items; nothing for another.

    Raises UserError where they are missing, of other data than is prepared now, or without a row for an item.
    """
    if variant.name not in params.latent_variants:
        return {}
    verify(require(space.clustered, f"cluster --dataset {space.dataset}"))
    again = f"`noise2next embed --dataset {space.dataset}` and then `noise2next cluster` of it write it again"
    if read_json(space.clustered / "report.json")["data_version"] != current_data_version(space):
        raise UserError(f"{space.clustered}: item clusters of other data than {space.prepared} holds now; {again}")
    column = clusters_column(model_config(variant.model, variant.options).model_dump()["clusters"])
    labels = item_tables.read(space.clustered / "item_clusters.parquet", column, split.items, again)
    return {"item_clusters": torch.from_numpy(labels)}


def _card(
    params: Params,
    space: Workspace,
    variant: Variant,
    trainer: TrainerConfig,
    split: Split,
    device: torch.device,
    clusters: dict[str, Tensor],
) -> ModelCard:
    """What is to be trained. The fingerprint covers all that the weights depend on, but for the number of threads."""
    data_version = current_data_version(space)  # over the tables: engines agree in them
    told = {
        "data": data_version,
        "split": params.dataset(space.dataset).split.model_dump(mode="json"),  # its mask decides the best epoch
        "variant": variant.model_dump(mode="json", exclude={"trainer", "search"}),
        "trainer": trainer.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "seed": params.seed,
        "code": code_version(),
        "torch": torch.__version__,
        "device": device.type,
        "precision": str(matmul_dtype(trainer.precision, device)),
        **{name: labels.tolist() for name, labels in clusters.items()},
    }
    return ModelCard(
        dataset=space.dataset,
        variant=variant,
        n_items=split.n_items,
        seed=params.seed,
        data_version=data_version,
        fingerprint=hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
    )


def _finished(space: Workspace, card: ModelCard, budget_seconds: float | None) -> TrainReport | None:
    """The report of an earlier run with the same fingerprint, if its artifact is whole and its budget was as large."""
    place = space.model(card.variant.name)
    if not (place / MANIFEST).is_file():
        return None
    try:
        verify(place)
        if read_card(place).fingerprint != card.fingerprint:
            return None
        report = TrainReport.model_validate(read_json(place / "report.json"))
        return report if report.within(budget_seconds) else None
    except (UserError, ValidationError, json.JSONDecodeError) as error:
        log.warning("%s: the model there cannot be used and is trained again: %s", place, error)
        return None


def _elbo_terms(model: Recommender, train: Queries) -> tuple[float, ...] | None:
    """Of users spread evenly over the training histories."""
    if not isinstance(model, HasElboTerms):
        return None
    spread = torch.linspace(0, len(train) - 1, min(len(train), ELBO_USERS)).round().long()
    terms = model.elbo_terms(train.select(spread.to(train.device)))
    return None if terms is None else tuple(terms.tolist())


def _summary(report: TrainReport) -> dict[str, float]:
    """The run as a whole, for its row in MLflow."""
    best = {f"best_valid_{name}": value for name, value in report.metrics.items()}
    return {
        **best,
        "best_epoch": report.best_epoch,
        "seconds_training": report.seconds,
        "peak_memory_mb": report.peak_memory_mb,
    }


def _shown(report: TrainReport, trainer: TrainerConfig) -> str:
    return f"{trainer.metric} {report.metrics.get(trainer.metric, float('nan')):.4f}"
