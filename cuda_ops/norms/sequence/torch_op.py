"""Sequence norm in vectorised PyTorch with a hand-written backward; README.md has the derivation.

Sums run over time first, feature by feature; everything after that is as small as (batch, dim) and in
float64.  The input is processed in tiles that fit the cache (see ``splitting.py``).

Legend: B batch, L length (of a tile), D dim, G groups, J = D / G features of a group.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.norms.arguments import NormCall, SequenceNormArguments
from megalodon_tasks.cuda_ops.norms.sequence.reference import sequence_norm_reference
from megalodon_tasks.cuda_ops.norms.splitting import (
    Tile,
    Workspace,
    padded_steps,
    sum_over_time,
    zero_padded_,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like
from megalodon_tasks.cuda_ops.transforms import plain_is_needed


def sequence_norm_torch(call: NormCall) -> torch.Tensor:
    """Compute a group norm over the real steps of each sequence."""
    if plain_is_needed():
        return _plain(call)
    return sequence_norm_torch_op(*SequenceNormArguments.of(call))[0]


def _plain(call: NormCall) -> torch.Tensor:
    """Compute the same in plain PyTorch, in float64 for the sake of a mean far from zero."""
    return sequence_norm_reference(call._replace(x=call.x.double())).to(call.x.dtype)


class _Results(NamedTuple):
    """All but ``y`` are (B, G, 1) float64."""

    y: torch.Tensor  # (B, L, D)
    mean: torch.Tensor
    rstd: torch.Tensor
    elements: torch.Tensor  # numbers that the moments are of


def _allocate(call: SequenceNormArguments) -> _Results:
    shape = call.x.shape[0], call.groups, 1
    moments = (call.x.new_empty(shape, dtype=torch.float64) for _ in range(3))
    return _Results(empty_like(call.x), *moments)


def _forward(call: SequenceNormArguments) -> _Results:
    x, scale, bias, padding_mask, num_groups, eps = call
    results = _allocate(call)
    wide = torch.promote_types(x.dtype, torch.float32)
    work = Workspace(results.y, wide)
    for tiles in work.tiles_by_rows:
        count_B1, mean_BD, square_BD, shift_BD = _moments_over_time(x, padding_mask, work, tiles)
        moments = _group_moments(count_B1, mean_BD, square_BD, num_groups, eps)
        for result, value in zip(results[1:], moments, strict=True):
            result[tiles[0].rows] = value
        mean_BD, factor_BD = _spread(moments[0], x), _spread(moments[1], x) * scale
        factor_B1D = factor_BD.to(wide)[:, None]
        for tile in reversed(tiles):
            work_BLD = work.target(tile)
            if not tile.is_last:  # the last tile is still there
                shift_BD = mean_BD.to(wide)
                torch.sub(x[tile.index], shift_BD[:, None], out=work_BLD)
            offset_BD = torch.addcmul(bias.double(), shift_BD - mean_BD, factor_BD)
            torch.addcmul(offset_BD.to(wide)[:, None], work_BLD, factor_B1D, out=work_BLD)
            work.store(tile, zero_padded_(work_BLD, padded_steps(padding_mask, tile)))
    return results


def _backward(
    call: SequenceNormArguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    x, scale, bias, padding_mask = call[:4]
    (grad_y,), (mean_BG1, rstd_BG1, elements_BG1) = grads, saved
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_scale = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    grad_bias = torch.zeros_like(grad_scale)
    work = Workspace(grad_x, wide)
    for tiles in work.tiles_by_rows:
        rows = tiles[0].rows
        mean_BD, rstd_BD = _spread(mean_BG1[rows], x), _spread(rstd_BG1[rows], x)
        high_BD = mean_BD.to(wide)
        low_BD = mean_BD - high_BD
        grad_BD, along_BD = _sums_over_time(x, grad_y, high_BD, padding_mask, work, tiles)
        along_BD.sub_(low_BD * grad_BD).mul_(rstd_BD)
        grad_bias += grad_BD.sum(0)
        grad_scale += along_BD.sum(0)
        direct_BD, slope_BD = (
            _spread(_group_sums(sums_BD * scale, mean_BG1) / elements_BG1[rows], x)
            for sums_BD in (grad_BD, along_BD)
        )
        slope_BD = slope_BD * rstd_BD.square()
        offset_B1D = (low_BD * slope_BD - direct_BD * rstd_BD).to(wide)[:, None]
        slope_B1D, factor_B1D = -slope_BD.to(wide)[:, None], (rstd_BD * scale).to(wide)[:, None]
        for tile in reversed(tiles):
            work_BLD = work.target(tile)
            if not tile.is_last:  # the last tile is still there
                torch.sub(x[tile.index], high_BD[:, None], out=work_BLD)
            torch.addcmul(offset_B1D, work_BLD, slope_B1D, out=work_BLD)
            work_BLD.addcmul_(grad_y[tile.index], factor_B1D)
            work.store(tile, zero_padded_(work_BLD, padded_steps(padding_mask, tile)))
    return grad_x, grad_scale.to(scale.dtype), grad_bias.to(bias.dtype)


sequence_norm_torch_op = DifferentiableOperator(
    "sequence_norm_torch",
    SequenceNormArguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y",),
    saved=("mean", "rstd", "elements"),
    gradients=("x", "scale", "bias"),
    plain=lambda call: (_plain(NormCall(*call[:3], call.groups, call.eps, call.padding_mask)),),
).register()


def _spread(values_BG1: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Repeat the value of a group for each of its features: (B, D)."""
    return values_BG1.expand(-1, -1, x.shape[-1] // values_BG1.shape[1]).flatten(1)


def _group_sums(values_BD: torch.Tensor, like_BG1: torch.Tensor) -> torch.Tensor:
    return values_BD.unflatten(1, (like_BG1.shape[1], -1)).sum(-1, keepdim=True)


def _moments_over_time(
    x: torch.Tensor, padding_mask: torch.Tensor | None, work: Workspace, tiles: list[Tile]
) -> tuple[torch.Tensor, ...]:
    """Return real steps, mean, and sum of squares around the mean, per feature of some rows, in float64.

    Chan's formula, which has no difference of large numbers, joins the moments of tiles.  The last
    result is what was subtracted from the last tile in the workspace: its rounded mean.
    """
    count_B1, mean_BD, square_BD, shift_BD = _tile_moments(x, padding_mask, work, tiles[0])
    for tile in tiles[1:]:
        steps_B1, means_BD, squares_BD, shift_BD = _tile_moments(x, padding_mask, work, tile)
        share_B1 = steps_B1 / (count_B1 + steps_B1).clamp(min=1)
        apart_BD = means_BD - mean_BD
        square_BD += squares_BD + apart_BD.square() * (count_B1 * share_B1)
        mean_BD += apart_BD * share_B1
        count_B1 = count_B1 + steps_B1
    return count_B1, mean_BD, square_BD, shift_BD


def _tile_moments(
    x: torch.Tensor, padding_mask: torch.Tensor | None, work: Workspace, tile: Tile
) -> tuple[torch.Tensor, ...]:
    x_BLD, padded_N = x[tile.index], padded_steps(padding_mask, tile)
    work_BLD, scratch_BLD = work.last_or_scratch(tile), work.buffer("scratch", tile)
    steps_B1 = x.new_full((x_BLD.shape[0], 1), x_BLD.shape[1], dtype=torch.float64)
    if padding_mask is not None:
        steps_B1 -= padding_mask[tile.index].sum(1, keepdim=True)
        x_BLD = zero_padded_(work_BLD.copy_(x_BLD), padded_N)
    divisor_B1 = steps_B1.clamp(min=1)
    shift_BD = sum_over_time(x_BLD, work.wide).div_(divisor_B1)
    torch.sub(x_BLD, shift_BD[:, None], out=work_BLD)
    zero_padded_(work_BLD, padded_N)
    rest_BD = sum_over_time(work_BLD).double()
    square_BD = sum_over_time(torch.mul(work_BLD, work_BLD, out=scratch_BLD)).double()
    square_BD.addcdiv_(rest_BD.square(), divisor_B1, value=-1.0).clamp_(min=0.0)
    return steps_B1, rest_BD.div_(divisor_B1).add_(shift_BD), square_BD, shift_BD


def _group_moments(
    count_B1: torch.Tensor,
    mean_BD: torch.Tensor,
    square_BD: torch.Tensor,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean, reciprocal deviation and number of elements of each group (B, G, 1), in float64."""
    mean_BGJ = mean_BD.unflatten(1, (num_groups, -1))
    mean_BG1 = mean_BGJ.mean(-1, keepdim=True)
    count_B11 = count_B1.clamp(min=1)[..., None]
    spread_BGJ = (mean_BGJ - mean_BG1).square_()
    spread_BGJ.addcdiv_(square_BD.view_as(spread_BGJ), count_B11)
    rstd_BG1 = spread_BGJ.mean(-1, keepdim=True).add_(eps).rsqrt_()
    return mean_BG1, rstd_BG1, (count_B11 * mean_BGJ.shape[-1]).expand_as(mean_BG1)


def _sums_over_time(
    x: torch.Tensor,
    grad_y: torch.Tensor,
    high_BD: torch.Tensor,
    padding_mask: torch.Tensor | None,
    work: Workspace,
    tiles: list[Tile],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the gradient, and the gradient times ``x - high``, per feature, in float64.

    Leaves ``x - high`` of the last tile in the workspace.
    """
    grad_BD = torch.zeros_like(high_BD, dtype=torch.float64)
    along_BD = torch.zeros_like(grad_BD)
    for tile in tiles:
        padded_N = padded_steps(padding_mask, tile)
        grad_BLD = work.load("grad", tile, grad_y, padded_N)
        work_BLD, scratch_BLD = work.last_or_scratch(tile), work.buffer("scratch", tile)
        torch.sub(x[tile.index], high_BD[:, None], out=work_BLD)
        torch.mul(zero_padded_(work_BLD, padded_N), grad_BLD, out=scratch_BLD)
        grad_BD += sum_over_time(grad_BLD)
        along_BD += sum_over_time(scratch_BLD)
    return grad_BD, along_BD
