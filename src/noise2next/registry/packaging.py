"""The package that is served: a model, everyone's known history, and answers it must give again.

It is a folder for MLflow's pyfunc by models-from-code: no pickle, no cloudpickle. The code is the installed
`noise2next`, pinned in the package's requirements; what lies in the folder is data:

    manifest.json                    sha256 of every other file
    MLmodel, requirements.txt, ...   MLflow's own
    served.py                        a few lines that hand requests to `Package`
    artifacts/package/
      model/                         the trained artifact, as training wrote it
      users.parquet                  raw user ids
      histories.parquet              user, item, weight, time: what each user is known to have taken
      golden.json                    some users' recommendations at packaging time
      about.json                     dataset, split, and the newest training interaction
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array
from numpy.typing import NDArray
from pydantic import Field

from noise2next.config import Dataset, ExponentialWeights, Frozen, UniformWeights
from noise2next.data.interactions import Interactions, Split
from noise2next.data.queries import Queries
from noise2next.data.vocabulary import Vocabulary, stable_key
from noise2next.data.weighting import weigh
from noise2next.errors import UserError
from noise2next.evaluation.denoising import Courses, courses
from noise2next.evaluation.draws import draw_lists
from noise2next.models.artifact import Artifact
from noise2next.models.base import HasDenoising
from noise2next.nn.top_k import top_k
from noise2next.training.device import choose_device
from noise2next.workspace import read_json, require, verify, write_json, writing

_ANY: Any = AnyType()  # type: ignore[no-untyped-call]
CONTENT = Path("artifacts") / "package"
SCORES_BYTES = 64 << 20  # of one block of scores while everyone is answered
GOLDEN_USERS = 20
GOLDEN_K = 10
GOLDEN_TOLERANCE = 1e-6  # of a score, relative above one
RECENT = ExponentialWeights(half_life_days=30)  # of recent popularity, as the entry `recent_pop` has it
REQUIREMENTS = ("noise2next", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "torch")


class About(Frozen):
    """`about.json`: where the package comes from, besides the model's own card."""

    dataset: str
    split: str
    history: str
    trained_until: int | None  # microseconds since 1970 of the newest training interaction; None without a clock
    known_until: int | None = None  # of the newest interaction of all, validation and test included; likewise


class Golden(Frozen):
    """`golden.json`: the top 10 of some users, seen items left out."""

    users: list[str]
    items: list[list[str]]
    scores: list[list[float]]


class Answer(Frozen):
    """What one query gets: raw item ids, best first."""

    items: list[str] = Field(description="Raw item ids, best first; fewer than k where no more are left.")
    scores: list[float] = Field(description="One a listed item, falling; comparable within this list only.")
    known: int = Field(description="How many items of the history the model knows; with 0 nothing here is personal.")
    unknown: list[str] = Field(description="The items of the given history that the model does not know.")


class Reply(Answer):
    """What anyone gets: the model's answer, or recent popularity where it knows nothing to answer from."""

    fallback: Literal["recent_popularity"] | None = Field(
        description="What was listed instead of the model's answer; null where the model answered."
    )
    reason: Literal["unknown user", "empty history", "no known item"] | None = Field(
        description="Why there is a fallback; null where there is none."
    )


@dataclass(frozen=True)
class Asked:
    """One query: a user by raw id, or, where no user is named, the items that someone took, oldest first."""

    user: str | None = None
    history: Sequence[str] = ()


class DrawnAnswer(Frozen):
    """What one query gets of many draws: raw item ids by the share of the draws in which each makes the top k."""

    items: list[str]
    shares: list[float]
    diversity: float  # 1 - the common part of two draws' lists, mean over the pairs of draws
    distinct: int  # items in all draws together
    known: int
    unknown: list[str]


@dataclass(frozen=True)
class Questions:
    """Queries, and of each the items that the model does not know."""

    queries: Queries
    unknown: list[list[str]]

    @property
    def lengths(self) -> list[int]:
        """How many items of each history the model knows."""
        return self.queries.lengths.tolist()


