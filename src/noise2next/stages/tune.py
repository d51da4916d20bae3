"""Search a variant's settings on validation alone: the same number of trials for every row, none of them twice."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError
from ruamel.yaml.comments import CommentedMap

from noise2next import __version__
from noise2next.config import Frozen, Params, Settings, TrainerConfig, Variant, yaml_round_trip
from noise2next.data.interactions import Split
from noise2next.errors import Diverged, UserError
from noise2next.models.artifact import code_version
from noise2next.models.base import model_class, model_config
from noise2next.stages import datasets, evaluate, reproduce
from noise2next.stages.refused import why_refused
from noise2next.stages.tables import Table
from noise2next.stages.train import begin, item_clusters
from noise2next.training.device import choose_device
from noise2next.training.fit import fit
from noise2next.workspace import Reproduction, Workspace, alone, locked, read_json, write_json

log = logging.getLogger(__name__)

WARM_UP = 20  # judged epochs before a trial may be broken off: those that learn slowly are behind at first
REDRAWS = 100  # settings drawn before the space counts as exhausted; after the first ten by lot
PARTS = ("options", "trainer", "weighting")


class Tried(Frozen):
    """One trial. `valid` is its best validation metric; None where its numbers ran away."""

    settings: dict[str, Any]
    valid: float | None
    state: Literal["complete", "pruned", "diverged"]
    epochs: int
    best_epoch: int
    seconds: float
    code_version: str


class TuneReport(Frozen):
    """What was found; `valid` is of the rows that the trials were judged on, `entry` what they change, as YAML."""

    dataset: str
    variant: str
    metric: str
    trials: int
    pruned: int
    diverged: int
    valid: float
    settings: dict[str, Any]
    written: str
    entry: str


def for_dataset(params: Params, space: Workspace, settings: Settings, variant: str, trials: int) -> TuneReport:
    """Search until there are `trials` of `variant` on `space.dataset`; the best becomes its preset in params.yaml.

    Trials under `params.seed` are kept and not repeated. Raises UserError for a variant without `search`, one that the
    dataset cannot have, and where no trial comes to its end.
    """
    tried = search(params, space, settings, variant, trials)
    changed = _changed(params.variant(variant, space.dataset), _best(tried, variant).settings)
    with datasets.edited(space, f"tune {variant}") as tree:
        _write_preset(tree["datasets"][space.dataset], variant, changed)
    return _report(params, space, variant, tried, changed, str(space.params))


def for_table(
    table: Table, settings: Settings, data: Path | None, variant: str, trials: int, seed: int = 1
) -> TuneReport:
    """Search until there are `trials` of `variant` of a table; they are written beside it, its YAML is a person's.

    Where the table has its searches judged on training rows (`search_on`), those also choose the number of epochs: the
    entry trains for as many as the best trial had at its best, and is judged after the last alone.

    Raises UserError as `for_dataset`, and where the table's official file is not there.
    """
    searched, place = table.searched(), Reproduction(settings.root, table.name)
    work = place if table.search_on is None else place.searches
    params, space = searched.params(seed), reproduce.ready(searched, work, settings, data, variant, seed)
    tried = search(params, space, settings, variant, trials)
    best = _best(tried, variant)
    found = best.settings
    if table.search_on is not None and best.best_epoch:
        found = {**found, "trainer.epochs": best.best_epoch, "trainer.evaluate_every": best.best_epoch}
    changed = _changed(params.variant(variant, space.dataset), found)
    path = place.result("-tuning.json")
    with locked(path):
        known = read_json(path).get("variants", {}) if path.is_file() else {}
        mine = {
            "trials": [one.model_dump(mode="json") for one in tried],
            "seed": seed,
            "search_on": table.search_on,
            "data_version": evaluate.current_data_version(space),
        }
        metric = params.trainer_for(params.variant(variant, space.dataset)).metric
        document = {"table": table.name, "metric": metric, "variants": {**known, variant: mine}}
        write_json(path, document)
    return _report(params, space, variant, tried, changed, str(path))


def search(params: Params, space: Workspace, settings: Settings, variant: str, trials: int) -> list[Tried]:
    """Try settings of `search` until there are `trials` finished ones; all of them, best first.

    The variant's own settings come first where they lie in the space, so that a search ends no worse than it began.
    Which come next is decided by the seed and by the trials before, so a search that was killed goes on as if it had
    not been. Test data are not read.
    """
    base = params.variant(variant, space.dataset)
    trainer = params.trainer_for(base)
    choices = params.variants[variant].search
    _check(base, choices)
    if (reason := why_refused(params, space, variant)) is not None:
        raise UserError(f"{space.dataset}: variant {variant!r} cannot be trained on it: {reason}")
    choices = _possible(params, space, base, choices)
    dataset = params.dataset(space.dataset)
    split = Split.load(space.prepared, dataset.split, dataset.has_clock, with_test=False)
    device = choose_device(settings.device)
    place = space.tuning(variant)
    with alone(place.with_suffix(".lock"), f"tune of {variant}"):
        stored = _stored(params, space, place, base, choices)
        study = _in_memory(stored, trainer.evaluate_every)
        own = _own(base, trainer, choices)
        while (count := len(_finished(study))) < trials:
            if own is not None and not count:
                study.enqueue_trial(own)
            drawn = _draw(study, base, choices, params.seed, count)
            if drawn is None:
                log.warning("%s: %s has no settings left to try after %d trials", space.dataset, variant, count)
                break
            trial, candidate = drawn
            _try(study, trial, params, settings, space, candidate, split, device)
            last = _finished(study)[-1]
            stored.add_trial(last)
            log.info("%s: trial %d of %d, %s", variant, count + 1, trials, _told(_tried(last), trainer.metric))
        tried = [_tried(one) for one in _finished(study)]
    return sorted(tried, key=lambda one: (one.valid is None, -(one.valid or 0)))


# --- what is searched -------------------------------------------------------------------------------------------------


def _check(base: Variant, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise UserError for a variant that says nothing to search, and for a key that it does not have."""
    if not choices:
        raise UserError(
            f"variant {base.name!r} says nothing to search: give it `search: {{options.NAME: [VALUE, VALUE]}}`"
        )
    known = {
        "options": model_class(base.model).Config.model_fields,
        "trainer": TrainerConfig.model_fields,
        "weighting": type(base.weighting).model_fields,
    }
    for key in choices:
        part, _, name = key.partition(".")
        if name not in known.get(part, {}):
            raise UserError(
                f"variant {base.name!r}: search.{key}: no such setting; write options.NAME, trainer.NAME or "
                f"weighting.NAME, where {part} has {', '.join(known.get(part, PARTS))}"
            )


