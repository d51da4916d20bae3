"""Raw ids and their indices: a person speaks in ids, a model in positions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class Vocabulary:
    """`ids[index]` is the raw id (text) of an index; order is shorter id first, then by text, so numbers count up."""

    ids: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        return {raw: index for index, raw in enumerate(self.ids)}

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """[len]: `stable_key` of each id"""
        return np.asarray([stable_key(raw) for raw in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, raw: Iterable[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Indices of the known ids in their order, and the unknown ids."""
        known, unknown = [], []
        for one in raw:
            index = self.index.get(one)
            if index is None:
                unknown.append(one)
            else:
                known.append(index)
        return np.asarray(known, dtype=np.int64), unknown

    def save(self, path: Path) -> None:
        pq.write_table(pa.table({"id": pa.array(self.ids, pa.string())}), path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        return cls(tuple(pq.read_table(path, columns=["id"]).column("id").to_pylist()))


def stable_key(text: str) -> int:
    """A number for a raw id that no other data version or machine changes: stochastic scores are drawn from it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