@dataclass(frozen=True)
class Package:
    """A model that answers raw ids: known users, and histories that no user in training had."""

    artifact: Artifact
    users: Vocabulary
    histories: Interactions
    about: About

    @classmethod
    def of(cls, artifact: Artifact, split: Split, dataset: Dataset) -> Package:
        """From a trained model and the split it was trained on; a user's known history is all of the split.

        Raises UserError where the split was prepared anew since.
        """
        if artifact.items.ids != split.items.ids:
            raise UserError(
                f"{artifact.card.variant.name}: its items are not those of the prepared split; "
                f"`noise2next train --dataset {artifact.card.dataset} --variant {artifact.card.variant.name}` again"
            )
        known = _all_known(split)
        weighted = weigh(known, artifact.card.variant.weighting, dataset.has_clock)
        parts = [one.times for one in (split.train, split.valid, split.test) if one.times is not None and len(one)]
        clocked = dataset.has_clock and split.train.times is not None and len(split.train)
        about = About(
            dataset=artifact.card.dataset,
            split=split.config.kind,
            history=split.config.history,
            trained_until=int(split.train.times.max()) if clocked and split.train.times is not None else None,
            known_until=max(int(times.max()) for times in parts) if clocked else None,
        )
        package = cls(artifact, split.users, weighted, about)
        package._begin()
        return package

    @classmethod
    def load(cls, content: Path, device: str = "cpu") -> Package:
        """From the folder `artifacts/package` of a verified package."""
        artifact = Artifact.load(content / "model", choose_device(device))
        users = Vocabulary.load(content / "users.parquet")
        package = cls(
            artifact,
            users,
            _read_histories(content / "histories.parquet", len(users)),
            About.model_validate(read_json(content / "about.json")),
        )
        package._begin()
        return package

    def for_users(self, users: Sequence[str], k: int, exclude_seen: bool = True) -> list[Answer]:
        """One answer a user, from what is known of them. Raises UserError for a user who is not known."""
        return self.answer(self.ask_users(users), k, exclude_seen)

    def for_histories(self, histories: Sequence[Sequence[str]], k: int, exclude_seen: bool = True) -> list[Answer]:
        """One answer a history, oldest item first; nobody in training need have it. Unknown items are reported."""
        return self.answer(self.ask_histories(histories), k, exclude_seen)

    def reply(self, asked: Sequence[Asked], k: int, exclude_seen: bool = True) -> list[Reply]:
        """One reply a query, in their order, also to users who are not known and histories of which nothing is."""
        by_user = [place for place, one in enumerate(asked) if one.user is not None and one.user in self.users.index]
        by_history = [place for place, one in enumerate(asked) if one.user is None and one.history]
        users = self.for_users([str(asked[place].user) for place in by_user], k, exclude_seen)
        histories = self.for_histories([asked[place].history for place in by_history], k, exclude_seen)
        answers = dict(zip([*by_user, *by_history], [*users, *histories], strict=True))
        return [self._reply(one, answers.get(place), k) for place, one in enumerate(asked)]

    def ask_users(self, users: Sequence[str]) -> Questions:
        """What is known of each user. Raises UserError for a user who is not known."""
        places, unknown = self.users.encode(users)
        if unknown:
            raise UserError(
                f"user {unknown[0]!r} is not among the {len(self.users):,} users of dataset {self.about.dataset}; "
                "give the user's items instead (--history ID,ID,... or the column `history`)"
            )
        return Questions(self._everyone.select(torch.from_numpy(places).to(self._device)), [[] for _ in users])

    def ask_histories(self, histories: Sequence[Sequence[str]]) -> Questions:
        """Each history, oldest item first, weighted as one in training."""
        encoded = [self.artifact.items.encode(history) for history in histories]
        rows = np.repeat(np.arange(len(encoded)), [len(known) for known, _ in encoded])
        items = np.concatenate([known for known, _ in encoded]) if encoded else np.zeros(0, dtype=np.int64)
        bare = Interactions.of(rows, items, None, len(encoded))
        weighting = self.artifact.card.variant.weighting
        # weights by age have no age to go by: all of a bare history counts as now
        weighted = bare if weighting.kind == "exponential" else weigh(bare, weighting, has_clock=False)
        keys = np.asarray([stable_key("\n".join(history)) for history in histories], dtype=np.int64)
        queries = Queries.of(weighted, len(self.artifact.items), keys, self._device)
        return Questions(queries, [unknown for _, unknown in encoded])

    def answer(self, questions: Questions, k: int, exclude_seen: bool = True) -> list[Answer]:
        """One answer a query."""
        if not len(questions.queries):
            return []
        scores, items = self._rank(questions.queries, k, exclude_seen)
        ids = self.artifact.items.ids
        answers = []
        rows = zip(scores.tolist(), items.tolist(), questions.lengths, questions.unknown, strict=True)
        for row_scores, row_items, known, missing in rows:
            left = sum(score > -math.inf for score in row_scores)
            answers.append(
                Answer(
                    items=[ids[item] for item in row_items[:left]],
                    scores=row_scores[:left],
                    known=known,
                    unknown=missing,
                )
            )
        return answers

    def draw(self, questions: Questions, k: int, draws: int, exclude_seen: bool = True) -> list[DrawnAnswer]:
        """One answer a query, of `draws` draws of a stochastic model: draw 0 is the list that `answer` gives."""
        with _ONE_FLOAT32:
            seen = questions.queries if exclude_seen else None
            found = draw_lists(self.artifact.model, questions.queries, seen, k, draws, SCORES_BYTES >> 20)
        ids = self.artifact.items.ids
        rows = zip(
            *found.by_share(), found.diversity(), found.distinct(), questions.lengths, questions.unknown, strict=True
        )
        return [
            DrawnAnswer(
                items=[ids[item] for item in items if item >= 0],
                shares=shares[items >= 0].tolist(),
                diversity=diversity,
                distinct=distinct,
                known=known,
                unknown=unknown,
            )
            for items, shares, diversity, distinct, known, unknown in rows
        ]

    def denoise(self, questions: Questions, k: int, exclude_seen: bool = True) -> Courses:
        """How the list of one query comes about, step by step. Raises UserError for a model without such steps."""
        model = self.artifact.model
        if not isinstance(model, HasDenoising):
            raise UserError(
                f"{self.artifact.card.variant.name}: its list does not come about in steps; name with --variant a "
                "diffusion model, as a DiffRec"
            )
        with _ONE_FLOAT32:
            return courses(model.denoising(questions.queries), questions.queries if exclude_seen else None, k)

    def everyone(
        self, k: int, exclude_seen: bool = True, most: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Blocks of all users in order: users [b], items [b, k] as indices, scores [b, k] (-inf: no item is left).

        b is what fits into SCORES_BYTES, and at most `most`.
        """
        size = max(1, SCORES_BYTES // (4 * max(1, len(self.artifact.items))))
        size = size if most is None else min(size, most)
        for block in torch.split(torch.arange(len(self.users), device=self._device), size):
            scores, items = self._rank(self._everyone.select(block), k, exclude_seen)
            yield block.cpu().numpy(), items.cpu().numpy(), scores.cpu().numpy()

    def golden(self) -> Golden:
        """Recommendations of some users who have a history, spread over the vocabulary."""
        active = np.flatnonzero(self.histories.lengths)
        chosen = active[np.unique(np.linspace(0, len(active) - 1, min(GOLDEN_USERS, len(active))).astype(np.int64))]
        users = [self.users.ids[user] for user in chosen]
        answers = self.for_users(users, GOLDEN_K)
        return Golden(users=users, items=[one.items for one in answers], scores=[one.scores for one in answers])

    def _reply(self, asked: Asked, answer: Answer | None, k: int) -> Reply:
        if answer is not None and answer.known:
            return Reply(**dict(answer), fallback=None, reason=None)
        items, scores = self._recent
        reason: Literal["unknown user", "empty history", "no known item"] = "no known item"
        if answer is None:
            reason = "empty history" if asked.user is None else "unknown user"
        return Reply(
            items=items[:k],
            scores=scores[:k],
            known=0,
            unknown=[] if answer is None else answer.unknown,
            fallback="recent_popularity",
            reason=reason,
        )

    @cached_property
    def _recent(self) -> tuple[list[str], list[float]]:
        """All items and how often they were taken, best first; the newer the more it counts, where there is a clock."""
        clocked = self.about.trained_until is not None and self.histories.times is not None
        taken = weigh(self.histories, RECENT if clocked else UniformWeights(), clocked)
        counts = np.bincount(taken.items, taken.weights, len(self.artifact.items))
        scores, items = top_k(torch.from_numpy(counts)[None], len(counts))
        return [self.artifact.items.ids[item] for item in items[0].tolist()], scores[0].tolist()

    @cached_property
    def _everyone(self) -> Queries:
        return Queries.of(self.histories, len(self.artifact.items), self.users.keys, self._device)

    @cached_property
    def _device(self) -> torch.device:
        tensors = [*self.artifact.model.parameters(), *self.artifact.model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def _begin(self) -> None:
        with _ONE_FLOAT32:
            self.artifact.model.begin_scoring()

    @torch.inference_mode()
    def _rank(self, queries: Queries, k: int, exclude_seen: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with _ONE_FLOAT32:
            scores = self.artifact.model.score(queries)
        if exclude_seen:
            seen = (queries.rows(), queries.items)
            scores = scores.index_put(seen, scores.new_tensor(-torch.inf))
        best, items = top_k(scores, k)
        return best.float(), items


def build(model: Path, split: Split, dataset: Dataset, place: Path, described: Model | None = None) -> Package:
    """Write the package of the trained artifact in the folder `model` to `place`, whole or not at all."""
    verify(require(model, "train"))
    package = Package.of(Artifact.load(model, choose_device("cpu")), split, dataset)
    with tempfile.TemporaryDirectory() as scratch, writing(place) as folder:
        content = Path(scratch) / CONTENT.name
        content.mkdir()
        shutil.copytree(model, content / "model")
        package.users.save(content / "users.parquet")
        _write_histories(package.histories, content / "histories.parquet")
        write_json(content / "golden.json", package.golden().model_dump(mode="json"))
        write_json(content / "about.json", package.about.model_dump(mode="json"))
        _save_pyfunc(folder, content, package, split.config.mask_seen, described or Model())
    return package


def check_golden(place: Path) -> Package:
    """Load the package at `place` and ask its golden questions again. Raises UserError where an answer differs."""
    content = place / CONTENT
    package = Package.load(content)
    golden = Golden.model_validate(read_json(content / "golden.json"))
    for user, items, scores, answer in zip(
        golden.users, golden.items, golden.scores, package.for_users(golden.users, GOLDEN_K), strict=True
    ):
        if answer.items != items or not np.allclose(
            answer.scores, scores, rtol=GOLDEN_TOLERANCE, atol=GOLDEN_TOLERANCE
        ):
            raise UserError(
                f"{place}: user {user!r} gets {answer.items[:3]}... and not {items[:3]}... as when it was packaged; "
                "train and register again with the installed version"
            )
    return package


class _OneFloat32:
    """One path for float32 products in every process, so that golden answers come again to the last digits.

    It is torch's default, which on a CPU is also three times quicker for a single row than the path for batches. The
    path is the process's, so of several threads the first to come sets it and the last to go sets it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = "highest"

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.set_float32_matmul_precision(self._before)


_ONE_FLOAT32 = _OneFloat32()


def size_mb(place: Path) -> float:
    """Of all files below `place`."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6


# --- the pyfunc -------------------------------------------------------------------------------------------------------


def answer_frame(package: Package, frame: pd.DataFrame, k: int, exclude_seen: bool) -> pd.DataFrame:
    """One row a query: `history` (raw item ids, oldest first) is asked where a row has one, else `user_id`.

    Raises UserError for a row with neither, and for a history that is no list.
    """
    replies = package.reply([_asked(row) for row in frame.to_dict("records")], k, exclude_seen)
    return pd.DataFrame([reply.model_dump() for reply in replies], columns=list(Reply.model_fields))


def _asked(row: Mapping[Hashable, Any]) -> Asked:
    """The query of one row. A history may also be the text of a JSON list, as CSV needs it."""
    history, user = row.get("history"), row.get("user_id")
    if isinstance(history, str):
        try:
            history = json.loads(history)
        except json.JSONDecodeError as error:
            raise UserError(f'history: {history!r} is no JSON list; write it as ["id", "id"]') from error
    if isinstance(history, list | tuple | np.ndarray):
        return Asked(history=[str(item) for item in history])
    if not _absent(history):
        raise UserError(f"history: {history!r} is not a list of item ids")
    if _absent(user):
        raise UserError("a query needs a `user_id` or a `history`, a list of item ids; this one has neither")
    return Asked(user=str(user))


def _absent(value: Any) -> bool:
    """None, or what pandas puts into a cell that a record left out."""
    return value is None or value is pd.NA or value != value


def signature(mask_seen: bool) -> ModelSignature:
    """What the pyfunc takes and gives; seen items are left out by default where the dataset has it so."""
    text, number = DataType.string, DataType.double
    return ModelSignature(
        inputs=Schema([ColSpec(text, "user_id", required=False), ColSpec(_ANY, "history", required=False)]),
        outputs=Schema(
            [
                ColSpec(Array(text), "items"),
                ColSpec(Array(number), "scores"),
                ColSpec(DataType.long, "known"),
                ColSpec(Array(text), "unknown"),
                ColSpec(text, "fallback", required=False),
                ColSpec(text, "reason", required=False),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("k", DataType.long, 10), ParamSpec("exclude_seen", DataType.boolean, mask_seen)],
        ),
    )


def _save_pyfunc(folder: Path, content: Path, package: Package, mask_seen: bool, described: Model) -> None:
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={CONTENT.name: str(content)},
        signature=signature(mask_seen),
        input_example=(_example(package), {"k": 10, "exclude_seen": mask_seen}),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        mlflow_model=described,
    )


def _example(package: Package) -> pd.DataFrame:
    return pd.DataFrame({"history": [list(package.artifact.items.ids[:3])]})


# --- histories --------------------------------------------------------------------------------------------------------


def _all_known(split: Split) -> Interactions:
    """Everything known of every user: train, valid and test of items that the model has, in order of time."""
    known = split.train.followed_by(split.valid).followed_by(split.test)
    keep = known.items >= 0
    users, items = known.users[keep], known.items[keep]
    times = None if known.times is None else known.times[keep]
    if times is not None:  # an official split's parts need not follow each other in time
        order = np.lexsort((times, users))
        items, times = items[order], times[order]
    return Interactions.of(users, items, times, known.n_users)


def _write_histories(histories: Interactions, path: Path) -> None:
    columns = {
        "user": pa.array(histories.users.astype(np.int32)),
        "item": pa.array(histories.items),
        "weight": pa.array(histories.weights),
    }
    if histories.times is not None:
        columns["time"] = pa.array(histories.times)
    pq.write_table(pa.table(columns), path, compression="zstd")


def _read_histories(path: Path, n_users: int) -> Interactions:
    table = pq.read_table(path)
    times = table.column("time").to_numpy() if "time" in table.column_names else None
    found = Interactions.of(table.column("user").to_numpy(), table.column("item").to_numpy(), times, n_users)
    return found.weighted(table.column("weight").to_numpy())
