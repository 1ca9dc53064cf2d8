"""Timestep norm in vectorised PyTorch with a hand-written backward; README.md has the derivation.

Each step is first reduced to a mean and a mean square per group; what runs along time works on these
small tensors only (``running_moments.py``).  The input is processed in tiles that fit the cache, forward
and then backward: large tensors are read once per direction, and nothing of their size is allocated but
the result.

Legend: B batch, L length (both of a tile), D dim, G groups, J = D / G features of a group.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState
from megalodon_tasks.cuda_ops.norms.splitting import (
    Tile,
    Workspace,
    steps_of_a_tile,
    zero_padded_,
)
from megalodon_tasks.cuda_ops.norms.timestep.running_moments import (
    Later,
    Times,
    running_backward,
    running_moments,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like
from megalodon_tasks.cuda_ops.transforms import plain_is_needed


def timestep_norm_torch(call: NormCall) -> tuple[torch.Tensor, TimestepNormState]:
    """Compute equation 4 of arXiv 2404.08801 for all steps at once."""
    x, scale, bias, num_groups, eps, padding_mask, state = call
    batch, length, _ = x.shape
    if state is None:
        zeros = x.new_zeros(batch, num_groups, dtype=torch.promote_types(x.dtype, torch.float32))
        state = TimestepNormState(x.new_zeros(batch, dtype=torch.int64), zeros, zeros)
    if padding_mask is None:
        steps_BL = torch.arange(1, length + 1, device=x.device).expand(batch, length)
    else:
        steps_BL = (~padding_mask).cumsum(1)
    count_BL = state.count[:, None] + steps_BL
    tensors = x, scale, bias, state.mean, state.var, state.mean_low, count_BL, padding_mask
    if plain_is_needed():
        y, mean, var = _plain(_Arguments(*tensors, eps))
        mean_low = torch.zeros_like(mean)
    else:
        y, mean, var, mean_low, *_ = timestep_norm_torch_op(*tensors, eps)
    return y, TimestepNormState(count_BL[:, -1].clone(), mean, var, mean_low.detach())


class _Arguments(NamedTuple):
    x: torch.Tensor  # (B, L, D)
    scale: torch.Tensor  # (D,)
    bias: torch.Tensor  # (D,)
    mean: torch.Tensor  # (B, G)
    var: torch.Tensor  # (B, G)
    mean_low: torch.Tensor | None  # (B, G)
    count: torch.Tensor  # (B, L) int64, real steps through each step, those of the state included
    padding_mask: torch.Tensor | None  # (B, L)
    eps: float


class _Results(NamedTuple):
    """All but ``y`` and ``bases`` are float32, or float64 if x is."""

    y: torch.Tensor  # (B, L, D)
    mean: torch.Tensor  # (B, G), after the last step, as the next two
    var: torch.Tensor
    mean_low: torch.Tensor
    moved: torch.Tensor  # (B, L, G), from the base of the tile to the mean
    rstd: torch.Tensor  # (B, L, G)
    bases: torch.Tensor  # (B, tiles along time, G) float64


def _allocate(call: _Arguments) -> _Results:
    x, (batch, groups) = call.x, call.mean.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    moments = (x.new_empty(batch, groups, dtype=wide) for _ in range(3))
    steps = (x.new_empty(batch, x.shape[1], groups, dtype=wide) for _ in range(2))
    tiles = -(-x.shape[1] // steps_of_a_tile(x.shape[1], x.shape[2]))
    bases = x.new_empty(batch, tiles, groups, dtype=torch.float64)
    return _Results(empty_like(x), *moments, *steps, bases)


def _forward(call: _Arguments) -> _Results:
    x, scale, bias, mean, var, mean_low, count_BL, padding_mask, eps = call
    wide = torch.promote_types(x.dtype, torch.float32)
    results = _allocate(call)
    groups = mean.shape[1]
    mean_BG, var_BG = mean.to(torch.float64, copy=True), var.to(wide, copy=True)
    if mean_low is not None:
        mean_BG += mean_low
    times = Times.of(count_BL, padding_mask, wide)
    scale_wide, bias_wide = scale.to(wide), bias.to(wide)
    work = Workspace(results.y, wide)
    for tile in work.tiles:
        now = times.cut(tile)
        work_BLD = work.target(tile)
        moved, rstd = results.moved[tile.index], results.rstd[tile.index]
        coarse_BLG, rest_BLG, square_BLG = (work.buffer(n, tile, groups) for n in "abc")
        _centre_steps(x[tile.index], now.padded_N, work_BLD, coarse_BLG)
        _step_moments(work_BLD, work, tile, rest_BLG, square_BLG)
        base_BG = now.base(mean_BG[tile.rows], coarse_BLG)
        offset_BLG = running_moments(
            coarse_BLG, rest_BLG, square_BLG, base_BG, var_BG[tile.rows], now, moved, rstd
        )
        results.bases[tile.rows, tile.times.start // work.steps] = base_BG
        mean_BG[tile.rows] = base_BG + moved[:, -1]
        var_BG[tile.rows] = rstd[:, -1]
        rstd.add_(eps).rsqrt_()
        offset_BLG.mul_(rstd)
        work_BLGJ = work_BLD.unflatten(-1, (groups, -1))
        work_BLGJ.mul_(rstd[..., None]).add_(offset_BLG[..., None])
        torch.addcmul(bias_wide, work_BLD, scale_wide, out=work_BLD)
        work.store(tile, zero_padded_(work_BLD, now.padded_N))
    end_BG = mean_BG.to(wide)
    return results._replace(mean=end_BG, var=var_BG, mean_low=(mean_BG - end_BG).to(wide))


def _backward(
    call: _Arguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    x, moved_BLG, rstd_BLG, bases_BTG = call.x, *saved
    grad_y, grad_mean, grad_var = grads
    times = Times.of(call.count, call.padding_mask, rstd_BLG.dtype)
    scale = call.scale.to(rstd_BLG.dtype)
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_scale = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    grad_bias = torch.zeros_like(grad_scale)
    groups = rstd_BLG.shape[-1]
    features = x.shape[-1] // groups
    elements_B1 = times.count_BL1[:, -1].double() * features
    later = Later.after_last(grad_mean, grad_var, rstd_BLG[:, -1], elements_B1)
    work = Workspace(grad_x, scale.dtype)
    for tile in reversed(work.tiles):
        now, base_BG = times.cut(tile), bases_BTG[tile.rows, tile.times.start // work.steps]
        moved, rstd = moved_BLG[tile.index], rstd_BLG[tile.index]
        grad_BLD = work.load("grad", tile, grad_y, now.padded_N)
        work_BLD, scratch_BLD = work.target(tile), work.buffer("scratch", tile)
        along_BLG, direct_BLG, spare_BLG = (work.buffer(n, tile, groups) for n in "abc")
        _normalise(x[tile.index], base_BG, moved, rstd, now.padded_N, work_BLD, spare_BLG)
        torch.mul(grad_BLD, work_BLD, out=scratch_BLD)
        grad_bias += grad_BLD.flatten(0, 1).sum(0)
        grad_scale += scratch_BLD.flatten(0, 1).sum(0)
        _group_means(scratch_BLD.mul_(scale), along_BLG)
        _group_means(torch.mul(grad_BLD, scale, out=scratch_BLD), direct_BLG)
        buffers = [work.buffer(n, tile, groups, torch.float64) for n in "def"]
        rate_BLG = torch.div(rstd, now.count_BL1, out=spare_BLG)
        shift_BLG, slope_BLG = running_backward(
            direct_BLG, along_BLG, rate_BLG, moved, rstd, later.of(tile), buffers
        )
        _combine(work_BLD, scratch_BLD, rstd, shift_BLG, slope_BLG)
        work.store(tile, zero_padded_(work_BLD, now.padded_N))
    first_B1 = times.before_BL1[:, 0] * features
    start_mean, start_var = later.shift_BG - later.way_BG, 0.5 * later.slope_BG
    grads = grad_x, grad_scale, grad_bias, first_B1 * start_mean, first_B1 * start_var
    return tuple(grad.to(like.dtype) for grad, like in zip(grads, call[:5], strict=True))


def _plain(call: _Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and variance in plain PyTorch: sums of the terms of Welford's recurrence."""
    x, scale, bias, mean, var, mean_low, count_BL, padding_mask, eps = call
    x_BLGJ = x.double().unflatten(-1, (mean.shape[1], -1))
    real_BL = torch.ones_like(count_BL, dtype=torch.bool) if padding_mask is None else ~padding_mask
    real_BLGJ = real_BL[:, :, None, None]
    x_BLGJ = x_BLGJ.masked_fill(~real_BLGJ, 0.0)
    first_BG = mean.double() if mean_low is None else mean.double() + mean_low.detach()
    before_B11 = (count_BL[:, :1] - real_BL[:, :1].long())[..., None].double()
    steps_BL1 = count_BL[..., None].clamp(min=1).double()
    mean_BLG = (before_B11 * first_BG[:, None] + x_BLGJ.mean(-1).cumsum(1)) / steps_BL1
    empty_BL1 = count_BL[..., None] == 0
    mean_BLG = torch.where(empty_BL1, first_BG[:, None], mean_BLG)
    earlier_BLG = torch.cat([first_BG[:, None], mean_BLG[:, :-1]], dim=1)
    squares_BLGJ = (x_BLGJ - earlier_BLG[..., None]) * (x_BLGJ - mean_BLG[..., None])
    squares_BLG = squares_BLGJ.masked_fill(~real_BLGJ, 0.0).mean(-1).cumsum(1)
    var_BLG = (before_B11 * var.double()[:, None] + squares_BLG) / steps_BL1
    var_BLG = torch.where(empty_BL1, var.double()[:, None], var_BLG)
    y_BLGJ = (x_BLGJ - mean_BLG[..., None]) * torch.rsqrt(var_BLG + eps)[..., None]
    y_BLD = (y_BLGJ.flatten(2) * scale + bias).masked_fill(~real_BL[..., None], 0.0)
    wide = torch.promote_types(x.dtype, torch.float32)
    return y_BLD.to(x.dtype), mean_BLG[:, -1].to(wide), var_BLG[:, -1].to(wide)


