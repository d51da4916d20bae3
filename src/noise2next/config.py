"""Every choice a person makes: `params.yaml` as frozen models, and settings from the environment.

Nothing here is read at import time. Unknown keys are refused with the file, the place and the remedy.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from noise2next.errors import UserError

Share = Annotated[float, Field(gt=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]  # of the matrix products in training
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
OFFICIAL = ("official", "official_train")  # splits whose parts the files name
METRICS = ("recall", "ndcg", "mrr", "precision", "hit_rate", "map")  # each at every cutoff, as recall@20


class Frozen(BaseModel):
    """Immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- splits -----------------------------------------------------------------------------------------------------------


class SplitBase(Frozen):
    """What every split says beside its kind."""

    history: Literal["train", "train+valid"] = "train+valid"  # what a model may read of a user at test time
    mask_seen: bool = True  # leave what a user has seen out of the ranking


class OfficialSplit(SplitBase):
    """The parts that the files themselves name."""

    kind: Literal["official"] = "official"


class OfficialTrain(SplitBase):
    """Of the files' parts train and test alone: the newest share of each user's training rows is validation."""

    kind: Literal["official_train"] = "official_train"
    valid: Share = 0.125


class Shares(SplitBase):
    """A split by shares, which must leave something to train on."""

    valid: Share = 0.1
    test: Share = 0.2

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid {self.valid} and test {self.test} leave nothing to train on: their sum must be below 1"
            )
        return self


class PerUserRatio(Shares):
    """The oldest share of each user's history trains; validation, then test, follow."""

    kind: Literal["per_user_ratio"] = "per_user_ratio"


class LeaveOneOut(SplitBase):
    """Each user's newest interaction is test, the one before it validation."""

    kind: Literal["leave_one_out"] = "leave_one_out"


class GlobalTime(Shares):
    """Three consecutive windows of one clock, cut at quantiles of the interactions."""

    kind: Literal["global_time"] = "global_time"
    test: Share = 0.1


class RandomRatio(Shares):
    """Shares of each user's history drawn by the seed: for a log without any time, and no honest look at the future."""

    kind: Literal["random"] = "random"


SplitConfig = Annotated[
    OfficialSplit | OfficialTrain | PerUserRatio | LeaveOneOut | GlobalTime | RandomRatio, Field(discriminator="kind")
]


# --- time weights -----------------------------------------------------------------------------------------------------


class UniformWeights(Frozen):
    """Every interaction counts one."""

    kind: Literal["uniform"] = "uniform"


class LinearWeights(Frozen):
    """By place in a user's history, oldest `low`, newest `high` (T-DiffRec; Wang et al., 2023)."""

    kind: Literal["linear"] = "linear"
    low: PositiveFloat = 0.1
    high: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class ExponentialWeights(Frozen):
    """Halve for every `half_life_days` before the newest training interaction; needs a clock."""

    kind: Literal["exponential"] = "exponential"
    half_life_days: PositiveFloat = 30.0


Weighting = Annotated[UniformWeights | LinearWeights | ExponentialWeights, Field(discriminator="kind")]


class Noise(Frozen):
    """False positives at random in what a model reads, never in what it is judged on: `share` of a user's real ones."""

    share: Annotated[float, Field(gt=0, le=10)]


# --- datasets ---------------------------------------------------------------------------------------------------------


class Columns(Frozen):
    """Names of the log's columns; a file without header has columns named 1, 2, 3 ..."""

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None


class ItemNames(Frozen):
    """Delimited text that names the items, for people to read; a file without header has columns named 1, 2, 3 ..."""

    path: str | None = None  # below `data/`, apart from the log's folder; None: inside the log's own zip
    member: str | None = None  # the file inside a zip
    separator: Annotated[str, Field(min_length=1)] = ","
    header: bool = True
    encoding: str = "utf-8"
    item: str = "item_id"
    name: str = "name"


Format = Literal["delimited", "json", "parquet", "sequences", "diffrec", "diffurec"]
TimeUnit = Literal["s", "ms", "us", "iso", "order"]  # `order`: a place in time without a clock


class Preset(Frozen):
    """What a dataset changes in a variant: keys that it names replace the variant's."""

    options: Mapping[str, Any] = {}
    trainer: Mapping[str, Any] = {}
    weighting: Weighting | None = None
    noise: Noise | None = None


