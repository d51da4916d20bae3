"""The gate: may the challenger take the champion's place? The policy is `mlflow/promotion.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from noise2next.config import Frozen, Share
from noise2next.errors import UserError
from noise2next.evaluation.significance import resampled_means


class Bootstrap(Frozen):
    """How a bound on a paired mean is found."""

    samples: PositiveInt = 2000
    level: Share = 0.95
    seed: Annotated[int, Field(ge=0)] = 1


class Baseline(Frozen):
    """A variant that every champion must beat on the main metric."""

    variant: str
    margin: NonNegativeFloat = 0.0


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
    baseline: Baseline | None = None
    floors: Mapping[str, float] = {}
    limits: Limits = Limits()

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


class Version(Frozen):
    """One version in the registry, as a decision names it."""

    version: str
    variant: str
    data_version: str
    fingerprint: str


class Check(Frozen):
    """One question of the gate."""

    name: str
    observed: float
    limit: float
    passed: bool
    sentence: str


class Decision(Frozen):
    """What the gate said, and why; kept with the model version."""

    promoted: bool
    reasons: list[str]
    checks: list[Check]
    challenger: Version
    champion: Version | None
    users: int
    policy: Policy


@dataclass(frozen=True)
class Judged:
    """A model on the test window: users [M] as raw ids, per_user {"recall@20": [M]}, lists {"coverage@20": value}."""

    users: tuple[str, ...]
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
            raise UserError(f"mlflow/promotion.yaml: floors: {name!r} is not among {', '.join(self.lists)}")
        return self.lists[name]


def decide(
    policy: Policy,
    challenger: Version,
    judged: Judged,
    latency_ms: float,
    size_mb: float,
    champion: tuple[Version, Judged] | None,
    baseline: Judged | None,
    remarks: list[str],
) -> Decision:
    """Ask everything the policy asks. `champion` None: there is none, or it cannot be compared (then a remark says so).

    All judgements are of the same users in the same order; anything else is a ValueError.
    """
    checks = [*_properties(policy, judged, latency_ms, size_mb)]
    if baseline is not None and policy.baseline is not None:
        question = (f"{policy.metric} above {policy.baseline.variant}", policy.metric, policy.baseline.margin)
        checks += _gains(policy, judged, baseline, [question])
    if champion is not None:
        questions = [(f"{policy.metric} above the champion", policy.metric, policy.superiority)]
        questions += [(f"{metric} guarded", metric, -share) for metric, share in policy.guards.items()]
        checks += _gains(policy, judged, champion[1], questions)
    failed = [check.sentence for check in checks if not check.passed]
    return Decision(
        promoted=not failed,
        reasons=[*(failed or [check.sentence for check in checks]), *remarks],
        checks=checks,
        challenger=challenger,
        champion=champion[0] if champion else None,
        users=len(judged.users),
        policy=policy,
    )


def _properties(policy: Policy, judged: Judged, latency_ms: float, size_mb: float) -> list[Check]:
    checks = []
    for name, floor in policy.floors.items():
        value = judged.of_lists(name)
        checks.append(_check(name, value, floor, value >= floor, "floor"))
    for name, value, limit in (
        ("latency_ms", latency_ms, policy.limits.latency_ms),
        ("size_mb", size_mb, policy.limits.size_mb),
    ):
        if limit is not None:
            checks.append(_check(name, value, limit, value <= limit, "limit"))
    return checks


def _check(name: str, value: float, limit: float, passed: bool, kind: str) -> Check:
    verdict = "keeps" if passed else "breaks"
    sentence = f"{name} {value:.4g} {verdict} the {kind} {limit:.4g}"
    return Check(name=name, observed=value, limit=limit, passed=passed, sentence=sentence)


def _gains(policy: Policy, one: Judged, other: Judged, asked: Sequence[tuple[str, str, float]]) -> list[Check]:
    """For each (name, metric, share): does the one-sided lower bound of the gain of `one` lie above `share`?"""
    if one.users != other.users:
        raise ValueError("the two models were judged on different users")
    mine = np.stack([one.metric(metric) for _, metric, _ in asked], axis=1)
    theirs = np.stack([other.metric(metric) for _, metric, _ in asked], axis=1)
    resampled = resampled_means(mine - theirs, policy.bootstrap.samples, policy.bootstrap.seed)
    bounds = np.quantile(resampled, 1 - policy.bootstrap.level, axis=0)
    return [
        _gain(name, here, there, bound, share * there, policy.bootstrap.level)
        for (name, _, share), here, there, bound in zip(
            asked, mine.mean(axis=0).tolist(), theirs.mean(axis=0).tolist(), bounds.tolist(), strict=True
        )
    ]


def _gain(name: str, mine: float, theirs: float, bound: float, limit: float, level: float) -> Check:
    # strictly above where a gain is asked: against itself a model gains exactly nothing; a guard may touch its margin
    passed = bound > limit if limit >= 0 else bound >= limit
    sentence = (
        f"{name}: {mine:.4f} against {theirs:.4f}, and the {level:.0%} lower bound of the gain, {bound:+.4f}, "
        f"{'reaches' if passed else 'misses'} {limit:+.4f}"
    )
    return Check(name=name, observed=bound, limit=limit, passed=passed, sentence=sentence)
