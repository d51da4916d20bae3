"""Speed of L-DiffRec and LightGCN beside plain forms of the same mathematics, interleaved in one run, one thread.

    python benchmarks/speed_rows.py [--rounds 3] [--pieces 1000] [--cases l_diffrec,judge,lightgcn]

Writes speed_rows.json and .md beside itself; some minutes. Times are CPU seconds of this process, so other work on the
machine disturbs them little; memory bandwidth and clock it does share, and the goals are seconds of a quiet core. Exit
code 1 where one is missed. Data: ML-1M clean of DiffRec's authors below NOISE2NEXT_SHARED (default ../shared), else a
generated log of its size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"

import noise2next  # noqa: F401  (before torch loads: it says how OpenMP's threads wait)

# isort: split
import plain_rows
import row_data
import side_by_side
import torch
from plain_diffrec import DenseSplit, PlainDiffRec, PlainNetwork, loader
from plain_rows import PlainLDiffRec, PlainLightGCN
from side_by_side import MOST_APART, Case, difference, optimiser, train_steps
from torch import Tensor, nn

from noise2next.config import EvaluationConfig, UniformWeights
from noise2next.data.interactions import Split
from noise2next.data.queries import Queries
from noise2next.evaluation.evaluator import Evaluator
from noise2next.models.base import Clock
from noise2next.models.l_diffrec import LDiffRec
from noise2next.models.light_gcn import LightGCN

CUTOFFS = (10, 20, 50, 100)
L_DIFFREC = {  # the authors' settings
    "steps": 40,
    "noise_scale": 0.005,
    "noise_min": 0.005,
    "noise_max": 0.02,
    "encoder": (300,),
    "hidden": (300,),
    "clusters": 2,
}
USERS = 400  # in a batch of L-DiffRec
PREFERENCES = 2048  # in a batch of LightGCN


@dataclass(frozen=True)
class Data:
    """What every case is made of."""

    split: Split
    train: Queries
    item_clusters: Tensor


def load() -> tuple[dict[str, Any], Data]:
    """The split with its items in two clusters, and what it is."""
    name, split = row_data.load()
    how, labels = row_data.halves(split)
    everyone = Queries.of(split.train, split.n_items, split.users.keys)
    train = everyone.select(everyone.lengths.nonzero().squeeze(1))  # as the training stage does
    facts = {"data": name, "users": len(train), "items": train.n_items, "interactions": len(train.items)}
    return {**facts, "clusters": how}, Data(split, train, torch.from_numpy(labels))


# --- L-DiffRec --------------------------------------------------------------------------------------------------------


def l_diffrec_of(data: Data, **options: Any) -> tuple[LDiffRec, PlainLDiffRec]:
    """Both forms with the same options and weights."""
    torch.manual_seed(1)
    model = LDiffRec(LDiffRec.Config(**{**L_DIFFREC, **options}), data.train.n_items, data.item_clusters)
    of = model.config
    network = PlainNetwork(of.encoder[-1], of.hidden, of.step_embedding_size)
    network.dropout.p = of.dropout
    plain = PlainLDiffRec(
        [(data.item_clusters == one).nonzero().squeeze(1) for one in range(of.clusters)],
        model.latent_sizes,
        of.input_dropout,
        of.diffusion_weight,
        PlainDiffRec(network, of.steps, of.noise_scale, of.noise_min, of.noise_max, of.first_beta),
    )
    take_weights(plain, model)
    return model, plain


@torch.no_grad()
def take_weights(plain: PlainLDiffRec, model: LDiffRec) -> None:
    """Into the plain form from ours."""
    for mine, other in zip(learned(plain), as_plain(model, "data"), strict=True):
        mine.copy_(other)


def learned(plain: PlainLDiffRec) -> list[Tensor]:
    """Weight and bias of each layer of the denoiser, then of the encoders and the decoder."""
    network = plain.diffusion.network
    layers = (network.embedding, *network.layers, *plain.encoders, plain.decoder)
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def as_plain(model: LDiffRec, what: Literal["data", "grad"]) -> list[Tensor]:
    """What ours has learned, or its gradients, in the order and layout of `learned`.

    Ours keeps an encoder's weight item by item, and the denoiser's first layer in two halves.
    """

    def of(layer: nn.Module) -> tuple[Tensor, Tensor]:
        return getattr(layer.weight, what), getattr(layer.bias, what)

    net = model.denoiser
    halves = [getattr(layer.weight, what) for layer in (net.from_items, net.from_step)]
    found = [*of(net.embedding), torch.cat(halves, dim=1), getattr(net.from_step.bias, what)]
    for layer in (*net.middle, net.decode):
        found += of(layer)
    for encoder in model.encoders:
        weight, bias = of(encoder.first)
        found += [weight.T, bias]
    return [*found, *of(model.decoders[0].first)]


def l_diffrec(data: Data) -> Case:
    """Its training epoch."""
    model, plain = l_diffrec_of(data)
    steps, plain_steps = optimiser(model), optimiser(plain.network)
    rows = DenseSplit(data.split).rows
    rows = rows[rows.any(axis=1)]

    def ours(count: int) -> None:
        train_steps(model, steps, islice(model.batches(data.train, USERS, torch.Generator().manual_seed(0)), count))

    def plainly(count: int) -> None:
        plain.network.train()
        for (x0,) in islice(loader(rows, USERS, shuffle=True), count):
            value = plain.loss(x0)
            plain_steps.zero_grad()
            value.backward()
            plain_steps.step()

    def apart() -> float:
        one, other = l_diffrec_of(data, input_dropout=0.0, dropout=0.0)
        some = torch.Generator().manual_seed(0)
        train_steps(one, optimiser(one), islice(one.batches(data.train, USERS, some), 2))  # away from the first weights
        take_weights(other, one)
        batch = next(one.batches(data.train, USERS, some))
        latent = len(batch), one.config.encoder[-1]
        torch.manual_seed(2)
        spread = torch.randn(latent)
        (t, divisor), noise = one.step_sampler(len(batch)), torch.randn(latent)
        torch.manual_seed(2)
        found = sum(one.loss(batch, "train", Clock()).values())
        expected = other.loss_of(batch.multi_hot(), spread, t, divisor, noise)
        one.zero_grad()
        found.backward()
        expected.backward()
        gradients = [parameter.grad for parameter in learned(other)]
        return max(map(difference, [found, *as_plain(one, "grad")], [expected, *gradients]))

    pieces = -(-len(data.train) // USERS)
    return Case("L-DiffRec: training epoch", f"batch of {USERS} users", pieces, 0.8, ours, plainly, apart, unit="s")


def judge(data: Data) -> Case:
    """Validation and test of L-DiffRec, after an epoch: ours in one pass of scores, the plain form in one for each."""
    model, plain = l_diffrec_of(data)
    train_steps(model, optimiser(model), model.batches(data.train, USERS, torch.Generator().manual_seed(0)))
    take_weights(plain, model)
    model.eval()
    config = EvaluationConfig(cutoffs=CUTOFFS)
    evaluator = Evaluator(data.split, UniformWeights(), ["valid", "test"], config, torch.device("cpu"))
    whole = DenseSplit(data.split)

    def apart() -> float:
        plain.network.eval()
        some = data.train.select(torch.arange(USERS))
        return difference(model.score(some), plain.score(some.multi_hot()))

    return Case(
        "L-DiffRec: validation and test judged",
        "both parts",
        1,
        1.5,
        lambda _: evaluator.judge(model),
        lambda _: [whole.evaluate(plain, part, USERS, CUTOFFS) for part in ("valid", "test")],
        apart,
        unit="s",
    )


# --- LightGCN ---------------------------------------------------------------------------------------------------------


def light_gcn(data: Data) -> Case:
    """Its training epoch, with the settings of the authors' code."""
    train = data.train
    torch.manual_seed(1)
    model = LightGCN(LightGCN.Config(embedding_size=64, layers=3, decay=1e-4), train.n_items, train.keys)
    of = model.config
    plain = PlainLightGCN(
        len(train),
        train.n_items,
        torch.stack([train.rows(), train.items], dim=1),
        of.embedding_size,
        of.layers,
        of.decay,
    )
    model.begin_training(train)
    histories = [one.tolist() for one in torch.tensor_split(train.items, train.indptr[1:-1])]
    steps, plain_steps = optimiser(model), optimiser(plain)

    def ours(count: int) -> None:
        train_steps(model, steps, islice(model.batches(train, PREFERENCES, torch.Generator().manual_seed(0)), count))

    def plainly(count: int) -> None:
        draws = min(count * PREFERENCES, len(train.items))
        for batch in plain_rows.preferences(histories, train.n_items, draws).split(PREFERENCES):
            value = plain.loss(*batch.unbind(dim=1))
            plain_steps.zero_grad()
            value.backward()
            plain_steps.step()

    def apart() -> float:
        with torch.no_grad():
            plain.nodes.copy_(torch.cat([model.users, model.items]))
        batch = next(model.batches(train, PREFERENCES, torch.Generator().manual_seed(1)))
        order = train.keys.argsort()
        users = order[torch.searchsorted(train.keys[order], batch.keys)]
        found = sum(model.loss(batch, "train", Clock()).values())
        expected = plain.loss(users, *batch.items.view(-1, 2).unbind(dim=1))
        model.zero_grad()
        plain.zero_grad()
        found.backward()
        expected.backward()
        gradients = torch.cat([model.users.grad, model.items.grad])
        return max(difference(found, expected), difference(gradients, plain.nodes.grad))

    pieces = -(-model.samples(train) // PREFERENCES)
    return Case(
        "LightGCN: training epoch", f"batch of {PREFERENCES} preferences", pieces, 10.0, ours, plainly, apart, unit="s"
    )


CASES: dict[str, Callable[[Data], Case]] = {"l_diffrec": l_diffrec, "judge": judge, "lightgcn": light_gcn}


# --- telling ----------------------------------------------------------------------------------------------------------


def tell(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Speed of L-DiffRec and LightGCN",
        "",
        f"`python benchmarks/speed_rows.py` on {result['data']} ({result['users']:,} users, {result['items']:,} items, "
        f"{result['interactions']:,} interactions to train on). {side_by_side.measured_on(result)}",
        "",
        side_by_side.verdict(result),
        "",
        *side_by_side.table(result),
        "",
        f"L-DiffRec as its authors set it on these data: T = 40, encoders and denoiser of 300, two clusters of items "
        f"({result['clusters']}), batches of {USERS}. LightGCN as its authors' code: vectors of 64, three layers, "
        f"batches of {PREFERENCES:,}.",
        "",
        "The plain form (`plain_rows.py`) is the same mathematics on dense matrices: rows with every zero in them "
        "through torch's linear layers, the likelihood against the dense row, validation and test scored one after the "
        "other, metrics in Python loops; for LightGCN the square normalised adjacency times all vectors in each layer, "
        "and preferences drawn one by one. Ours reads an encoder's input as its few items, judges both parts from one "
        "pass of scores, spreads vectors as means over neighbours, and draws all preferences of a batch at once. The "
        "last column is the largest difference between both sides on the same weights and draws, without dropout, as a "
        "share of the largest value: of losses and all gradients in training, of scores in judging; above "
        f"{MOST_APART:g} a goal counts as missed.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(side_by_side.main(__file__, __doc__, CASES, load, tell, pieces=1000))
