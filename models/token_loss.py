"""The loss of a vocabulary, computed over a few tokens at a time so that large ones fit in memory.

The scores of N tokens are N x V numbers, of which cross-entropy and its gradient hold several copies.
Here the scores of some rows at a time are computed, reduced to what the loss needs, and computed again
in the backward pass.  Liger-Kernel has the same for CUDA; this is plain PyTorch, for any device.
Legend: N tokens, D dim, V vocabulary, R rows of a piece.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.transforms import data_is_at_hand

# A piece has this share of the rows, within these numbers of scores: with fewer, a product would read
# the whole matrix for a handful of rows; with more, it would gain no speed.
SHARE_OF_ROWS = 32
FEWEST_SCORES, MOST_SCORES = 1 << 20, 1 << 26


def token_nll(x: torch.Tensor, weight_VD: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of ``targets`` in nats, with scores ``x weight^T``.

    x: (..., D) float.  weight: (V, D).  targets: (...) int64.  Returns (...) in float32, or in float64
    if ``x`` is.  Products have the dtype of ``x``, or that of autocast; the softmax and the sum over
    pieces in the gradient of ``weight`` are float32 or wider.  Large problems take about a tenth of the
    memory of the scores, and compute the scores twice in training.
    """
    kind = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight_VD = x.to(dtype), weight_VD.to(dtype)
    x_ND, targets_N = x.flatten(0, -2), targets.flatten()
    rows = rows_of_a_piece(len(x_ND), len(weight_VD))
    if rows >= len(x_ND) or not data_is_at_hand(x):
        scores_NV = _scores(x_ND, weight_VD)
        return F.cross_entropy(scores_NV, targets_N, reduction="none").view_as(targets)
    return _PiecewiseNLL.apply(x_ND, weight_VD, targets_N, rows).view_as(targets)


def rows_of_a_piece(tokens: int, vocab_size: int) -> int:
    """Return the number of tokens whose scores are held at a time."""
    fewest, most = FEWEST_SCORES // vocab_size, MOST_SCORES // vocab_size
    return max(1, min(max(tokens // SHARE_OF_ROWS, fewest), most))


def _scores(x_RD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    scores_RV = F.linear(x_RD, weight_VD)
    return scores_RV.to(torch.promote_types(scores_RV.dtype, torch.float32))


class _PiecewiseNLL(torch.autograd.Function):
    """See :func:`token_nll`.  With p the softmax, the gradient of the scores is p - onehot(target)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        rows: int,
    ) -> torch.Tensor:
        pieces = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
        log_sums, target_scores = zip(*(_reduced(x, weight_VD, t) for x, t in pieces), strict=True)
        log_sum_N = torch.cat(log_sums)
        ctx.save_for_backward(x_ND, weight_VD, targets_N, log_sum_N)
        ctx.rows = rows
        return log_sum_N - torch.cat(target_scores)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_N: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x_ND, weight_VD, targets_N, log_sum_N = ctx.saved_tensors
        grad_x_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        grad_weight_VD = None
        if ctx.needs_input_grad[1]:
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=log_sum_N.dtype)
        for start in range(0, len(x_ND), ctx.rows):
            piece = slice(start, start + ctx.rows)
            grad_scores_RV = _scores_gradient(
                x_ND[piece], weight_VD, targets_N[piece], log_sum_N[piece], grad_N[piece]
            )
            if grad_x_ND is not None:
                torch.mm(grad_scores_RV, weight_VD, out=grad_x_ND[piece])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_scores_RV.T @ x_ND[piece]
            del grad_scores_RV  # before those of the next piece are computed
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_x_ND, grad_weight_VD, None, None


def _reduced(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, targets_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithm of the sum of exp(scores), and the targets' scores, (R,) each."""
    scores_RV = _scores(x_RD, weight_VD)
    target_score_R = scores_RV.gather(1, targets_R[:, None])[:, 0]
    largest_R = scores_RV.amax(1)
    sum_R = scores_RV.sub_(largest_R[:, None]).exp_().sum(1)
    return sum_R.log_().add_(largest_R), target_score_R


def _scores_gradient(
    x_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_R: torch.Tensor,
    log_sum_R: torch.Tensor,
    grad_R: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of the scores (R, V), in the dtype of ``x``."""
    scores_RV = _scores(x_RD, weight_VD)
    scores_RV.sub_(log_sum_R[:, None]).exp_().mul_(grad_R[:, None])
    scores_RV.scatter_add_(1, targets_R[:, None], -grad_R[:, None])
    return scores_RV.to(x_RD.dtype)
