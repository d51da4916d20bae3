"""The gate: may the challenger take the champion's place? The policy is `mlflow/promotion.yaml`.

All questions must be answered with yes, each at its own one-sided level. So the chance of promoting a model that fails
any one of them is at most 1 - level, however many there are, and nothing is to be corrected for their number (an
intersection-union test; Berger, 1982). What more questions cost is power.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from noise2next.config import Frozen, Share
from noise2next.errors import UserError
from noise2next.evaluation.significance import resampled_means

Activity = Literal["light", "heavy"]
CHAMPION = "champion"
BINS = 40  # of the histogram that a decision keeps of the resampled gains


class Bootstrap(Frozen):
    """How a bound on a paired mean is found."""

    samples: PositiveInt = 2000
    level: Share = 0.95
    seed: Annotated[int, Field(ge=0)] = 1


class Baseline(Frozen):
    """A variant that every champion must beat on the main metric."""

    variant: str
    margin: NonNegativeFloat = 0.0


class Range(Frozen):
    """Where a value must lie, in multiples of another's."""

    at_least: PositiveFloat | None = None
    at_most: PositiveFloat | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most, or both")
        return self


class Groups(Frozen):
    """Users by the length of their history: light ones up to the quantile of the judged users, heavy ones above."""

    quantile: Share = 0.5
    margins: Annotated[Mapping[Activity, NonNegativeFloat], Field(min_length=1)]
    least_users: PositiveInt = 100


class Limits(Frozen):
    """Upper limits of the package."""

    latency_ms: PositiveFloat | None = None
    size_mb: PositiveFloat | None = None


class Policy(Frozen):
    """`mlflow/promotion.yaml`. Shares are relative to the champion's mean."""

    metric: str
    superiority: NonNegativeFloat = 0.0
    bootstrap: Bootstrap = Bootstrap()
    guards: Mapping[str, NonNegativeFloat] = {}
    groups: Groups | None = None
    baseline: Baseline | None = None
    floors: Mapping[str, float] = {}
    ceilings: Mapping[str, PositiveFloat] = {}  # in multiples of the baseline's
    of_champion: Mapping[str, Range] = {}
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _ceilings_have_a_baseline(self) -> Self:
        if self.ceilings and self.baseline is None:
            raise ValueError("ceilings are multiples of the baseline's value: name a baseline")
        return self

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read and check. Raises UserError for a missing file, broken YAML, an unknown key or a wrong value."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; take the one of the repository, the gate needs a policy")
        try:
            return cls.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
        except (YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'the file'}: "
                + ("unknown key; remove it or mend its spelling" if one["type"] == "extra_forbidden" else one["msg"])
                for one in error.errors()
            )
            raise UserError(f"{path}: {faults}") from error


class Occasion(Frozen):
    """Who asked the gate, when, and about which window."""

    dataset: str
    data_version: str  # of the prepared split whose test window judges
    split: str
    by: str  # user@machine
    when: str  # UTC, as 2026-01-31T12:00:00.000000Z


class Version(Frozen):
    """One version in the registry, as a decision names it."""

    version: str
    variant: str
    data_version: str
    fingerprint: str


class Gain(Frozen):
    """Two means over the same users, and the interval of their difference: each end at the one-sided level."""

    over: str  # whose mean the second is: `champion`, or the baseline's variant
    users: int
    mine: float
    theirs: float
    low: float
    high: float


class Check(Frozen):
    """One question of the gate. With a gain, `observed` is its lower bound."""

    name: str
    observed: float
    limit: float
    passed: bool
    sentence: str
    gain: Gain | None = None


class Histogram(Frozen):
    """counts [N] of values between edges [N + 1]."""

    edges: list[float]
    counts: list[int]


class Decision(Frozen):
    """What the gate said, and why; kept with the model version."""

    promoted: bool
    reasons: list[str]  # what failed, or every check; then the remarks
    checks: list[Check]
    remarks: list[str]  # what could not be asked, and what makes the comparison uneven
    challenger: Version
    champion: Version | None  # None: there was none, or it could not be compared
    users: int
    gains: Histogram | None  # of the main metric over the champion's, resampled
    occasion: Occasion
    policy: Policy

    @property
    def main(self) -> Check | None:
        """The main metric against the champion; None where nothing was compared."""
        return next(iter(self.over_champion), None)

    @property
    def over_champion(self) -> list[Check]:
        """Every gain over the champion, the main metric's first."""
        return [check for check in self.checks if check.gain is not None and check.gain.over == CHAMPION]


