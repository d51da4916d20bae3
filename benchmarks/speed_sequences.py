"""Speed of sequence models beside plain forms of the same mathematics, interleaved in one run, one thread.

    python benchmarks/speed_sequences.py [--rounds 3] [--pieces 10] [--cases ce,bce]

Writes speed_sequences.json and .md beside itself; some minutes. Both sides work through the first so many batches of
the same users, which is scaled to an epoch. Times are CPU seconds of this process, so other work on the
machine disturbs them little; memory bandwidth and clock it does share. Exit code 1 where a goal is missed. Data: Beauty
in the form of DiffuRec's authors below NOISE2NEXT_SHARED (default ../shared), else generated histories of its size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import numpy as np
import plain_sequences
import pyarrow.parquet as pq
import side_by_side
import torch
from plain_sequences import PlainDiffuRec, PlainSASRec
from side_by_side import MOST_APART, Case, difference, optimiser, train_steps
from torch import Tensor

from noise2next.data.interactions import Interactions
from noise2next.data.negatives import Unseen
from noise2next.data.queries import Queries
from noise2next.models.base import Clock
from noise2next.models.diffurec import DiffuRec
from noise2next.models.sas_rec import SASRec

HERE = Path(__file__).resolve().parent
USERS, ITEMS = 22_363, 12_068  # the training part of Beauty


# --- data -------------------------------------------------------------------------------------------------------------


def load() -> tuple[dict[str, Any], Queries]:
    """The training histories, and what they are."""
    name, train = histories()
    return {"data": name, "users": len(train), "items": train.n_items, "interactions": len(train.items)}, train


def histories() -> tuple[str, Queries]:
    """Those of the official file, or some of its size."""
    shared = Path(os.environ.get("NOISE2NEXT_SHARED", HERE.parent.parent / "shared"))
    log = shared / "data" / "diffurec_official" / "amazon_beauty.parquet"
    if not log.is_file():
        return "generated histories of the size of Beauty", generated()
    rows = pq.read_table(log, filters=[("split", "=", "train")]).to_pandas().sort_values(["user_id", "position"])
    items, known = np.unique(rows["item_id"], return_inverse=True)
    return "Amazon Beauty", queries_of(rows["user_id"].to_numpy(), known, len(items))


def generated() -> Queries:
    """At least three items a user, long-tailed in length and in popularity."""
    draw = np.random.default_rng(0)
    lengths = 3 + draw.lognormal(0.6, 1.2, USERS).astype(np.int64)
    popularity = 1 / np.arange(20, ITEMS + 20)
    items = draw.choice(ITEMS, lengths.sum(), p=popularity / popularity.sum())
    return queries_of(np.repeat(np.arange(USERS), lengths), items, ITEMS)


def queries_of(users: np.ndarray, items: np.ndarray, n_items: int) -> Queries:
    """From rows by user, each user's in order."""
    histories = Interactions.of(users, items, None, int(users[-1]) + 1)
    return Queries.of(histories, n_items, np.arange(histories.n_users))


def in_lists(train: Queries) -> list[list[int]]:
    """The histories as the plain forms read them: items from 1."""
    return [(one + 1).tolist() for one in torch.tensor_split(train.items, train.indptr[1:-1])]


# --- SASRec's training epoch ------------------------------------------------------------------------------------------


