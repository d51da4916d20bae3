"""A gated recurrent unit over sequences of different lengths, without a step spent on padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from noise2next.nn.packing import Packing


def gru_states(gru: nn.GRU, tokens: Tensor, packing: Packing) -> Tensor:
    """The state after each token, every sequence from zero: tokens [n, E] -> [n, H].

    torch wants the tokens by their place in the sequence, and in each place the longest sequence first. They go there
    straight from where they lie end to end: half the time of padding all to one length, and never slower than padding
    in groups of like length.
    """
    if not len(tokens):
        return tokens.new_zeros(0, gru.hidden_size)
    longest_first = packing.lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(longest_first).index_copy(
        0, longest_first, torch.arange(packing.size, device=tokens.device)
    )
    place = packing.lengths[packing.rows] - 1 - packing.age
    order = (place * packing.size + rank[packing.rows]).argsort()
    with torch.autocast(tokens.device.type, enabled=False):  # cuDNN's would be float16, whatever was asked for
        states, _ = gru(PackedSequence(tokens[order].to(next(gru.parameters()).dtype), torch.bincount(place).cpu()))
    return torch.empty_like(states.data).index_copy(0, order, states.data)
