"""The pre-norm Transformer encoder layer (Vaswani et al., 2017; Xiong et al., 2020) on sequences without padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from noise2next.nn.dropout import Dropout
from noise2next.nn.packing import Packing


class EncoderLayer(nn.Module):
    """x + Attention(LN(x)), then x + FeedForward(LN(x)), with dropout on the attention, the inner layer and both sums.

    The feed-forward part is H -> 4H -> H with the tanh form of GELU (Hendrycks and Gimpel, 2016).
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        """`size` H is a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(size)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.mix = nn.Linear(size, size)
        self.before_feed_forward = nn.LayerNorm(size)
        self.widen, self.narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.dropout = Dropout(dropout)
        for layer in (self.mix, self.widen, self.narrow):
            nn.init.xavier_normal_(layer.weight)

    def forward(
        self, tokens: Tensor, packing: Packing, newest_only: bool = False, blind: Tensor | None = None
    ) -> Tensor:
        """tokens [n, H] -> [n, H], or with `newest_only` the newest token of each sequence [B, H].

        `blind` [n] marks tokens that see all tokens of their sequence alike, see `Packing.attend`.
        """
        normed = self.before_attention(tokens)
        asking = packing.newest(normed) if newest_only else normed
        keep = packing.newest(tokens) if newest_only else tokens
        seen = packing.attend(
            self.query(asking),
            self.key(normed),
            self.value(normed),
            self.heads,
            dropout=self.dropout,
            blind=None if newest_only else blind,
            newest_only=newest_only,
        )
        keep = keep + self.dropout(self.mix(seen))
        inner = F.gelu(self.widen(self.before_feed_forward(keep)), approximate="tanh")
        found: Tensor = keep + self.dropout(self.narrow(self.dropout(inner)))
        return found