def sas_rec(train: Queries, loss: str, dropout: float, size: int = 128) -> Case:
    """Both sides take the same users in the same order."""
    config = SASRec.Config(embedding_size=64, loss=loss, dropout=dropout)
    torch.manual_seed(1)
    model = SASRec(config, train.n_items)
    plain = PlainSASRec(
        train.n_items, config.embedding_size, config.blocks, config.heads, config.max_length, config.dropout
    )
    histories = in_lists(train)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    steps, plain_steps = optimiser(model), optimiser(plain)

    def ours(count: int) -> None:
        batches = model.batches(train, size, torch.Generator().manual_seed(0))
        train_steps(model, steps, islice(batches, count))

    def plainly(count: int) -> None:
        plain.train()
        taken = plain_sequences.batches(histories, order[: count * size], size, config.max_length)
        for at, (inputs, targets) in enumerate(taken):
            if loss == "ce":
                value = plain.cross_entropy(inputs, targets)
            else:
                users = order[at * size : (at + 1) * size]
                wrong = plain_sequences.negatives(histories, users, targets, train.n_items)
                value = plain.binary_cross_entropy(inputs, targets, wrong)
            plain_steps.zero_grad()
            value.backward()
            plain_steps.step()

    def apart() -> float:
        if dropout:
            return sas_rec(train, loss, 0.0, size).apart()
        ours(2)  # away from the first weights
        take_weights(plain, model)
        users = order[:size]
        batch = train.select(torch.tensor(users))
        inputs, targets = next(plain_sequences.batches(histories, users, size, config.max_length))
        torch.manual_seed(2)
        found = sum(model.loss(batch, "train", Clock()).values())
        if loss == "ce":
            return difference(found, plain.cross_entropy(inputs, targets))
        torch.manual_seed(2)
        recent = batch.last(config.max_length + 1).before_last()[0]
        wrong = torch.zeros_like(targets).masked_scatter(targets > 0, 1 + Unseen(batch).draw(recent.rows()))
        return difference(found, plain.binary_cross_entropy(inputs, targets, wrong))

    against = {"ce": "cross-entropy against all items", "bce": "the published loss"}[loss]
    return Case(
        f"SASRec, {against}: training epoch",
        f"batch of {size} users",
        -(-model.samples(train) // size),
        3.0,
        ours,
        plainly,
        apart,
    )


def take_weights(plain: PlainSASRec, model: SASRec) -> None:
    """The plain form's table has a row of zeros for padding before the items."""
    weights = model.state_dict()
    table = weights["items.weight"]
    plain.load_state_dict({**weights, "items.weight": torch.cat([table.new_zeros(1, table.shape[1]), table])})


# --- DiffuRec's training epoch and reverse step -----------------------------------------------------------------------


def plain_of(model: DiffuRec) -> PlainDiffuRec:
    """The plain form of the same options and weights; its padding is item 0, ours the last row."""
    of = model.config
    dropouts = of.embedding_dropout, of.dropout
    plain = PlainDiffuRec(model.n_items, of.embedding_size, of.blocks, of.heads, of.steps, dropouts, of.mask_keys)
    weights = model.state_dict()
    plain.load_state_dict({**weights, "items.weight": weights["items.weight"].roll(1, dims=0)})
    return plain


def diffurec(train: Queries, mask_keys: bool, dropout: bool = True, size: int = 512) -> Case:
    """Both sides take prefixes in an order of their own: which ones makes no difference to the time."""
    off = {} if dropout else {"dropout": 0.0, "embedding_dropout": 0.0, "uncertainty": 0.5}
    torch.manual_seed(1)
    model = DiffuRec(DiffuRec.Config(mask_keys=mask_keys, **off), train.n_items)
    plain, of = plain_of(model), model.config
    samples = plain_sequences.prefixes(in_lists(train))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    steps, plain_steps = optimiser(model), optimiser(plain)

    def drawn(count: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """As the model draws: steps, noise of the target, lambda."""
        t = torch.randint(of.steps, (count,))
        return (
            t,
            torch.randn(count, of.embedding_size),
            torch.randn(tokens, of.embedding_size).add_(1).mul_(of.uncertainty),
        )

    def noised(targets: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return model.process.add_noise(plain.items(targets), t, noise)

    def ours(count: int) -> None:
        train_steps(model, steps, islice(model.batches(train, size, torch.Generator().manual_seed(0)), count))

    def plainly(count: int) -> None:
        plain.train()
        for inputs, targets in plain_sequences.prefix_batches(samples, order[: count * size], size, of.max_length):
            t, noise, share = drawn(len(targets), inputs.numel())
            share = share.view(*inputs.shape, -1)
            value = plain.cross_entropy(inputs, targets, noised(targets, t, noise), t, share)
            plain_steps.zero_grad()
            value.backward()
            plain_steps.step()

    def apart() -> float:
        if dropout:
            return diffurec(train, mask_keys, False, size).apart()
        batch = next(model.batches(train, size, torch.Generator().manual_seed(0)))
        inputs = torch.zeros(len(batch), of.max_length, dtype=torch.int64)
        history, targets = batch.before_last()
        places = torch.arange(of.max_length) >= of.max_length - history.lengths[:, None]
        inputs[places] = history.items + 1
        torch.manual_seed(2)
        found = model.loss(batch, "train", Clock())["cross_entropy"]
        torch.manual_seed(2)
        t, noise, lambdas = drawn(len(batch), int(history.lengths.sum()) if mask_keys else inputs.numel())
        share = torch.zeros(*inputs.shape, of.embedding_size)
        share[places if mask_keys else torch.ones_like(places)] = lambdas
        return difference(found, plain.cross_entropy(inputs, targets + 1, noised(targets + 1, t, noise), t, share))

    form = "padding left out" if mask_keys else "as published"
    return Case(
        f"DiffuRec, {form}: training epoch",
        f"batch of {size} prefixes",
        -(-len(samples) // size),
        6.0 if mask_keys else 2.8,
        ours,
        plainly,
        apart,
    )


def diffurec_reverse(train: Queries, mask_keys: bool, size: int = 512) -> Case:
    """One evaluation's reverse steps of `size` users: 32 for each of the batches of users."""
    torch.manual_seed(1)
    model = DiffuRec(DiffuRec.Config(mask_keys=mask_keys), train.n_items).eval()
    plain, of = plain_of(model).eval(), model.config
    users = train.select(torch.arange(size))
    histories = in_lists(users)
    padded = torch.tensor([[0] * (of.max_length - len(one)) + one[-of.max_length :] for one in histories])

    def plain_chain(count: int) -> Tensor:
        """The vectors restored after `count` steps, with no lambda, so that nothing in them is drawn."""
        x_t, t = torch.randn(size, of.embedding_size), torch.zeros(size, dtype=torch.int64)
        with torch.no_grad():
            for step in list(reversed(range(of.steps)))[:count]:
                share = torch.randn(*padded.shape, of.embedding_size).add_(1).mul_(uncertainty[0])
                x0 = plain(padded, x_t, t + step, share)
                x_t = model.process.posterior_sample_wide(x0, x_t, t + step, torch.randn_like(x0))
        return x0

    def our_chain(count: int) -> Tensor:
        with torch.no_grad():
            *_, (_, x0) = islice(model._reverse(users), count)
        return x0

    uncertainty = [of.uncertainty]

    def apart() -> float:
        model.config = of.model_copy(update={"uncertainty": 0.0})
        uncertainty[0] = 0.0
        found, expected = our_chain(2), plain_chain(2)
        model.config, uncertainty[0] = of, of.uncertainty
        return float((found - expected).abs().max() / expected.abs().max())

    form = "padding left out" if mask_keys else "as published"
    return Case(
        f"DiffuRec, {form}: reverse steps of an evaluation",
        f"step of {size} users",
        of.steps * -(-len(train) // size),
        2.3,
        our_chain,
        plain_chain,
        apart,
    )


CASES: dict[str, Callable[[Queries], Case]] = {
    "ce": lambda train: sas_rec(train, "ce", 0.5),
    "bce": lambda train: sas_rec(train, "bce", 0.5),
    "diffurec": lambda train: diffurec(train, mask_keys=False),
    "diffurec_mask_keys": lambda train: diffurec(train, mask_keys=True),
    "reverse": lambda train: diffurec_reverse(train, mask_keys=False),
    "reverse_mask_keys": lambda train: diffurec_reverse(train, mask_keys=True),
}


# --- telling ----------------------------------------------------------------------------------------------------------


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Speed of the sequence models",
        "",
        f"`python benchmarks/speed_sequences.py` on {result['data']} ({result['users']:,} users, {result['items']:,} "
        f"items, {result['interactions']:,} interactions to train on). {side_by_side.measured_on(result)}",
        "",
        side_by_side.verdict(result),
        "",
        *side_by_side.table(result),
        "",
        "The plain form (`plain_sequences.py`) is the same mathematics without bucketing: Python lists cut user by "
        "user, padded on the left, every padded place computed, the logits of all places at once. Ours computes no "
        "padding, takes cross-entropy in blocks of rows that stay in the cache, and uses oneDNN's float32 products, "
        "which are as exact as torch's default (checked at start). The last column is the relative difference of both "
        f"sides on the same weights and draws, without dropout; above {MOST_APART:g} a goal counts as missed.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(side_by_side.main(__file__, __doc__, CASES, load, tell, pieces=10))