class Dataset(Frozen):
    """One raw log and how it becomes a split. `path` is below `data/`."""

    path: str
    member: str | None = None  # the file inside a zip
    format: Format
    separator: Annotated[str, Field(min_length=1)] | None = None  # of delimited text
    header: bool = True
    encoding: str = "utf-8"
    columns: Columns = Columns()
    time_unit: TimeUnit | None = None  # None: the log has neither clock nor order
    positive: str | None = None  # for example "rating >= 4"
    repeats: Literal["keep", "first", "last"] = "first"
    k_core: Annotated[int, Field(ge=1)] = 1
    split: SplitConfig = GlobalTime()
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    names: ItemNames | None = None  # what people call the items
    presets: Mapping[str, Preset] = {}

    @property
    def has_clock(self) -> bool:
        return self.time_unit not in (None, "order")

    @property
    def has_order(self) -> bool:
        return self.time_unit is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path in (self.path, *([self.names.path] if self.names and self.names.path else [])):
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"path {path!r} must lie below data/")
        if self.positive is not None:
            parse_threshold(self.positive)
            if self.columns.rating is None:
                raise ValueError(f"positive: {self.positive!r} needs columns.rating")
        if self.split.kind == "global_time" and not self.has_clock:
            raise ValueError("split global_time needs a clock: name columns.time and time_unit, or take another split")
        if self.split.kind in ("per_user_ratio", "leave_one_out") and not self.has_order:
            raise ValueError(f"split {self.split.kind} needs the order of events, and this log has no time column")
        if self.split.kind in OFFICIAL and self.format not in ("diffrec", "diffurec"):
            raise ValueError(
                f"split {self.split.kind} needs files that carry their own split (formats diffrec and diffurec)"
            )
        if self.format == "diffrec" and self.split.kind not in OFFICIAL:
            raise ValueError(
                "DiffRec's files number each part's rows anew, so they cannot be split again: set split.kind to "
                f"{' or '.join(OFFICIAL)}"
            )
        if self.format == "diffrec" and self.split.kind == "official" and self.split.history != "train":
            raise ValueError("DiffRec's validation rows are newer than its test rows: set split.history to train")
        return self


def parse_threshold(positive: str) -> tuple[str, float]:
    """`rating >= 4` -> (">=", 4.0). Only a comparison of the rating with a number is understood."""
    match = re.fullmatch(r"\s*rating\s*(>=|>|<=|<|==)\s*(-?\d+(?:\.\d+)?)\s*", positive)
    if match is None:
        raise ValueError(f"positive: {positive!r} is not of the form 'rating >= 4'")
    return match[1], float(match[2])


# --- training, evaluation, variants -----------------------------------------------------------------------------------


class TrainerConfig(Frozen):
    """The one loop's settings; a variant or a preset may change any of them."""

    epochs: PositiveInt = 1000
    batch_size: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-3
    decay_every: PositiveInt | None = None  # epochs, after each of which the learning rate is multiplied by `decay`
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    weight_decay: NonNegativeFloat = 0.0  # AdamW's: an update takes this share, times its rate, off every number
    evaluate_every: PositiveInt = 1  # epochs
    patience: PositiveInt = 20  # epochs without a better validation metric
    metric: str = "recall@20"
    checkpoint_seconds: NonNegativeFloat = 60.0  # at least this long between checkpoints inside training
    precision: Precision = "auto"


class EvaluationConfig(Frozen):
    """How models are judged."""

    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 20, 50, 100)
    bootstrap_samples: PositiveInt = 1000
    confidence: Share = 0.95
    memory_mb: PositiveInt = 512  # bound on the score blocks of a streaming top-k
    draws: Annotated[int, Field(ge=2)] = 10  # of a stochastic model's lists
    draw_users: PositiveInt = 1000  # at most so many users are looked at draw by draw


class Variant(Frozen):
    """One row of the leaderboard: a model's address and how it is fed and trained."""

    name: str = ""
    model: str  # noise2next.models.diffrec.DiffRec
    weighting: Weighting = UniformWeights()
    noise: Noise | None = None
    options: Mapping[str, Any] = {}
    trainer: Mapping[str, Any] = {}
    search: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}  # what `tune` tries, by dotted key


class ClusteringConfig(Frozen):
    """How the items fall into the clusters that latent variants are built from."""

    embeddings: str = "lightgcn"  # the variant whose item vectors are grouped
    most: PositiveInt = 5  # clusters: there is one set of labels for each number from 1 to this
    n_init: PositiveInt = 10  # k-means runs, of which the best is kept


class RecommendationsConfig(Frozen):
    """Everyone's lists, made ahead of the asking and kept for the day on which one can see what they were worth."""

    k: PositiveInt = 20
    keep: PositiveInt = 6  # tables; of more, the oldest go


