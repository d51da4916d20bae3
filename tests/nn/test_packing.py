"""Attention on packed sequences is attention on padded ones."""

import pytest
import torch
from torch import Tensor

from noise2next.nn.packing import Packing, evened, rounded_up

LENGTHS = torch.tensor([3, 0, 1, 9, 33, 4, 5, 2])
HEADS, SIZE = 2, 6


def packing() -> Packing:
    return Packing(torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)]))


def drawn(seed: int, rows: int | None = None) -> Tensor:
    return torch.randn(
        rows or int(LENGTHS.sum()), SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def one_by_one(q: Tensor, k: Tensor, v: Tensor, causal: bool, lengths: Tensor = LENGTHS) -> Tensor:
    """Each sequence and head by itself."""
    found = torch.zeros_like(q)
    stop = 0
    for length in lengths.tolist():
        start, stop = stop, stop + length
        for head in range(HEADS):
            part = slice(head * SIZE // HEADS, (head + 1) * SIZE // HEADS)
            logits = q[start:stop, part] @ k[start:stop, part].T / (SIZE // HEADS) ** 0.5
            if causal:
                logits += torch.full_like(logits, -torch.inf).triu(1)
            found[start:stop, part] = logits.softmax(dim=-1) @ v[start:stop, part]
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_is_attention_inside_each_sequence(causal: bool) -> None:
    q, k, v = (drawn(seed) for seed in range(3))
    torch.testing.assert_close(packing().attend(q, k, v, HEADS, causal), one_by_one(q, k, v, causal))


def test_a_query_a_sequence_stands_at_the_newest_token() -> None:
    pack, k, v = packing(), drawn(1), drawn(2)
    q = drawn(0)
    expected = pack.newest(pack.attend(q, k, v, HEADS))
    torch.testing.assert_close(pack.attend(pack.newest(q), k, v, HEADS, newest_only=True), expected)


def test_gradients_flow_to_every_token_and_are_finite() -> None:
    q, k, v = (drawn(seed).requires_grad_() for seed in range(3))
    packing().attend(q, k, v, HEADS, causal=True).square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))
    assert (v.grad.abs().sum(dim=1) > 0).all()


def test_ages_count_from_the_newest_and_empty_sequences_have_zeros() -> None:
    pack = packing()
    assert pack.age[:4].tolist() == [2, 1, 0, 0]
    tokens = drawn(0)
    newest = pack.newest(tokens)
    assert newest[1].abs().sum() == 0
    torch.testing.assert_close(newest[0], tokens[2])
    assert Packing(torch.zeros(3, dtype=torch.int64)).newest(tokens[:0]).shape == (2, SIZE)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [0, 2], [3, 0, 0, 1]], ids=str)
def test_the_newest_alone_may_ask_where_there_are_as_many_sequences_as_tokens(lengths: list[int]) -> None:
    pack = Packing(torch.tensor([0, *lengths]).cumsum(0))
    q, k, v = (drawn(seed, len(lengths)) for seed in range(3))
    expected = pack.newest(pack.attend(q, k, v, HEADS))
    torch.testing.assert_close(pack.attend(pack.newest(q), k, v, HEADS, newest_only=True), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_groups_that_are_rounded_up_attend_as_each_sequence_alone(causal: bool) -> None:
    lengths = torch.randint(1, 4, (37,), generator=torch.Generator().manual_seed(0))
    many = Packing(torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))
    q, k, v = (drawn(seed, int(lengths.sum())).requires_grad_() for seed in range(3))
    found, expected = many.attend(q, k, v, HEADS, causal), one_by_one(q, k, v, causal, lengths)
    torch.testing.assert_close(found, expected)
    asked = many.attend(many.newest(q), k, v, HEADS, causal, newest_only=True)
    torch.testing.assert_close(asked, many.newest(expected))
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_sizes_are_rounded_up_by_an_eighth_at_most_and_few_are_left() -> None:
    sizes = [rounded_up(count) for count in range(1, 1025)]
    assert all(count <= size <= count * 9 / 8 for count, size in zip(range(1, 1025), sizes, strict=True))
    assert len(set(sizes)) < 70


def test_an_evened_packing_leaves_the_sequences_and_adds_single_tokens() -> None:
    items, packing = evened(torch.arange(1, 59), torch.tensor([0, 3, 3, 58]))
    assert len(items) == 60
    assert items[:58].tolist() == list(range(1, 59))
    assert packing.lengths.tolist() == [3, 0, 55, 1, 1]