def _possible(
    params: Params, space: Workspace, base: Variant, choices: Mapping[str, tuple[Any, ...]]
) -> dict[str, tuple[Any, ...]]:
    """The choices less what this dataset cannot have, as more clusters than its items allow or than are made.

    Raises UserError where that leaves none.
    """
    found = {}
    for key, some in choices.items():
        kept, last = [], None
        for value in some:
            candidate = _candidate(base, {key: value})
            try:
                reason = None if candidate is None else why_refused(params, space, candidate)
            except UserError as error:  # as more clusters than are made
                reason = str(error)
            if reason is None:
                kept.append(value)
            else:
                last = reason
                log.warning("%s: %s: %s %s is not tried: %s", space.dataset, base.name, key, value, reason)
        if not kept:
            raise UserError(f"variant {base.name!r}: search.{key}: {space.dataset} can have none of its values: {last}")
        found[key] = tuple(kept)
    return found


def _overlaid(base: Variant, values: Mapping[str, Any]) -> dict[str, Any]:
    """The variant's entry with `values`, by dotted key, laid over it; it may be no valid one."""
    tree = base.model_dump(mode="json", exclude={"search"})
    for key, value in values.items():
        part, _, name = key.partition(".")
        tree[part] = {**tree[part], name: value}
    return tree