class DriftMargins(Frozen):
    """By how much more than it usually does the log must move before anybody is alarmed."""

    item_mix: Share = 0.1  # Jensen-Shannon distance, beyond chance
    popularity: Share = 0.05  # the same, of the tenths of the catalogue by popularity
    activity: PositiveFloat = 0.3  # doublings of a user's rows
    volume: PositiveFloat = 0.5  # doublings of all rows
    new_items: Share = 0.05  # of the rows
    new_users: Share = 0.1  # of the users


class DriftConfig(Frozen):
    """When what comes in, what is shown, or what comes of it is no longer what the champion was made for."""

    days: PositiveFloat = 28.0  # the longest stretch of the log that is held against an earlier one
    stretches: Annotated[int, Field(ge=1)] = 5  # of equal length before it, which say what is usual
    least_rows: PositiveInt = 500  # in each of the two stretches, else nothing is said of them
    least_users: Annotated[int, Field(ge=20)] = 100  # likewise, and with later events for the outcome
    least_item_users: PositiveInt = 3  # who took an item in a stretch, before it counts as a new one
    level: Share = 0.99  # of all log that has not changed this share or more is not alarmed, all six questions together
    draws: Annotated[int, Field(ge=100)] = 1000  # of what chance alone does
    margins: DriftMargins = DriftMargins()
    overlap: Share = 0.3  # of the newest model's list with the champion's: less is another recommender
    most_users: PositiveInt = 5000  # at most so many are looked at for the overlap and for the outcome
    decay: Share = 0.2  # the share of its lead over popularity that the champion may lose

    @model_validator(mode="after")
    def _enough_draws(self) -> Self:
        least = math.ceil(len(DriftMargins.model_fields) / (1 - self.level) - 1e-6)
        if self.draws < least:
            raise ValueError(f"draws {self.draws}: to see what happens in 1 - level of all cases takes {least} or more")
        return self


class Retraining(Frozen):
    """How one dataset trains itself, beside being asked for by its own new data and by drift."""

    variants: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # None: all that params.yaml has
    schedule: str | None = None  # cron, in UTC, as "0 4 * * 1"
    fresh: bool = False  # what stands on the raw log follows it, and the code and options, asset by asset


class Automation(Frozen):
    """What Dagster does of its own accord."""

    landing: str = "landing"  # a folder with one folder a dataset, in the project's or anywhere
    every: PositiveInt = 30  # seconds between two looks
    retrain: Mapping[str, Retraining] = {}  # by dataset


