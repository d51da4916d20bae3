"""Sequences of different lengths laid end to end; only attention pads, in groups of like length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # a group holds the lengths above one width up to the next


@dataclass(frozen=True)
class _Group:
    """Sequences of like length: rows [b], and their tokens [b, l], where `real` [b, l] is False for padding."""

    rows: Tensor
    tokens: Tensor
    real: Tensor


class Packing:
    """B sequences laid end to end: n tokens, oldest first, sequence by sequence.

    lengths [B], indptr [B+1], rows [n] (the sequence of a token), age [n] (0 for a sequence's newest token). Sequences
    without tokens are allowed.
    """

    def __init__(self, indptr: Tensor) -> None:
        """indptr [B+1] int64, as in `Queries`."""
        self.indptr = indptr
        self.lengths = indptr.diff()
        self.size = len(indptr) - 1

    @cached_property
    def rows(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(self.size, device=self.indptr.device), self.lengths)

    @cached_property
    def age(self) -> Tensor:
        return self.indptr[1:][self.rows] - 1 - torch.arange(len(self.rows), device=self.indptr.device)

    def newest(self, tokens: Tensor) -> Tensor:
        """The newest token of each sequence, zeros where it has none: [n, H] -> [B, H]."""
        if not len(tokens):
            return tokens.new_zeros(self.size, *tokens.shape[1:])
        found = tokens[(self.indptr[1:] - 1).clamp(min=0)]
        return torch.where((self.lengths > 0)[:, None], found, 0)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        causal: bool = False,
        dropout: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Scaled dot-product attention inside each sequence: query [n, H] or [B, H], key and value [n, H] -> as query.

        A query of [B, H] stands at its sequence's newest token. `causal`: a token sees itself and what is older.
        `dropout` is applied to the probabilities.
        """
        newest_only = len(query) == self.size and len(query) != len(key)
        found, order = [], []
        for group in self._groups:
            places = group.rows[:, None] if newest_only else group.tokens
            q, k, v = (
                _by_head(x[at], heads) for x, at in ((query, places), (key, group.tokens), (value, group.tokens))
            )
            logits = (q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)  # [b, heads, l, l]
            seen = group.real[:, None, None, :]
            if causal and not newest_only:
                seen = seen & torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril()
                seen = seen | torch.eye(logits.shape[-1], dtype=torch.bool, device=query.device)  # for padded queries
            share = logits.masked_fill_(~seen, -torch.inf).softmax(dim=-1)
            out = ((share if dropout is None else dropout(share)) @ v).transpose(1, 2).flatten(2)  # [b, l, H]
            found.append(out.flatten(0, 1) if newest_only else out[group.real])
            order.append(group.rows if newest_only else group.tokens[group.real])
        if not found:
            return torch.zeros_like(query)
        places = torch.cat(order)
        return torch.zeros_like(query).index_copy(0, places, torch.cat(found).to(query.dtype))

    @cached_property
    def _groups(self) -> list[_Group]:
        lengths = self.lengths.cpu()
        widths = torch.tensor([0, *_WIDTHS, torch.iinfo(torch.int64).max])
        kind = torch.bucketize(lengths, widths)
        found = []
        for one in range(1, len(widths)):
            rows = (kind == one).nonzero().squeeze(1)
            if len(rows):
                found.append(self._group(rows.to(self.indptr.device), int(lengths[rows].max())))
        return found

    def _group(self, rows: Tensor, width: int) -> _Group:
        """Padding stands after a sequence's tokens, and repeats its newest."""
        place = torch.arange(width, device=rows.device)
        real = place < self.lengths[rows, None]
        tokens = self.indptr[rows, None] + torch.minimum(place, self.lengths[rows, None] - 1)
        return _Group(rows, tokens, real)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[b, l, H] -> [b, heads, l, H / heads]"""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)
