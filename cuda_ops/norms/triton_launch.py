"""Sizes, tiles and launches that the norms over time share.

Letters as in ``triton_kernels``.
"""

from typing import NamedTuple

import torch
import triton

from megalodon_tasks.cuda_ops.norms import triton_kernels as kernels

# Numbers of a tile: 32 for each thread of 8 warps.
ELEMENTS = 8192
# Neighbouring features of a tile, 128 bytes in bf16; a wider group is taken whole.
WIDTH = 64
# The error of the running sums inside a block grows with its steps: this many cost at most 3e-5.
MOST_STEPS = 512
# Programs that a launch should have if each walks through several blocks and writes one partial sum.
PROGRAMS = 2048
# Numbers of a tile of the scan over blocks, and its groups: one sector of memory.
SCAN_ELEMENTS = 2048
SCAN_GROUPS = 8
WARPS = 8
# Of tiles whose groups have one feature.
WARPS_OF_SINGLES = 16


class Plan(NamedTuple):
    """Sizes of one call and of its tiles."""

    batch: int
    length: int
    groups: int
    features: int
    steps: int
    tile_groups: int

    @property
    def dim(self) -> int:
        return self.groups * self.features

    @property
    def blocks(self) -> int:
        return -(-self.length // self.steps)

    @property
    def columns(self) -> int:
        return -(-self.groups // self.tile_groups)

    @property
    def grid(self) -> tuple[int]:
        return (self.batch * self.blocks * self.columns,)

    @property
    def blocks_per_program(self) -> int:
        """Number of blocks that a program walks through where it writes a partial sum."""
        return max(1, min(16, self.batch * self.blocks * self.columns // PROGRAMS))

    @property
    def runs(self) -> int:
        return -(-self.blocks // self.blocks_per_program)

    @property
    def plane(self) -> int:
        """Size of one moment of all blocks."""
        return self.batch * self.blocks * self.groups

    @property
    def sizes(self) -> dict[str, int]:
        return {"L": self.length, "N": self.blocks, "G": self.groups}

    @property
    def constants(self) -> dict[str, int]:
        return {
            "J": self.features,
            "BT": self.steps,
            "BG": self.tile_groups,
            "BJ": triton.next_power_of_2(self.features),
            "num_warps": WARPS_OF_SINGLES if self.features == 1 else WARPS,
        }


def plan_for(x_BLD: torch.Tensor, groups: int) -> Plan:
    """Choose few neighbouring groups and as many steps as a tile holds, whatever the length."""
    batch, length, dim = x_BLD.shape
    features = int(dim) // groups
    wide = triton.next_power_of_2(features)
    # A group of one feature has as many moments in registers as there are numbers: half as many of both.
    share = 2 if features == 1 else 1
    tile_groups = max(1, min(triton.next_power_of_2(groups), WIDTH // share // wide))
    steps = max(1, min(MOST_STEPS, ELEMENTS // share // (wide * tile_groups)))
    return Plan(batch, length, groups, features, steps, tile_groups)


def block_moments(
    plan: Plan, x_BLD: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute real steps (B, N) and moments (3, B, N, G) of each block."""
    shape = plan.batch, plan.blocks
    steps = torch.empty(shape, dtype=torch.int32, device=x_BLD.device)
    moments = torch.empty(3, *shape, plan.groups, dtype=torch.float32, device=x_BLD.device)
    kernels.moments_kernel[plan.grid](
        x_BLD,
        mask,
        steps,
        moments,
        strides=x_BLD.stride()[:2],
        plane=plan.plane,
        **plan.sizes,
        **plan.constants,
    )
    return steps, moments


def scan_tile(plan: Plan) -> dict[str, int]:
    """Return the tile of a scan over the blocks and one more position."""
    groups = min(SCAN_GROUPS, triton.next_power_of_2(plan.groups))
    positions = min(SCAN_ELEMENTS // groups, triton.next_power_of_2(plan.blocks + 1))
    return {"BN": max(2, positions), "BG": groups, "num_warps": 4}


def scan_grid(plan: Plan) -> tuple[int]:
    return (plan.batch * triton.cdiv(plan.groups, scan_tile(plan)["BG"]),)


def moments_before(
    plan: Plan,
    steps: torch.Tensor,
    moments: torch.Tensor,
    state: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute steps (B, N), and mean, its low part and variance (3, B, N, G), of all before a block.

    ``state`` is count, mean, mean_low and var before the first block, or four times None.
    """
    before = torch.empty(plan.batch, plan.blocks, dtype=torch.int64, device=steps.device)
    prefix = torch.empty_like(moments)
    _scan(plan, steps, moments, state, (before, prefix), (None, None))
    return before, prefix


def total_moments(
    plan: Plan, steps: torch.Tensor, moments: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Compute steps (B,), and mean, its low part and variance (3, B, G), of whole sequences."""
    count = torch.empty(plan.batch, dtype=torch.int64, device=steps.device)
    total = moments.new_empty(3, plan.batch, plan.groups)
    _scan(plan, steps, moments, (None, None, None, None), (None, None), (total, count))
    return count, total


def _scan(
    plan: Plan,
    steps: torch.Tensor,
    moments: torch.Tensor,
    state: tuple[torch.Tensor | None, ...],
    running: tuple[torch.Tensor | None, torch.Tensor | None],
    total: tuple[torch.Tensor | None, torch.Tensor | None],
) -> None:
    kernels.moments_scan_kernel[scan_grid(plan)](
        steps,
        moments,
        state,
        *running,
        *total,
        N=plan.blocks,
        G=plan.groups,
        plane=plan.plane,
        total_plane=plan.batch * plan.groups,
        **scan_tile(plan),
    )