def _candidate(base: Variant, values: Mapping[str, Any]) -> Variant | None:
    """The variant with these settings; None where they do not go together, as a noise_min above noise_max."""
    try:
        candidate = Variant.model_validate(_overlaid(base, values))
        model_class(candidate.model).Config.model_validate(dict(candidate.options))
    except ValidationError:
        return None
    return candidate


def _own(base: Variant, trainer: TrainerConfig, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, str] | None:
    """The variant's own settings as Optuna keeps them; None where one of them is not among its choices."""
    tree = {
        "options": model_config(base.model, base.options).model_dump(mode="json"),
        "trainer": trainer.model_dump(mode="json"),
        "weighting": base.weighting.model_dump(mode="json"),
    }
    own = {}
    for key, some in choices.items():
        part, _, name = key.partition(".")
        texts = [json.dumps(one) for one in some if json.loads(json.dumps(one)) == tree[part][name]]
        if not texts:
            return None
        own[key] = texts[0]
    return own


def _draw(
    study: optuna.Study, base: Variant, choices: Mapping[str, tuple[Any, ...]], seed: int, count: int
) -> tuple[Trial, Variant] | None:
    """The next trial whose settings go together and are new; None where there seems to be none left."""
    known = [one.params for one in _finished(study)]
    for attempt in range(REDRAWS):
        draws = int(np.random.SeedSequence([seed, count, attempt]).generate_state(1)[0])
        sampler: BaseSampler = TPESampler(seed=draws) if attempt < REDRAWS // 10 else RandomSampler(seed=draws)
        study.sampler = sampler
        trial = study.ask()
        drawn = {
            key: trial.suggest_categorical(key, [json.dumps(one) for one in some]) for key, some in choices.items()
        }
        candidate = _candidate(base, _values(drawn))
        if candidate is not None and drawn not in known:
            return trial, candidate
        study.tell(trial, state=TrialState.FAIL)
    return None


def _values(drawn: Mapping[str, str]) -> dict[str, Any]:
    """Optuna keeps texts; ours are JSON."""
    return {key: json.loads(text) for key, text in drawn.items()}


# --- trials -----------------------------------------------------------------------------------------------------------


def _stored(
    params: Params, space: Workspace, place: Path, base: Variant, choices: Mapping[str, tuple[Any, ...]]
) -> optuna.Study:
    """The finished trials under the same data, split, seed and settings that are not searched: comparable ones."""
    told = {
        "data": evaluate.current_data_version(space),
        "split": params.dataset(space.dataset).split.model_dump(mode="json"),
        "variant": _overlaid(base, dict.fromkeys(choices)),
        "choices": dict(choices),
        "trainer": params.trainer.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "seed": params.seed,
        "warm_up": WARM_UP,
        "release": __version__,
    }
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{place.resolve()}", study_name=name, direction="maximize", load_if_exists=True
    )


