"""Sequences of different lengths laid end to end; only attention pads, in groups of like length.

oneDNN, which multiplies float32 matrices on a CPU, compiles a kernel for every new shape: 0.3 ms and 0.3 MB, more than
the product itself takes here. So sizes that follow the lengths are rounded up, and shapes come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # a group holds the lengths above one width up to the next


@dataclass(frozen=True)
class _Group:
    """Sequences of like length: rows [b], and their tokens [b, l], where `real` [b, l] is False for padding.

    Those after the first `count` repeat one and are thrown away: they round b up.
    """

    rows: Tensor
    tokens: Tensor
    real: Tensor
    count: int
    full: bool  # no padding at all
    whole: bool  # all tokens there are, in their order

    def heads_of(self, x: Tensor, at: Tensor, heads: int) -> Tensor:
        """x [n, H] at the tokens `at` [b, l] -> [b, heads, l, H / heads]"""
        found = x.view(*at.shape, -1) if self.whole else x[at]
        return found.view(*at.shape, heads, -1).transpose(1, 2)


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
        blind: Tensor | None = None,
        newest_only: bool = False,
    ) -> Tensor:
        """Scaled dot-product attention inside each sequence: query, key and value [n, H] -> [n, H].

        With `newest_only` the query is [B, H], one at each sequence's newest token, and so is the result. `causal`: a
        token sees itself and what is older. `dropout` is applied to the probabilities. Queries marked in `blind` [n]
        see all of their sequence alike.
        """
        query = query * (query.shape[1] // heads) ** -0.5
        found, order = [], []
        for group in self._groups:
            asking = group.rows[:, None] if newest_only else group.tokens
            q = group.heads_of(query, asking, heads)
            k, v = (group.heads_of(x, group.tokens, heads) for x in (key, value))
            logits = q @ k.transpose(-1, -2)  # [b, heads, l, l]
            if not group.full:
                logits = logits.masked_fill_(~group.real[:, None, None, :], -torch.inf)
            if causal and not newest_only:
                logits = logits.masked_fill_(_later(logits), -torch.inf)
            if blind is not None:
                logits = logits.masked_fill_(blind[group.tokens][:, None, :, None], 0.0)
            share = logits.softmax(dim=-1)
            out = ((share if dropout is None else dropout(share)) @ v).transpose(1, 2).flatten(2)  # [b, l, H]
            if group.whole:
                return out.flatten(0, 1)
            out, real, taken = out[: group.count], group.real[: group.count], asking[: group.count]
            found.append(out.flatten(0, 1) if newest_only else out[real])
            order.append(taken.flatten() if newest_only else taken[real])
        if not found:
            return torch.zeros_like(query)
        return torch.zeros_like(query).index_copy(0, torch.cat(order), torch.cat(found).to(query.dtype))

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
        count, place = len(rows), torch.arange(width, device=rows.device)
        full = count * width == int(self.lengths[rows].sum())
        whole = full and count == self.size
        if not whole:
            rows = torch.cat([rows, rows[:1].expand(rounded_up(count) - count)])
        real = place < self.lengths[rows, None]
        tokens = self.indptr[rows, None] + torch.minimum(place, self.lengths[rows, None] - 1)
        return _Group(rows, tokens, real, count, full, whole)


def rounded_up(count: int) -> int:
    """To the next of eight sizes between a power of two and the next: at most an eighth more."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


def evened(items: Tensor, indptr: Tensor) -> tuple[Tensor, Packing]:
    """As many sequences of one token, item 0, after the others as round the tokens up: [n] -> [n or more]."""
    spare = rounded_up(len(items)) - len(items)
    ends = indptr[-1] + torch.arange(1, spare + 1, device=indptr.device)
    return F.pad(items, (0, spare)), Packing(torch.cat([indptr, ends]))


def _later(logits: Tensor) -> Tensor:
    """[l, l]: True where a key is newer than its query."""
    return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
