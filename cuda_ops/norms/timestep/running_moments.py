"""The part of timestep norm that runs along time: from moments of each step to moments so far, and back.

It works on tensors with one number per step and group; README.md has the derivation.  Float32 is enough
within a tile, because moments are relative to those before it.  From tile to tile the mean is in
float64, and so are the sums of the backward, which subtract.

Legend: B batch, L length (of a tile), G groups, N padded steps of a tile, counted through its rows.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.norms.splitting import Tile, padded_steps, zero_padded_


class Times(NamedTuple):
    """Real steps before and through each step, in the working type, and which steps are padding."""

    before_BL1: torch.Tensor
    count_BL1: torch.Tensor  # at least 1: it divides
    padding_mask: torch.Tensor | None
    padded_N: torch.Tensor | None = None  # of a tile

    @classmethod
    def of(
        cls, count_BL: torch.Tensor, padding_mask: torch.Tensor | None, wide: torch.dtype
    ) -> "Times":
        """Derive them from the real steps through each step, state included (B, L)."""
        if padding_mask is None:
            return cls((count_BL - 1)[..., None].to(wide), count_BL[..., None].to(wide), None)
        # A row without any real step keeps its given moments: they count as one step.
        before_BL = torch.where(count_BL[:, -1:] == 0, 1, count_BL - (~padding_mask).long())
        count_BL = count_BL.clamp(min=1)
        return cls(before_BL[..., None].to(wide), count_BL[..., None].to(wide), padding_mask)

    def cut(self, tile: Tile) -> "Times":
        """Return the part that belongs to a tile."""
        mask = None if self.padding_mask is None else self.padding_mask[tile.index]
        padded_N = padded_steps(self.padding_mask, tile)
        return Times(self.before_BL1[tile.index], self.count_BL1[tile.index], mask, padded_N)

    def base(self, mean_BG: torch.Tensor, coarse_BLG: torch.Tensor) -> torch.Tensor:
        """Return the base of the means in a tile: the mean before it, or else of its first step."""
        if self.padding_mask is None:
            first_BG = coarse_BLG[:, 0]
        else:
            at_B1 = self.padding_mask.int().argmin(1, keepdim=True)
            first_BG = coarse_BLG.take_along_dim(at_B1[..., None], 1)[:, 0]
        return torch.where(self.before_BL1[:, 0] == 0, first_BG, mean_BG)


class Later(NamedTuple):
    """Sums over all later steps that the gradients of a step need: equation 10 of README.md.

    ``running_backward`` adds the steps of a tile to them in place.
    """

    shift_BG: torch.Tensor
    slope_BG: torch.Tensor
    way_BG: torch.Tensor

    @classmethod
    def after_last(
        cls,
        grad_mean: torch.Tensor | None,
        grad_var: torch.Tensor | None,
        like_BG: torch.Tensor,
        elements_B1: torch.Tensor,
    ) -> "Later":
        """Start from the gradients of the returned moments."""
        shift, slope, way = torch.zeros(
            3, *like_BG.shape, dtype=torch.float64, device=like_BG.device
        )
        if grad_mean is not None:
            shift += grad_mean / elements_B1
        if grad_var is not None:
            slope += 2.0 * grad_var / elements_B1
        return cls(shift, slope, way)

    def of(self, tile: Tile) -> "Later":
        """Return views of the rows of a tile."""
        return Later(*(part[tile.rows] for part in self))


def running_moments(
    coarse_BLG: torch.Tensor,
    rest_BLG: torch.Tensor,
    square_BLG: torch.Tensor,
    base_BG: torch.Tensor,
    var_BG: torch.Tensor,
    now: Times,
    moved_BLG: torch.Tensor,
    var_BLG: torch.Tensor,
) -> torch.Tensor:
    """Write the moments of all steps up to each one: the mean as its distance from ``base``.

    All steps before the tile have the mean ``base``, so they only count.  The sum of squares grows at a
    step by its own and by ``before / count`` times the squared distance to the mean before it: no
    difference of large numbers.  Returns ``coarse - mean``; overwrites its first three arguments.
    """
    wide = coarse_BLG.dtype
    high_BG = base_BG.to(wide)
    low_BG = (base_BG - high_BG).to(wide)
    coarse_BLG.sub_(high_BG[:, None]).sub_(low_BG[:, None])
    step_BLG = rest_BLG.add_(coarse_BLG)
    zero_padded_(step_BLG, now.padded_N)
    torch.cumsum(step_BLG, 1, out=moved_BLG).div_(now.count_BL1)
    jump_BLG = step_BLG
    jump_BLG[:, 1:] -= moved_BLG[:, :-1]
    square_BLG.addcmul_(jump_BLG.square_(), now.before_BL1 / now.count_BL1)
    zero_padded_(square_BLG, now.padded_N)
    square_BLG[:, 0] += now.before_BL1[:, 0] * var_BG
    torch.cumsum(square_BLG, 1, out=var_BLG).div_(now.count_BL1)
    return coarse_BLG.sub_(moved_BLG)


def running_backward(
    direct_BLG: torch.Tensor,
    along_BLG: torch.Tensor,
    rate_BLG: torch.Tensor,
    moved_BLG: torch.Tensor,
    rstd_BLG: torch.Tensor,
    later: Later,
    buffers: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of an element as ``shift_i + slope_i (x_ij - mean_i) rstd_i``.

    This is the part that comes from the moments of step i and of all steps after it.  ``rate`` is
    ``rstd / count``.  Overwrites its first three arguments, of which it returns two, and works in three
    float64 buffers.
    """
    shift_BLG, slope_BLG, sums_BLG = buffers
    shift_BLG.copy_(direct_BLG.mul_(rate_BLG).neg_())
    slope_BLG.copy_(along_BLG.mul_(rate_BLG).mul_(rstd_BLG).neg_())
    torch.cumsum(shift_BLG, 1, out=sums_BLG)
    later.shift_BG.add_(sums_BLG[:, -1])
    shift_BLG.sub_(sums_BLG).add_(later.shift_BG[:, None])
    torch.cumsum(slope_BLG, 1, out=sums_BLG)
    later.slope_BG.add_(sums_BLG[:, -1])
    slope_BLG.sub_(sums_BLG).add_(later.slope_BG[:, None])
    # Later variances are taken around other means: add the distance from each mean to the next, weighted
    # by the slope of all that follows it.
    way_BLG = sums_BLG.copy_(moved_BLG)
    way_BLG[:, 1:] -= moved_BLG[:, :-1]
    way_BLG.mul_(slope_BLG).cumsum_(1)
    later.way_BG.add_(way_BLG[:, -1])
    shift_BLG.add_(way_BLG).sub_(later.way_BG[:, None])
    return direct_BLG.copy_(shift_BLG), along_BLG.copy_(slope_BLG).div_(rstd_BLG)