@dataclass(frozen=True)
class Judged:
    """A model on the test window: users [M] as raw ids, lengths [M] of the histories that they were asked with,
    per_user {"recall@20": [M]}, lists {"coverage@20": value}.
    """

    users: tuple[str, ...]
    lengths: NDArray[np.int64]
    per_user: Mapping[str, NDArray[np.float32]]
    lists: Mapping[str, float]

    def metric(self, name: str) -> NDArray[np.float64]:
        """[M]. Raises UserError for a metric that the evaluation does not have."""
        if name not in self.per_user:
            raise UserError(f"mlflow/promotion.yaml: metric {name!r} is not among {', '.join(self.per_user)}")
        return self.per_user[name].astype(np.float64)

    def of_lists(self, name: str) -> float:
        """Raises UserError for a property of the lists that the evaluation does not have."""
        if name not in self.lists:
            raise UserError(f"mlflow/promotion.yaml: {name!r} is not among {', '.join(self.lists)}")
        return self.lists[name]


@dataclass(frozen=True)
class Contender:
    """One side: a sound package, how it did, and what it costs."""

    version: Version
    judged: Judged
    latency_ms: float
    size_mb: float
    rolled_back: str | None = None  # by whom and why; it then comes back only by force


@dataclass(frozen=True)
class Question:
    """Does the gain over another's mean lie above `share` of it, by its one-sided lower bound?

    A `strict` one is asked of a winner: equal models fail it. A guard may touch its margin. `members` [M]: of whom.
    """

    name: str
    metric: str
    share: float
    strict: bool
    members: NDArray[np.bool_] | None = None
    over: str = CHAMPION

    def contrast(self, mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
        """[M, ...] each -> [m, ...] of the members, whose mean is the gain less what is asked of it.

        The other's mean is an estimate too, so a margin that is a share of it is resampled with it.
        """
        asked = mine - (1 + self.share) * theirs
        return asked if self.members is None else asked[self.members]

    def passed(self, bound: float) -> bool:
        """`bound` is the lower bound of the contrast's mean."""
        return bound > 0 if self.strict else bound >= 0


def decide(
    policy: Policy,
    occasion: Occasion,
    challenger: Contender,
    champion: Contender | None,
    baseline: Judged | None,
    remarks: Sequence[str],
) -> Decision:
    """Ask everything the policy asks. `champion` None: there is none, or it cannot be compared (then a remark says so).

    All judgements are of the same users in the same order; anything else is a ValueError.
    """
    mine, said = challenger.judged, list(remarks)
    checks = [_sound(), *_own(policy, challenger, champion)]
    asked: list[tuple[Question, Judged]] = []
    if baseline is not None and policy.baseline is not None:
        checks += _ceilings(policy, mine, baseline)
        name, margin = f"{policy.metric} above {policy.baseline.variant}", policy.baseline.margin
        asked.append((Question(name, policy.metric, margin, strict=True, over=policy.baseline.variant), baseline))
    if champion is not None:
        checks += _of_champion(policy, mine, champion.judged)
        asked += [(question, champion.judged) for question in questions(policy, mine.lengths)]
        said += too_small(policy, mine.lengths)
    answers = _answers(policy, mine, asked)
    checks += [check for check, _ in answers]
    gains = next((spread for check, spread in answers if check.gain and check.gain.over == CHAMPION), None)
    failed = [check.sentence for check in checks if not check.passed]
    return Decision(
        promoted=not failed,
        reasons=[*(failed or [check.sentence for check in checks]), *said],
        checks=checks,
        remarks=said,
        challenger=challenger.version,
        champion=champion.version if champion else None,
        users=len(mine.users),
        gains=gains,
        occasion=occasion,
        policy=policy,
    )


def refuse(policy: Policy, occasion: Occasion, challenger: Version, name: str, fault: str) -> Decision:
    """The decision on a version of which nothing else can be asked: `name` says what is wrong with it, `fault` how."""
    broken = Check(name=name, observed=0, limit=1, passed=False, sentence=fault)
    return Decision(
        promoted=False,
        reasons=[fault],
        checks=[broken],
        remarks=[],
        challenger=challenger,
        champion=None,
        users=0,
        gains=None,
        occasion=occasion,
        policy=policy,
    )


def questions(policy: Policy, lengths: NDArray[np.int64]) -> list[Question]:
    """What is asked against the champion, user by user: the main metric first. `lengths` [M] of the histories."""
    asked = [Question(f"{policy.metric} above the champion", policy.metric, policy.superiority, True)]
    asked += [Question(f"{metric} guarded", metric, -share, False) for metric, share in policy.guards.items()]
    for kind, margin, members, words in _groups(policy, lengths):
        if members.sum() >= _least(policy):
            name = f"{policy.metric} of {kind} users ({words})"
            asked.append(Question(name, policy.metric, -margin, False, members))
    return asked


def too_small(policy: Policy, lengths: NDArray[np.int64]) -> list[str]:
    """A sentence for each group that has too few users for a bound to mean anything."""
    return [
        f"{members.sum():,} {kind} users ({words}) are fewer than {_least(policy):,}, so they were not guarded by "
        "themselves"
        for kind, _, members, words in _groups(policy, lengths)
        if members.sum() < _least(policy)
    ]


def lower_bounds(values: NDArray[np.float64], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """The one-sided lower bound of each column's mean: values [M, F], a row a user -> [F]."""
    found: NDArray[np.float64] = both_bounds(values, bootstrap)[0].min(axis=0)
    return found


def both_bounds(
    values: NDArray[np.float64], bootstrap: Bootstrap
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each column's mean, values [M, F]: low [2, F] and high [2, F], each at the one-sided level, by the plain
    percentiles and by the studentised bootstrap, and the resampled means [samples, F].

    The gate believes the outer of the two. The plain one promises too much where differences are skewed, for it does
    not see that a mean and its error move together; the studentised one, which resamples t = (resampled mean - mean) /
    resampled error (Efron and Tibshirani, 1993, chapter 12), where users are few and most of them tie.
    benchmarks/gate.md has the rates of all.
    """
    mean = values.mean(axis=0)
    centred = values - mean
    moments = resampled_means(np.concatenate([centred, centred**2], axis=1), bootstrap.samples, bootstrap.seed)
    moved, squares = np.split(moments, 2, axis=1)
    error = np.sqrt(np.maximum(squares - moved**2, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(moved / error, nan=0.0, posinf=math.inf, neginf=-math.inf)  # 0 / 0: nothing has moved
    spread = centred.std(axis=0)

    def end(share: float, method: Literal["lower", "higher"]) -> NDArray[np.float64]:
        # order statistics: no interpolation between infinite ones, and never inside the level
        other: Literal["lower", "higher"] = "higher" if method == "lower" else "lower"
        with np.errstate(invalid="ignore"):
            by_t = np.where(spread > 0, mean - np.quantile(t, 1 - share, axis=0, method=other) * spread, mean)
        return np.stack([mean + np.quantile(moved, share, axis=0, method=method), by_t])

    return end(1 - bootstrap.level, "lower"), end(bootstrap.level, "higher"), mean + moved


def _least(policy: Policy) -> int:
    return policy.groups.least_users if policy.groups else 0


def _groups(policy: Policy, lengths: NDArray[np.int64]) -> Iterator[tuple[Activity, float, NDArray[np.bool_], str]]:
    """(kind, margin, members [M], which lengths) of each group that has a margin."""
    if policy.groups is None:
        return
    cut = int(np.quantile(lengths, policy.groups.quantile, method="inverted_cdf"))  # a length that somebody has
    light = lengths <= cut
    for kind, margin in policy.groups.margins.items():
        if kind == "light":
            yield kind, margin, light, f"at most {cut:,} items"
        else:
            yield kind, margin, ~light, f"more than {cut:,} items"


def _sound() -> Check:
    said = "integrity: every file has its sha256 and the golden answers came again"
    return Check(name="integrity", observed=1, limit=1, passed=True, sentence=said)


def _own(policy: Policy, challenger: Contender, champion: Contender | None) -> Iterator[Check]:
    """What the challenger must be by itself."""
    if challenger.rolled_back is not None:
        yield Check(name="rolled back", observed=1, limit=0, passed=False, sentence=challenger.rolled_back)
    for name, floor in policy.floors.items():
        value = challenger.judged.of_lists(name)
        yield _check(name, value, floor, value >= floor, "floor")
    if policy.limits.latency_ms is not None:
        yield _latency(policy.limits.latency_ms, challenger.latency_ms, champion)
    if policy.limits.size_mb is not None:
        size, limit = challenger.size_mb, policy.limits.size_mb
        yield _check("size_mb", size, limit, size <= limit, "limit")


def _latency(limit: float, taken: float, champion: Contender | None) -> Check:
    """A slow machine is no fault of the challenger: whoever takes no longer than the champion beside it may serve."""
    check = _check("latency_ms", taken, limit, taken <= limit, "limit")
    if check.passed or champion is None:
        return check
    beside = champion.latency_ms
    passed = taken <= beside
    sentence = f"{check.sentence}, {'but' if passed else 'and'} the champion takes {beside:.4g} beside it"
    return Check(name=check.name, observed=taken, limit=max(limit, beside), passed=passed, sentence=sentence)


def _ceilings(policy: Policy, mine: Judged, baseline: Judged) -> Iterator[Check]:
    for name, most in policy.ceilings.items():
        value, limit = mine.of_lists(name), most * baseline.of_lists(name)
        yield _check(name, value, limit, value <= limit, "ceiling", f", {most:.4g} times the baseline's")


def _of_champion(policy: Policy, mine: Judged, theirs: Judged) -> Iterator[Check]:
    for name, asked in policy.of_champion.items():
        value, other = mine.of_lists(name), theirs.of_lists(name)
        if asked.at_least is not None:
            limit = asked.at_least * other
            words = f", {asked.at_least:.4g} times the champion's"
            yield _check(f"{name} beside the champion's", value, limit, value >= limit, "floor", words)
        if asked.at_most is not None:
            limit = asked.at_most * other
            words = f", {asked.at_most:.4g} times the champion's"
            yield _check(f"{name} beside the champion's", value, limit, value <= limit, "ceiling", words)


def _check(name: str, value: float, limit: float, passed: bool, kind: str, source: str = "") -> Check:
    """`source` says what the limit comes from."""
    verdict = "keeps" if passed else "breaks"
    sentence = f"{name} {value:.4g} {verdict} the {kind} {limit:.4g}{source}"
    return Check(name=name, observed=value, limit=limit, passed=passed, sentence=sentence)


def _answers(policy: Policy, mine: Judged, asked: Sequence[tuple[Question, Judged]]) -> list[tuple[Check, Histogram]]:
    """The answer to each question over another's judgement, and how its gain is distributed over resampled users."""
    found: dict[int, tuple[Check, Histogram]] = {}
    everyone = [place for place, (question, _) in enumerate(asked) if question.members is None]
    groups = [[place] for place, (question, _) in enumerate(asked) if question.members is not None]
    for places in [everyone, *groups] if everyone else groups:  # one draw of users serves all that are asked of them
        columns = []
        for place in places:
            question, other = asked[place]
            if mine.users != other.users:
                raise ValueError("the two models were judged on different users")
            columns.append(question.contrast(mine.metric(question.metric), other.metric(question.metric)))
        low, high, resampled = both_bounds(np.stack(columns, axis=1), policy.bootstrap)
        for column, place in enumerate(places):
            ends = float(low[:, column].min()), float(high[:, column].max())
            found[place] = _answer(policy, mine, *asked[place], ends, resampled[:, column])
    return [found[place] for place in range(len(asked))]


def _answer(
    policy: Policy,
    mine: Judged,
    question: Question,
    other: Judged,
    ends: tuple[float, float],
    resampled: NDArray[np.float64],
) -> tuple[Check, Histogram]:
    """`ends` and `resampled` are of the contrast's mean: with the limit added, of the gain."""
    members = slice(None) if question.members is None else question.members
    values = mine.metric(question.metric)[members], other.metric(question.metric)[members]
    here, there = (float(one.mean()) for one in values)
    limit, passed = question.share * there, question.passed(ends[0])
    low, high = max(ends[0] + limit, -there), min(ends[1] + limit, 1 - there)  # no mean is beyond 0 or 1
    gain = Gain(over=question.over, users=len(values[0]), mine=here, theirs=there, low=low, high=high)
    sentence = (
        f"{question.name}: {here:.4f} against {there:.4f}, and the {policy.bootstrap.level:.0%} lower bound of the "
        f"gain, {gain.low:+.4f}, {'reaches' if passed else 'misses'} {limit:+.4f}"
    )
    counts, edges = np.histogram(resampled + limit, bins=BINS)
    return (
        Check(name=question.name, observed=gain.low, limit=limit, passed=passed, sentence=sentence, gain=gain),
        Histogram(edges=edges.tolist(), counts=counts.tolist()),
    )