timestep_norm_torch_op = DifferentiableOperator(
    "timestep_norm_torch",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y", "mean", "var"),
    saved=("moved", "rstd", "bases"),
    gradients=("x", "scale", "bias", "mean", "var"),
    plain=_plain,
).register()


def _group_means(values_BLD: torch.Tensor, out_BLG: torch.Tensor) -> None:
    """Write the means over each group's features; short rows are faster as a product with a vector."""
    groups = out_BLG.shape[-1]
    features = values_BLD.shape[-1] // groups
    if features >= 32:
        torch.mean(values_BLD.unflatten(-1, (groups, features)), -1, out=out_BLG)
        return
    weights_J = values_BLD.new_full((features,), 1 / features)
    torch.mv(values_BLD.reshape(-1, features), weights_J, out=out_BLG.view(-1))


def _centre_steps(
    x_BLD: torch.Tensor,
    padded_N: torch.Tensor | None,
    out_BLD: torch.Tensor,
    mean_BLG: torch.Tensor,
) -> None:
    """Write a rounded mean of each step and group, and ``x`` minus it, both zero at padding."""
    if padded_N is not None or x_BLD.dtype != out_BLD.dtype:
        x_BLD = zero_padded_(out_BLD.copy_(x_BLD), padded_N)
    _group_means(x_BLD, mean_BLG)
    shape = (mean_BLG.shape[-1], -1)
    torch.sub(x_BLD.unflatten(-1, shape), mean_BLG[..., None], out=out_BLD.unflatten(-1, shape))


