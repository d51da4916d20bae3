"""Items that a user never took, drawn evenly and in one go."""

from __future__ import annotations

import torch
from torch import Tensor

from noise2next.data.queries import Queries


class Unseen:
    """The complement of each of B histories, ready to be drawn from.

    With a history's distinct items s_0 < s_1 < ..., the r-th item outside it is r plus the number of j with
    s_j - j <= r. So one draw of r and one binary search give an exact sample, and nothing is drawn again.
    """

    def __init__(self, histories: Queries) -> None:
        once = histories.folded()
        place = torch.arange(len(once.items), device=once.device)
        rows = once.rows()
        self.n_items = once.n_items
        self.firsts = once.indptr[:-1]
        self.room = (once.n_items - once.lengths).clamp(min=1)  # [B]
        self.floors = rows * once.n_items + once.items - (place - self.firsts[rows])  # ascending

    def draw(self, rows: Tensor) -> Tensor:
        """For each of `rows` [m] an item [m] outside that history; a history of all items gets the last one."""
        room = self.room[rows]
        share = torch.rand(len(rows), dtype=torch.float64, device=rows.device)
        rank = (share * room).long().clamp(max=room - 1)
        before = torch.searchsorted(self.floors, rows * self.n_items + rank, right=True) - self.firsts[rows]
        return (rank + before).clamp(max=self.n_items - 1)
