"""Judge a model on the validation and test parts of a split. The only place that opens test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from noise2next.config import EvaluationConfig, Noise, Weighting
from noise2next.data.interactions import Interactions, Split
from noise2next.data.noise import reading
from noise2next.data.queries import Queries
from noise2next.errors import UserError
from noise2next.evaluation import lists
from noise2next.evaluation.metrics import Truth, accuracy, hits
from noise2next.evaluation.ranking import rank
from noise2next.models.base import Recommender

Part = Literal["valid", "test"]


@dataclass(frozen=True)
class Judgement:
    """How one model did on one part.

    users [M]: those with something to find and at least one known item to go by; left_out: how many had something to
    find but nothing to go by. per_user: `recall@20` -> float32 [M]. top [M, K] int32: the lists, -1 is padding.
    lists: `coverage@20` and its kind, one number each. unmasked: as per_user, with what was seen left in the ranking;
    empty unless the evaluator was asked for it.
    """

    users: NDArray[np.int64]
    left_out: int
    per_user: dict[str, NDArray[np.float32]]
    top: NDArray[np.int32]
    lists: dict[str, float]
    unmasked: dict[str, NDArray[np.float32]]

    def means(self) -> dict[str, float]:
        """Each metric's mean over the users."""
        return {name: float(values.mean(dtype=np.float64)) for name, values in self.per_user.items()}


@dataclass(frozen=True)
class Asked:
    """The judged users [M] of one part: what a model is asked with, what their lists leave out, what they took."""

    users: NDArray[np.int64]
    queries: Queries
    seen: Queries | None
    truth: Truth

    def select(self, places: NDArray[np.int64]) -> Asked:
        """Those at `places` [m], in that order."""
        chosen = torch.from_numpy(places).to(self.queries.device)
        seen = None if self.seen is None else self.seen.select(chosen)
        return Asked(self.users[places], self.queries.select(chosen), seen, self.truth)


@dataclass(frozen=True)
class _Pass:
    """Parts that read the same history, so that one pass of scores serves them all."""

    queries: Queries
    seen: dict[Part, Queries | None]
    rows: dict[Part, NDArray[np.int64]]  # the places among the queries of each part's users
    users: NDArray[np.int64]


class Evaluator:
    """Everything that does not depend on the weights, made once; `judge` may then be called after every epoch."""

    def __init__(
        self,
        split: Split,
        weighting: Weighting,
        parts: Sequence[Part],
        config: EvaluationConfig,
        device: torch.device | str,
        noise: Noise | None = None,
        seed: int = 0,
        unmasked: bool = False,
    ) -> None:
        """`seed` decides what `noise` puts into the histories that are read.

        With `unmasked` the same scores are ranked once more, with what was seen left in.
        """
        self._config = config
        self._unmasked = unmasked
        self._truth = {part: Truth.of(split.truth(part), split.n_items) for part in parts}
        self._popularity = lists.popularity(split.train, split.n_items)
        self._trained_users = int((split.train.lengths > 0).sum())
        self._left_out: dict[Part, int] = {}
        shared = split.config.history == "train"
        groups: list[list[Part]] = [list(parts)] if shared else [[part] for part in parts]
        self._passes = [
            self._prepare(split, reading(split.known(group[0]), split, weighting, noise, seed), group, device)
            for group in groups
        ]

    def judge(self, model: Recommender) -> dict[Part, Judgement]:
        """Rank every item for every user of every part. The model keeps its mode of training."""
        mode = model.training
        model.eval()
        try:
            return {part: judgement for each in self._passes for part, judgement in self._judge(model, each).items()}
        finally:
            model.train(mode)

    def asked(self, part: Part) -> Asked:
        """The users whom `judge` judges on `part`."""
        each = next(one for one in self._passes if part in one.rows)
        return Asked(each.users, each.queries, each.seen[part], self._truth[part]).select(each.rows[part])

    def _prepare(self, split: Split, read: Interactions, parts: list[Part], device: torch.device | str) -> _Pass:
        def on_device(interactions: Interactions) -> Queries:
            return Queries.of(interactions, split.n_items, split.users.keys, device)

        queries = on_device(read)
        readable = queries.lengths.cpu().numpy() > 0
        judged = {part: np.flatnonzero((self._truth[part].sizes > 0) & readable) for part in parts}
        for part, users in judged.items():
            self._left_out[part] = int((self._truth[part].sizes > 0).sum()) - len(users)
            if not len(users):
                raise UserError(
                    f"split {split.config.kind}: no user of the {part} part has a history in training, so nobody can "
                    f"be judged; take another split or larger shares"
                )
        users = np.unique(np.concatenate(list(judged.values())))
        chosen = torch.from_numpy(users).to(device)
        masks = {part: split.seen(part) for part in parts}
        return _Pass(
            queries.select(chosen),
            {part: None if mask is None else on_device(mask).select(chosen) for part, mask in masks.items()},
            {part: np.searchsorted(users, mine) for part, mine in judged.items()},
            users,
        )

    def _judge(self, model: Recommender, each: _Pass) -> dict[Part, Judgement]:
        cutoffs = self._config.cutoffs
        seen = [*each.seen.values(), *([None] if self._unmasked else [])]
        ranked = rank(model, each.queries, seen, max(cutoffs), self._config.memory_mb)
        unmasked = ranked.pop() if self._unmasked else None
        found: dict[Part, Judgement] = {}
        for (part, rows), lists_of_all in zip(each.rows.items(), ranked, strict=True):
            users, top = each.users[rows], lists_of_all.items.numpy()[rows]
            found[part] = Judgement(
                users,
                self._left_out[part],
                self._accuracy(part, users, top),
                top,
                lists.describe(top, self._popularity, self._trained_users, cutoffs),
                {} if unmasked is None else self._accuracy(part, users, unmasked.items.numpy()[rows]),
            )
        return found

    def _accuracy(self, part: Part, users: NDArray[np.int64], top: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        truth = self._truth[part]
        return accuracy(hits(top, users, truth), truth.sizes[users], self._config.cutoffs)


def judge(
    model: Recommender,
    split: Split,
    weighting: Weighting,
    parts: Sequence[Part],
    config: EvaluationConfig,
    device: torch.device | str,
    noise: Noise | None = None,
    seed: int = 0,
) -> dict[Part, Judgement]:
    """Judge `model`, which lies on `device`, on `parts`. Parts that read the same history share one pass of scores.

    A history is noised (by `seed`) and weighted as in training. What was seen is left out by structure, and stays in
    |g| if the part repeats it. Raises UserError when a part has nobody to judge.
    """
    return Evaluator(split, weighting, parts, config, device, noise, seed).judge(model)
