"""DNR: the next item is denoised in its place after the history (Du et al., 2023, arXiv 2304.04541).

Its authors call the model DiffRec, as others call theirs. They released no code; what their text leaves open is decided
here, and said where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from noise2next.data.queries import Prefixes, Queries
from noise2next.diffusion.noise import normals
from noise2next.diffusion.process import GaussianDiffusion
from noise2next.diffusion.schedule import EmbeddingSchedule, embedding_betas
from noise2next.diffusion.step_sampler import StepSampler
from noise2next.models.base import Clock, ModelConfig, Trainable
from noise2next.nn.dropout import Dropout
from noise2next.nn.losses import softmax_cross_entropy
from noise2next.nn.packing import Packing
from noise2next.nn.time_embedding import interleaved_step_embedding
from noise2next.nn.transformer import EncoderLayer

_MOST_SEQUENCES = 1024  # denoised at one time in scoring: enough for matrix products, and it bounds their memory


class DNR(Trainable):
    """Put the target's noised vector after the history's clean ones, and read what it was from its own place.

    An item v becomes h^0 ~ N(E v, s^2), h^0 becomes h^n by n = 1..M steps of noise, and a Transformer reads h^0 from
    [history, h^n]. Steps are t = n - 1 in the code.

    Three things differ from the notes on the paper, where the noise drowns the rest. Item vectors begin at length 1
    and not D^(1/4): at first, noise of length sqrt(D) hides them at all but the first steps. In the history they count
    sqrt(D)-fold (Vaswani et al., 2017, section 3.4), beside step vectors of length sqrt(D / 2). The estimate is what
    the blocks add in the target's place, without the noised vector that they add it to. `embedding_deviation` D^(-1/4),
    `history_scale` 1 and `slot_residual` give the form of the notes.

    Logits are products of vectors, times what lets them begin as in the notes wherever vectors begin: sqrt(D) at
    length 1. Without it estimates would have to outgrow the items, which the squared error and the `chain` do not bear.
    """

    reads_order = True

    class Config(ModelConfig):
        embedding_size: PositiveInt = 128  # D
        max_length: Annotated[int, Field(ge=2)] = 50  # L
        blocks: PositiveInt = 2
        heads: PositiveInt = 2
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the tokens, and inside each block
        steps: Annotated[int, Field(ge=2)] = 200  # M
        schedule: EmbeddingSchedule = "truncated-linear"  # this one ends in noise from 21 steps on
        added_variance: NonNegativeFloat | None = None  # s^2, of the step from an item to h^0; None: the first beta
        mse_weight: NonNegativeFloat = 1.0  # of the squared error, summed over D; with `pred`, 1 draws items together
        ce_on: Literal["clean", "pred"] = "clean"  # what tells the item: h^0, as the bound has it, or its estimate
        prior_weight: NonNegativeFloat = 0.0  # of the norm that is left of h^0 after M steps; 1 in the bound
        tie: bool = False  # items are told by E itself instead of a softmax layer of their own
        embedding_deviation: PositiveFloat | None = None  # of items and classes at first, N(0, s^2); None: D^(-1/2)
        history_scale: PositiveFloat | None = None  # of the history's vectors; None: sqrt(D)
        slot_residual: bool = False  # what is read in the target's place is all that stands there
        seeds: PositiveInt = 10  # S, draws of noise that a list is the mean of
        chain: bool = False  # every reverse step instead of the first alone

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.embedding_size % self.heads:
                raise ValueError(f"embedding_size {self.embedding_size} is not a multiple of heads {self.heads}")
            embedding_betas(self.schedule, self.steps)
            return self

    step_vectors: Tensor  # [M, D]

    def __init__(self, config: Config, n_items: int) -> None:
        super().__init__()
        self.config = config
        size, betas = config.embedding_size, embedding_betas(config.schedule, config.steps)
        self.process = GaussianDiffusion(betas)
        self.added_deviation = float(betas[0] if config.added_variance is None else config.added_variance) ** 0.5
        self.step_sampler = StepSampler(config.steps)
        self.items = nn.Embedding(n_items, size)
        self.history_scale = config.history_scale or size**0.5
        self.positions = nn.Embedding(config.max_length + 1, size)  # by age: the target's place is number 0
        steps = interleaved_step_embedding(torch.arange(1, config.steps + 1), size).float()
        self.register_buffer("step_vectors", steps, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderLayer(size, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(size)
        self.classes = None if config.tie else nn.Parameter(torch.empty(n_items, size))
        self.bias = nn.Parameter(torch.zeros(n_items))
        deviation = config.embedding_deviation or size**-0.5
        self.logit_scale = 1 / (deviation**2 * size**0.5)  # first vectors have products of D deviation^2 at most
        for table in (self.items.weight, *([] if self.classes is None else [self.classes])):
            nn.init.normal_(table, std=deviation)
        nn.init.normal_(self.positions.weight, std=size**-0.25)  # N(0, 1 / sqrt(D)), the second a variance
        nn.init.constant_(self.norm.weight, deviation)  # estimates begin as long as items

    # --- training -----------------------------------------------------------------------------------------------------

    def samples(self, train: Queries) -> int:
        return len(Prefixes.of(train, self.config.max_length))

    def batches(self, train: Queries, size: int, order: torch.Generator) -> Iterator[Queries]:
        yield from Prefixes.of(train, self.config.max_length).batches(size, order)

    def loss(self, batch: Queries, phase: str, clock: Clock) -> dict[str, Tensor]:
        """The simplified bound: a squared error for one step n a sample, and the cross-entropy of the item.

        `batch`: histories whose newest item is the target.
        """
        packing = Packing(batch.indptr)
        vectors = self.items(batch.items)  # [n, D]
        item = vectors[_newest(packing)]  # E v [B, D]
        h0 = item + self.added_deviation * torch.randn_like(item)
        t, divisor = self.step_sampler(len(item))  # [B], [B]
        estimate = self._denoise(vectors, self.process.add_noise(h0, t, torch.randn_like(h0)), t, packing)
        wanted = torch.where((t == 0)[:, None], item, h0)  # the first step leads to the item itself
        errors = (estimate - wanted).square().sum(dim=1)
        self.step_sampler.record(t, errors.detach())
        told_from = h0 if self.config.ce_on == "clean" else estimate
        terms = {
            "denoising": self.config.mse_weight * (errors / divisor).mean(),
            "cross_entropy": softmax_cross_entropy(
                self.logit_scale * told_from, self._classes(), batch.items[_newest(packing)], self.bias
            ),
        }
        if self.config.prior_weight:
            left = self.process.signal[-1].square().float() * h0.square().sum(dim=1)
            terms["prior"] = self.config.prior_weight * left.mean()
        return terms

    def _denoise(self, vectors: Tensor, noised: Tensor, t: Tensor, packing: Packing) -> Tensor:
        """The estimate of h^0 [B, D] float32 from `noised` h^n [B, D], which stands in each sequence's newest place.

        vectors [n, D], of which the newest of each sequence is not read; t [B].
        """
        tokens = (self.history_scale * vectors).index_copy(0, _newest(packing), noised)
        tokens = tokens + self.positions(packing.age) + self.step_vectors[t][packing.rows]
        tokens = self.dropout(tokens)
        slot = packing.newest(tokens)
        *earlier, last = self.blocks
        for block in earlier:
            tokens = block(tokens, packing)
        found = last(tokens, packing, newest_only=True)
        estimate: Tensor = self.norm(found if self.config.slot_residual else found - slot)
        return estimate.float()

    def _classes(self) -> Tensor:
        return self.items.weight if self.classes is None else self.classes

    # --- scoring ------------------------------------------------------------------------------------------------------

    @property
    def stochastic(self) -> bool:
        return True

    @torch.no_grad()
    def score(self, queries: Queries) -> Tensor:
        """The mean over S draws of each item's logit."""
        return self._logits(self.restore(queries, range(self.config.seeds)))

    @torch.no_grad()
    def denoising(self, queries: Queries) -> Iterator[tuple[int, Tensor]]:
        """The steps that `score` takes: one, or with `chain` all."""
        estimates = self._estimates(self._asked(queries), range(self.config.seeds))
        steps = reversed(range(self.config.steps)) if self.config.chain else (self.config.steps - 1,)
        yield from zip(steps, map(self._logits, estimates), strict=False)

    @torch.no_grad()
    def restore(self, queries: Queries, draws: Sequence[int]) -> Tensor:
        """Estimates of the next item's vector, one a draw: [B, S, D]."""
        asked = self._asked(queries)
        users = torch.arange(len(asked), device=asked.device)
        found = []
        for some in torch.split(users, max(1, _MOST_SEQUENCES // len(draws))):
            estimates = self._estimates(asked.select(some), draws)
            if self.config.chain:
                *_, estimate = estimates
            else:
                estimate = next(estimates)
            found.append(estimate)
        return torch.cat(found)

    def _asked(self, queries: Queries) -> Queries:
        """The newest L - 1 items of each history, and a place for the next, which holds any item: the first."""
        history = queries.last(self.config.max_length - 1)
        n, size = len(history.items), len(history)
        items = history.items.new_zeros(n + size)
        items[torch.arange(n, device=items.device) + history.rows()] = history.items
        indptr = history.indptr + torch.arange(size + 1, device=items.device)
        return Queries(indptr, items, torch.ones(n + size, device=items.device), None, history.keys, history.n_items)

    def _logits(self, estimates: Tensor) -> Tensor:
        """The mean over draws: [B, S, D] -> [B, I]. Logits are an affine function, so the vectors' mean gives it."""
        return F.linear(self.logit_scale * estimates.mean(dim=1), self._classes(), self.bias)

    def _estimates(self, asked: Queries, draws: Sequence[int]) -> Iterator[Tensor]:
        """What the reverse chain takes h^0 for at n = M, M - 1, ..., 1: [B, S, D] each. `asked` as `_asked` has it."""
        copies = asked.select(torch.arange(len(asked), device=asked.device).repeat_interleave(len(draws)))
        packing, vectors = Packing(copies.indptr), self.items(copies.items)
        last = self.config.steps - 1
        # The paper's placeholder item is in no training sample; here it is what an unknown item is in the mean.
        unknown = self.items.weight.mean(dim=0).expand(len(copies), -1)
        x = self.process.add_noise(unknown, _full(last, copies), self._noise(asked.keys, draws, last + 1))
        for step in reversed(range(self.config.steps)):
            t = _full(step, copies)
            estimate = self._denoise(vectors, x, t, packing)
            yield estimate.view(len(asked), len(draws), -1)
            x = self.process.posterior_sample(estimate, x, t, self._noise(asked.keys, draws, step))

    def _noise(self, keys: Tensor, draws: Sequence[int], step: int) -> Tensor:
        """[B * S, D], the draws of a user side by side; the noise of x_t at t = `step` - 1, which counts M in all."""
        size, steps = self.config.embedding_size, self.config.steps + 1
        return torch.stack(
            [normals(self.scoring_seed, keys, draw * steps + step, size) for draw in draws], dim=1
        ).flatten(0, 1)


def _newest(packing: Packing) -> Tensor:
    """[B], the place of each sequence's newest token."""
    return packing.indptr[1:] - 1


def _full(step: int, queries: Queries) -> Tensor:
    """[B], the same step for every row"""
    return torch.full((len(queries),), step, device=queries.device)