class Params(Frozen):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 1
    engine: Literal["duckdb", "spark"] = "duckdb"
    datasets: Mapping[str, Dataset]
    variants: Mapping[str, Variant]  # the latent ones included
    latent_variants: Mapping[str, Variant] = {}  # those that are trained on the item clusters
    clustering: ClusteringConfig = ClusteringConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    recommendations: RecommendationsConfig = RecommendationsConfig()
    drift: DriftConfig = DriftConfig()
    automation: Automation = Automation()

    @model_validator(mode="before")
    @classmethod
    def _merge_latent(cls, tree: Any) -> Any:
        """Everyone reads one mapping. What has been merged before, as a dump of this model, may be merged again."""
        if not isinstance(tree, dict):
            return tree
        plain, latent = tree.get("variants"), tree.get("latent_variants")
        if not (isinstance(plain, Mapping) and isinstance(latent, Mapping)):
            return tree
        for name in plain.keys() & latent.keys():
            if plain[name] != latent[name]:
                raise ValueError(f"{name!r} stands in variants and in latent_variants; give one of them another name")
        return {**tree, "variants": {**plain, **latent}}

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in (*self.datasets, *self.variants):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a usable name: lower-case letters, digits, '-' and '_' only")
        for dataset_name, dataset in self.datasets.items():
            for variant in dataset.presets:
                if variant not in self.variants:
                    raise ValueError(f"datasets.{dataset_name}.presets names an unknown variant {variant!r}")
        return self

    @model_validator(mode="after")
    def _clusters(self) -> Self:
        source = self.clustering.embeddings
        if self.latent_variants and (source not in self.variants or source in self.latent_variants):
            raise ValueError(f"clustering.embeddings: {source!r} is not among variants, and latent_variants need it")
        return self

    @model_validator(mode="after")
    def _retrained(self) -> Self:
        for name, retraining in self.automation.retrain.items():
            if name not in self.datasets:
                raise ValueError(f"automation.retrain names an unknown dataset {name!r}")
            for variant in retraining.variants or ():
                if variant not in self.variants:
                    raise ValueError(f"automation.retrain.{name}.variants names an unknown variant {variant!r}")
        return self

    @model_validator(mode="after")
    def _trainers(self) -> Self:
        """Every trainer that would ever be used, each fault by its place."""
        self._check_trainer("trainer", {})
        for name, variant in self.variants.items():
            mapping = "latent_variants" if name in self.latent_variants else "variants"
            self._check_trainer(f"{mapping}.{name}.trainer", variant.trainer)
        for dataset_name, dataset in self.datasets.items():
            for name, preset in dataset.presets.items():
                changed = {**self.variants[name].trainer, **preset.trainer}
                self._check_trainer(f"datasets.{dataset_name}.presets.{name}.trainer", changed)
        return self

    def _check_trainer(self, place: str, changed: Mapping[str, Any]) -> None:
        try:
            trainer = TrainerConfig.model_validate({**self.trainer.model_dump(), **changed})
        except ValidationError as error:
            raise ValueError(f"{place}.{sentences(error)}") from error
        name, _, cutoff = trainer.metric.partition("@")
        if name not in METRICS or cutoff not in map(str, self.evaluation.cutoffs):
            raise ValueError(
                f"{place}.metric: {trainer.metric!r} is not measured; take one of {', '.join(METRICS)} "
                f"at one of evaluation.cutoffs, as recall@{self.evaluation.cutoffs[0]}"
            )

    def dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise UserError(f"there is no dataset {name!r} in params.yaml; it has {', '.join(self.datasets)}")
        return self.datasets[name]

    def variant(self, name: str, dataset: str) -> Variant:
        """The variant as `dataset` wants it: its preset's options and trainer keys laid over the variant's own."""
        if name not in self.variants:
            raise UserError(f"there is no variant {name!r} in params.yaml; it has {', '.join(self.variants)}")
        variant = self.variants[name]
        preset = self.dataset(dataset).presets.get(name, Preset())
        return Variant(
            name=name,
            model=variant.model,
            weighting=preset.weighting or variant.weighting,
            noise=preset.noise or variant.noise,
            options={**variant.options, **preset.options},
            trainer={**variant.trainer, **preset.trainer},
        )

    def trainer_for(self, variant: Variant) -> TrainerConfig:
        return TrainerConfig.model_validate({**self.trainer.model_dump(), **variant.trainer})


class Settings(BaseSettings):
    """Where it runs: from the environment (prefix NOISE2NEXT_), never from params.yaml."""

    # An empty variable counts as none: a workflow hands on what nobody has set that way.
    model_config = SettingsConfigDict(env_prefix="NOISE2NEXT_", env_ignore_empty=True, frozen=True)

    root: Path = Path(".")  # the folder that holds params.yaml, data/ and artifacts/
    device: str = "auto"  # auto | cpu | cuda | cuda:1
    precision: str = "auto"  # what `trainer.precision: auto` means here: auto | float32 | bfloat16
    shared: Path | None = None  # holds data/ with the official files of papers; None: ../shared beside the root
    tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")

    def trainer(self, asked: TrainerConfig) -> TrainerConfig:
        """`asked` as this machine reads it: `auto` is what the environment says. Raises UserError for another word."""
        if self.precision not in get_args(Precision):
            raise UserError(f"NOISE2NEXT_PRECISION: {self.precision!r} is none; write auto, float32 or bfloat16")
        return asked.model_copy(update={"precision": self.precision}) if asked.precision == "auto" else asked


# --- reading params.yaml ----------------------------------------------------------------------------------------------


def yaml_round_trip() -> YAML:
    """The reader and writer that keeps a person's comments and order."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 120
    return yaml


def load_params(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read and check `params.yaml`; `overrides` are `dotted.key=value` with YAML values.

    Raises UserError for a missing file, broken YAML, an unknown key or a wrong value, naming each place.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the command in the project's folder or set NOISE2NEXT_ROOT")
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: the file must be a mapping with the keys {', '.join(Params.model_fields)}")
    for override in overrides:
        _override(tree, override)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {sentences(error)}") from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as key=value, for example trainer.epochs=5")
    *parents, last = key.split(".")
    place = tree
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {override!r}: {parent!r} holds a value, not a group of keys")
    try:
        place[last] = YAML(typ="safe").load(io.StringIO(text))
    except YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not readable as YAML") from error


def sentences(error: ValidationError) -> str:
    """Pydantic's findings as one line of `place: what`."""
    found = []
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"]) or "the file"
        what = "unknown key; remove it or mend its spelling" if one["type"] == "extra_forbidden" else one["msg"]
        found.append(f"{place}: {what.removeprefix('Value error, ')}")
    return "; ".join(found)
