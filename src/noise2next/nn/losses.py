"""Losses that models share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from noise2next.nn.sparse import SparseRows

_LOGITS_ON_CPU, _LOGITS_ON_GPU = 1 << 20, 1 << 26  # in one block: what a core's cache holds, what fills a GPU
_FEWEST_ROWS = 64  # in one block: with fewer, matrix products are slow
_STEP = 16  # of a block's rows, so that the last block's shape comes back: oneDNN compiles a kernel for each


def row_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row: [B, I], [B, I] -> [B] float32, also of a bfloat16 output.

    The gradient goes to `output` alone and is the difference, scaled: one pass where autograd's own takes four.
    """
    error: Tensor = _RowError.apply(output.float(), target)  # type: ignore[no-untyped-call]
    return error


class _RowError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        difference = output - target
        ctx.save_for_backward(difference)
        squares: Tensor = torch.linalg.vecdot(difference, difference)
        return squares / difference.shape[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        difference: Tensor = ctx.saved_tensors[0]
        return difference * (gradient * (2 / difference.shape[1]))[:, None], None


def softmax_cross_entropy(hidden: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """The mean over rows of -log softmax(hidden table' + bias) at its target: float32, or float64 of such inputs.

    hidden [n, D], table [I, D], targets [n] int64, bias [I]; n > 0. The logits of all rows are never held at once:
    blocks of rows pass through one buffer, which yields their loss and their gradients in the same visit, so nothing
    is computed twice. Under autocast the products are bfloat16, softmax and sums float32. Once differentiable.
    """
    return weighted_softmax_cross_entropy(hidden, table, targets, hidden.new_ones(()).expand(len(hidden)), bias)[0]


def weighted_softmax_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`softmax_cross_entropy` with rows that count `weights` [n], and each row's own loss [n], without its weight.

    The first alone is differentiable, and not in the weights.
    """
    device = hidden.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        mean, losses = _SoftmaxCrossEntropy.apply(hidden, table, targets, weights, bias, products)  # type: ignore[no-untyped-call]
    return mean, losses


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """With E = exp(logits - max) and S its row sums, dloss/dlogits = G / (S n), where G is E less S at the target.

    The division is left to the small matrices beside G: the gradient of `hidden` is (G table) / (S n), that of `table`
    is G' (hidden / (S n)), that of `bias` G' (1 / (S n)); weights go where 1 / n is. Rows that only round n up have
    none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        products: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        sums = torch.float64 if products == torch.float64 else torch.float32
        n, spare = len(hidden), -len(hidden) % _STEP
        hidden, targets = F.pad(hidden, (0, 0, 0, spare)), F.pad(targets, (0, spare))
        share = F.pad(weights.to(sums) / n, (0, spare))[:, None]  # of each row in the mean
        losses = hidden.new_empty(len(hidden), 1, dtype=sums)
        for_hidden, for_table, for_bias = (
            torch.zeros_like(x, dtype=sums) if x is not None and needed else None
            for x, needed in zip(
                (hidden, table, bias), (*ctx.needs_input_grad[:2], ctx.needs_input_grad[4]), strict=True
            )
        )
        factors, classes = hidden.to(products), table.to(products)
        rows = max(_FEWEST_ROWS, (_LOGITS_ON_CPU if hidden.is_cpu else _LOGITS_ON_GPU) // len(table) // _STEP * _STEP)
        buffer = factors.new_empty(min(rows, len(hidden)), len(table))
        for start in range(0, len(hidden), rows):
            factor, at = factors[start : start + rows], targets[start : start + rows, None]
            product = torch.mm(factor, classes.T, out=buffer[: len(factor)])
            logits = product.to(sums)  # the same memory unless the products are bfloat16
            if bias is not None:
                logits += bias
            largest, right = logits.amax(dim=1, keepdim=True), logits.gather(1, at)
            shares = logits.sub_(largest).exp_()
            total = shares.sum(dim=1, keepdim=True)
            slope, scale = shares.scatter_add_(1, at, -total), share[start : start + rows] / total
            losses[start : start + rows] = total.log() + largest - right
            if for_bias is not None:
                for_bias += (slope.T @ scale).squeeze(1)
            slope = product.copy_(slope) if products != sums else slope
            if for_hidden is not None:
                torch.mul(slope @ classes, scale, out=for_hidden[start : start + rows])
            if for_table is not None:
                scaled = (factor * scale).to(products)
                if products == sums:
                    for_table.addmm_(slope.T, scaled)
                else:
                    for_table += slope.T @ scaled
        ctx.save_for_backward(None if for_hidden is None else for_hidden[:n], for_table, for_bias)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, table, bias)]
        mean, losses = (losses * share).sum(), losses[:n, 0]
        ctx.mark_non_differentiable(losses)
        return mean, losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        for_hidden, for_table, for_bias = (
            None if x is None else (gradient * x).to(dtype)
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return for_hidden, for_table, None, None, for_bias, None


def multinomial_nll(logits: Tensor, target: SparseRows) -> Tensor:
    """-sum_i x_i log softmax(logits)_i, its mean over rows: logits [B, I], target x [B, I] -> a number, in float32.

    The negative log-likelihood of a row's items as draws from one multinomial (Liang et al., WWW 2018, equation 2). The
    target stays sparse, and the gradient is made in one pass over the logits.
    """
    loss: Tensor = _MultinomialNLL.apply(logits.float(), target)  # type: ignore[no-untyped-call]
    return loss


class _MultinomialNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: SparseRows) -> Tensor:
        log_shares = logits.log_softmax(dim=1)
        places = target.rows() * target.width + target.columns
        ctx.save_for_backward(log_shares, places, target.values, target.sums())
        return -(target.values * log_shares.view(-1)[places]).sum() / len(logits)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log_shares, places, values, sums = ctx.saved_tensors
        gradient = gradient / len(log_shares)
        of_logits = log_shares.exp().mul_((gradient * sums)[:, None])
        of_logits.view(-1)[places] -= gradient * values  # no place comes twice
        return of_logits, None


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over the latent, its mean over rows: two [B, Z] -> a number."""
    terms = mean.square() + log_variance.exp() - log_variance - 1
    return terms.sum(dim=1).mean() / 2