def _step_moments(
    centred_BLD: torch.Tensor,
    work: Workspace,
    tile: Tile,
    mean_BLG: torch.Tensor,
    square_BLG: torch.Tensor,
) -> None:
    """Write the mean of each step and group, and the mean square around this mean."""
    _group_means(centred_BLD, mean_BLG)
    groups = mean_BLG.shape[-1]
    features = centred_BLD.shape[-1] // groups
    if features >= 16:  # this reads once and needs no scratch, but is slow for short rows
        centred_BLGJ = centred_BLD.unflatten(-1, (groups, features))
        torch.linalg.vector_norm(centred_BLGJ, dim=-1, out=square_BLG).square_().div_(features)
    else:
        squares_BLD = work.buffer("scratch", tile)
        _group_means(torch.mul(centred_BLD, centred_BLD, out=squares_BLD), square_BLG)
    square_BLG.addcmul_(mean_BLG, mean_BLG, value=-1.0).clamp_(min=0.0)


def _normalise(
    x_BLD: torch.Tensor,
    base_BG: torch.Tensor,
    moved_BLG: torch.Tensor,
    rstd_BLG: torch.Tensor,
    padded_N: torch.Tensor | None,
    out_BLD: torch.Tensor,
    offset_BLG: torch.Tensor,
) -> None:
    """Write ``(x - mean) / sqrt(var + eps)``, zero at padding; ``offset`` is scratch."""
    shape = (rstd_BLG.shape[-1], -1)
    out_BLGJ = out_BLD.unflatten(-1, shape)
    high_BG = base_BG.to(rstd_BLG.dtype)
    low_BG = (base_BG - high_BG).to(rstd_BLG.dtype)
    torch.sub(x_BLD.unflatten(-1, shape), high_BG[:, None, :, None], out=out_BLGJ)
    torch.add(moved_BLG, low_BG[:, None], out=offset_BLG).mul_(rstd_BLG)
    out_BLGJ.mul_(rstd_BLG[..., None]).sub_(offset_BLG[..., None])
    zero_padded_(out_BLD, padded_N)


def _combine(
    normed_BLD: torch.Tensor,
    direct_BLD: torch.Tensor,
    rstd_BLG: torch.Tensor,
    shift_BLG: torch.Tensor,
    slope_BLG: torch.Tensor,
) -> None:
    """Turn ``normed`` into the gradient of x, in place; ``direct`` is each step's own part of it."""
    shape = (rstd_BLG.shape[-1], -1)
    normed_BLGJ, direct_BLGJ = normed_BLD.unflatten(-1, shape), direct_BLD.unflatten(-1, shape)
    normed_BLGJ.mul_(slope_BLG[..., None]).add_(shift_BLG[..., None])
    normed_BLGJ.addcmul_(direct_BLGJ, rstd_BLG[..., None])
