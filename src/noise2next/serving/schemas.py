"""What goes over the wire, as the OpenAPI document describes it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noise2next.config import Frozen
from noise2next.registry.packaging import Asked, Reply
from noise2next.serving.following import Champion, Follower

MOST_K = 1_000
MOST_QUERIES = 1_000  # of one request
MOST_LISTED = 100_000  # items of one answer: queries times k
MOST_HISTORY = 2_000  # items of one history
MOST_BODY = 4 << 20  # bytes
MOST_LETTERS = 256  # of an id

Id = Annotated[str, Field(max_length=MOST_LETTERS)]  # the bound also has it checked that it is text in UTF-8
K = Annotated[int, Field(ge=1, le=MOST_K, description="How many items a list is to have.")]


class Given(BaseModel):
    """What comes from outside: unknown keys are refused, and nothing is taken for what it is not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Query(Given):
    """A user of the log, or what anyone took. Where both are given the history is asked."""

    user_id: Id | None = Field(None, description="A user's id as the log writes it.")
    history: list[Id] | None = Field(
        None, max_length=MOST_HISTORY, description="Item ids as the log writes them, oldest first; of anyone."
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.user_id is None and self.history is None:
            raise ValueError("a query needs a `user_id` or a `history`, a list of item ids; this one has neither")
        return self

    @property
    def asked(self) -> Asked:
        return Asked(user=self.user_id) if self.history is None else Asked(history=self.history)


class RecommendRequest(Given):
    """One query or many."""

    queries: Annotated[list[Query], Field(min_length=1, max_length=MOST_QUERIES)]
    k: K = 10
    exclude_seen: bool | None = Field(
        None,
        description="Leave out what the user, or the history, has already; null: as `mask_seen` of the dataset has it.",
    )

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        if len(self.queries) * self.k > MOST_LISTED:
            raise ValueError(
                f"{len(self.queries):,} queries with k = {self.k} ask for more than {MOST_LISTED:,} items; send fewer "
                "queries at once"
            )
        return self


class ModelName(Frozen):
    """Which model answered, the whole answer."""

    name: str = Field(description="The registered model.")
    version: str
    variant: str
    data_version: str = Field(description="Of the data it was trained on.")

    @classmethod
    def of(cls, champion: Champion) -> ModelName:
        return cls(
            name=champion.name,
            version=champion.version,
            variant=champion.variant,
            data_version=champion.data_version,
        )


class Recommendations(Frozen):
    """One answer a query, in their order."""

    model: ModelName
    answers: list[Reply]


class SimilarItems(Frozen):
    """What the model would give to someone of whom it knows this item alone."""

    model: ModelName
    item: str
    items: list[str] = Field(description="Raw item ids, best first; never the item itself.")
    scores: list[float]


class Problem(Frozen):
    """What is wrong, and where."""

    error: str
    where: str = Field(description="The part of the request, as `body.queries.0.history`, or `server`.")


class Alive(Frozen):
    """The process answers."""

    alive: bool


class Ready(Frozen):
    """Whether there is a champion to answer with."""

    ready: bool
    version: str | None
    trouble: str | None = Field(
        description="Why the registry cannot be followed just now, or why nothing is served; null where all is well."
    )


class KeptOutVersion(Frozen):
    """A champion of the registry that failed its checks here."""

    version: str
    error: str
    failures: int
    again: datetime = Field(description="When it is tried again.")


class ModelState(ModelName):
    """The version that serves, and how it stands with the registry."""

    digest: str = Field(description="sha256 over the package's files, as the registry has it.")
    since: datetime = Field(description="When it began to serve.")
    users: int
    items: int
    trained_until: datetime | None = Field(description="Its newest training interaction; null without a clock.")
    registry_answered: datetime | None = Field(description="When the registry last answered.")
    trouble: str | None
    kept_out: KeptOutVersion | None

    @classmethod
    def now(cls, champion: Champion, follower: Follower) -> ModelState:
        package, kept_out = champion.package, follower.kept_out
        until = package.about.trained_until
        return cls(
            **dict(ModelName.of(champion)),
            digest=champion.digest,
            since=champion.since,
            users=len(package.users),
            items=len(package.artifact.items),
            trained_until=None if until is None else datetime.fromtimestamp(until / 1e6, champion.since.tzinfo),
            registry_answered=follower.looked,
            trouble=follower.trouble,
            kept_out=None if kept_out is None else KeptOutVersion(**vars(kept_out)),
        )