def _in_memory(stored: optuna.Study, evaluate_every: int) -> optuna.Study:
    """Where trials are drawn and run: what a killed process had begun is nowhere."""
    pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=WARM_UP * evaluate_every)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials(stored.get_trials(deepcopy=False))
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _try(
    study: optuna.Study,
    trial: Trial,
    params: Params,
    settings: Settings,
    space: Workspace,
    candidate: Variant,
    split: Split,
    device: torch.device,
) -> None:
    """Train and judge one candidate; a trial behind the median of the earlier ones is broken off."""
    trainer = settings.trainer(params.trainer_for(candidate))
    heard = f"valid_{trainer.metric}"
    trial.set_user_attr("code_version", code_version())

    def on_epoch(epoch: int, values: dict[str, float]) -> None:
        trial.set_user_attr("epochs", epoch)
        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + values["seconds"])
        if heard in values:
            trial.report(values[heard], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    clusters = item_clusters(params, space, candidate, split)
    model, train, validate = begin(params, candidate, split, device, clusters)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / "checkpoint"
            fitted = fit(model, train, trainer, validate, place, params.seed, device, on_epoch, progress=False)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Diverged as error:
        trial.set_user_attr("diverged", str(error))
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_user_attr("epochs", fitted.epochs)
        trial.set_user_attr("best_epoch", fitted.best_epoch)
        trial.set_user_attr("seconds", fitted.seconds)
        study.tell(trial, fitted.metrics[trainer.metric])


def _tried(trial: FrozenTrial) -> Tried:
    known, judged = trial.user_attrs, trial.intermediate_values
    pruned: Literal["pruned", "diverged"] = "diverged" if "diverged" in known else "pruned"
    state: Literal["complete", "pruned", "diverged"] = "complete" if trial.state == TrialState.COMPLETE else pruned
    best_so_far = max(judged, key=lambda epoch: judged[epoch], default=0)
    return Tried(
        settings=_values(trial.params),
        valid=trial.value if state == "complete" else judged.get(best_so_far) if state == "pruned" else None,
        state=state,
        epochs=known.get("epochs", 0),
        best_epoch=known.get("best_epoch", best_so_far),
        seconds=known.get("seconds", 0.0),
        code_version=known["code_version"],
    )


def _told(one: Tried, metric: str) -> str:
    value = "its numbers ran away" if one.valid is None else f"{metric} {one.valid:.4f}"
    return f"{one.state}: {value} with {json.dumps(one.settings)}"


# --- what comes of it -------------------------------------------------------------------------------------------------


def _best(tried: list[Tried], variant: str) -> Tried:
    """A trial that was broken off is not known to its end, so it is no candidate."""
    best = next((one for one in tried if one.state == "complete"), None)
    if best is None:
        raise UserError(f"{variant}: none of {len(tried)} trials came to its end; change its `search`")
    return best


def _changed(base: Variant, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the groups of an entry; time weights stand or fall as one, so they come whole."""
    tree = _overlaid(base, values)
    named = {part: [key.partition(".")[2] for key in values if key.startswith(f"{part}.")] for part in PARTS}
    chosen = {part: {name: tree[part][name] for name in names} for part, names in named.items() if names}
    return {**chosen, "weighting": tree["weighting"]} if "weighting" in chosen else chosen


def _write_preset(entry: CommentedMap, variant: str, changed: Mapping[str, Any]) -> None:
    """Lay the settings over the preset. What is new goes before what is last, which holds the comments after it."""
    if "presets" not in entry:
        entry.insert(max(len(entry) - 1, 0), "presets", CommentedMap())
    presets = entry["presets"]
    if variant not in presets:
        presets.insert(0, variant, datasets.flow({}))
    preset = presets[variant]
    for part, values in changed.items():
        if part == "weighting" or part not in preset:
            preset[part] = datasets.flow(values)
        else:
            preset[part].update(values)


def _report(
    params: Params, space: Workspace, variant: str, tried: list[Tried], changed: Mapping[str, Any], written: str
) -> TuneReport:
    best = _best(tried, variant)
    assert best.valid is not None
    out = io.StringIO()
    yaml_round_trip().dump({variant: {part: datasets.flow(values) for part, values in changed.items()}}, out)
    return TuneReport(
        dataset=space.dataset,
        variant=variant,
        metric=params.trainer_for(params.variant(variant, space.dataset)).metric,
        trials=len(tried),
        pruned=sum(one.state == "pruned" for one in tried),
        diverged=sum(one.state == "diverged" for one in tried),
        valid=best.valid,
        settings=best.settings,
        written=written,
        entry=out.getvalue(),
    )
