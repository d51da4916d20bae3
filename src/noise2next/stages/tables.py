"""The tables of published results that `reproduce` trains again: one YAML file each, in `noise2next/tables/`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML

from noise2next.config import (
    METRICS,
    Dataset,
    EvaluationConfig,
    Frozen,
    OfficialTrain,
    Params,
    Share,
    TrainerConfig,
    Variant,
    sentences,
)
from noise2next.errors import UserError

Form = Literal["masked", "unmasked"]  # is what a user has seen left out of the ranking?
UNITS = {"share": 1.0, "percent": 100.0}


class Row(Frozen):
    """What is known of a row beforehand, and what must come out."""

    published: Mapping[Form, Mapping[str, float]] = {}  # by form and metric, in the table's unit
    source: str = ""  # where the published figures were read
    authors_code: str = ""  # what the authors' own code gives, in words
    at_least: Mapping[Form, Mapping[str, float]] = {}  # a goal for the mean
    digits: Mapping[Form, Mapping[str, float]] = {}  # a goal to four decimals

    @model_validator(mode="after")
    def _told(self) -> Self:
        if bool(self.published) != bool(self.source):
            raise ValueError("published figures and their source go together")
        return self


class Table(Frozen):
    """One table: its data, how models are trained and judged, and its rows in their order."""

    name: str
    title: str
    file: str  # the official file, below the folder of data
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    dataset_name: str
    dataset: Dataset
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("masked",)
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    main: str
    unit: Literal["share", "percent"] = "share"
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    seeds: PositiveInt = 3
    search_on: Share | None = None  # of each user's training rows, the newest: searches judge on them; None: on valid
    variants: Mapping[str, Variant]
    latent_variants: Mapping[str, Variant] = {}  # those that are trained on item clusters
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.params(seed=1)
        except ValidationError as error:
            raise ValueError(sentences(error)) from error
        if strangers := set(self.rows) - set(self.entries):
            raise ValueError(f"rows name unknown variants: {', '.join(sorted(strangers))}")
        if self.main not in self.metrics:
            raise ValueError(f"main {self.main!r} is not among the metrics")
        if self.dataset.split.kind != "official":
            raise ValueError("a table is of an official split")
        if "masked" not in self.forms or not self.dataset.split.mask_seen:
            raise ValueError("the best epoch is chosen with what was seen left out, so a table has the form masked")
        for metric in self.metrics:
            name, _, cutoff = metric.partition("@")
            if name not in METRICS or cutoff not in map(str, self.evaluation.cutoffs):
                raise ValueError(f"metrics: {metric!r} is not measured")
        for name, row in self.rows.items():
            for figures in (row.published, row.at_least, row.digits):
                for form, values in figures.items():
                    if form not in self.forms or set(values) - set(self.metrics):
                        raise ValueError(f"rows.{name}: figures for what the table does not show")
        return self

    @property
    def entries(self) -> Mapping[str, Variant]:
        """Every variant, latent or not."""
        return {**self.variants, **self.latent_variants}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every metric in every form, under names of their own."""
        return tuple(column(metric, form) for form in self.forms for metric in self.metrics)

    def searched(self) -> Table:
        """The table as a search has it: with `search_on` its validation part is of each user's training rows."""
        if self.search_on is None:
            return self
        split = OfficialTrain(valid=self.search_on, history=self.dataset.split.history)
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"split": split})})

    def params(self, seed: int) -> Params:
        """What the stages take."""
        return Params(
            seed=seed,
            datasets={self.dataset_name: self.dataset},
            variants=self.variants,
            latent_variants=self.latent_variants,
            trainer=self.trainer,
            evaluation=self.evaluation,
        )

    def flat(self, figures: Mapping[Form, Mapping[str, float]]) -> dict[str, float]:
        """By column, as shares."""
        return {
            column(metric, form): value / UNITS[self.unit]
            for form, values in figures.items()
            for metric, value in values.items()
        }


def column(metric: str, form: Form) -> str:
    """`ndcg@10` where seen items are left out of the ranking, else `ndcg@10 unmasked`."""
    return metric if form == "masked" else f"{metric} {form}"


def table_names() -> list[str]:
    """The tables that come with the program."""
    return sorted(one.name.removesuffix(".yaml") for one in _folder().iterdir() if one.name.endswith(".yaml"))


def load_table(name: str) -> Table:
    """The table called `name`. Raises UserError for an unknown one, naming those that are there."""
    if name not in table_names():
        raise UserError(f"there is no table {name!r}; there are {', '.join(table_names())}")
    return read_table(name, _folder() / f"{name}.yaml")


def read_table(name: str, file: Traversable) -> Table:
    """A table from its file. Raises UserError with the place of a fault."""
    tree: dict[str, Any] = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    try:
        return Table.model_validate({"name": name, **tree})
    except ValidationError as error:
        raise UserError(f"{file}: {sentences(error)}") from error


def _folder() -> Traversable:
    return files("noise2next") / "tables"
