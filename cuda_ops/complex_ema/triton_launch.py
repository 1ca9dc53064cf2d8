"""Launches of the Triton kernels of CEMA: sizes, grids, strides and buffers, one direction at a time.

Letters as in ``triton_kernels``.
"""

import math
from typing import NamedTuple

import torch
import triton

from megalodon_tasks.cuda_ops.complex_ema import triton_kernels as kernels
from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients
from megalodon_tasks.cuda_ops.triton_helpers import operand_dtype, shared_memory

# Positions of a block and rows of a tile: the smallest that the matrix instructions take.
BLOCK = 16
ROWS = 16
# Programs that a launch should have, about two for each multiprocessor of a large GPU.
_PROGRAMS = 256
# A shorter segment would make the states at the cuts weigh as much as the inputs.
LEAST_SEGMENT = 256
# Within a segment the rounding of q**BLOCK to float32 is raised to the number of blocks; the power of
# a whole segment is exact again.
MOST_SEGMENT = 4096
# Bytes of shared memory that a program needs at order 16, of all kernels and dtypes.
_SHARED_MEMORY = 124 * 1024
# Channels of a program of the kernels that work on the coefficients.
_CHANNELS = 16


class Plan(NamedTuple):
    """Sizes of one call and the compile-time constants of its kernels."""

    batch: int
    length: int
    dim: int
    order: int
    segment: int
    channels: int
    split: bool

    @property
    def segments(self) -> int:
        return triton.cdiv(self.length, self.segment)

    @property
    def rows(self) -> int:
        return self.batch * self.segments

    @property
    def last(self) -> int:
        """Number of positions of the last segment."""
        return self.length - (self.segments - 1) * self.segment

    @property
    def row_groups(self) -> int:
        return triton.cdiv(self.rows, ROWS)

    @property
    def grid(self) -> tuple[int]:
        return (self.row_groups * triton.cdiv(self.dim, self.channels),)

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "L": self.length,
            "D": self.dim,
            "N": self.order,
            "S": self.segments,
            "segment": self.segment,
        }

    @property
    def constants(self) -> dict[str, object]:
        dtype = torch.bfloat16 if self.split else torch.float32
        return {
            "SPLIT": self.split,
            "OPERAND": operand_dtype(dtype),
            "BD": self.channels,
            "BM": ROWS,
            "C": BLOCK,
            "BN": max(BLOCK, triton.next_power_of_2(self.order)),
            "num_warps": self.channels,
            "num_stages": 1,
        }

    def align(self, *tensors: torch.Tensor) -> int:
        """Return the largest power of two, up to 16, that divides the dim and all strides."""
        return math.gcd(16, self.dim, *(s for tensor in tensors for s in tensor.stride()[:2]))

    @property
    def coefficient_grid(self) -> tuple[int]:
        """Grid of the kernels that work on the coefficients."""
        return (triton.cdiv(self.dim, _CHANNELS),)

    @property
    def coefficient_constants(self) -> dict[str, int]:
        return {"C": BLOCK, "BD": _CHANNELS, "BN": self.constants["BN"]}


def plan_for(x_BLD: torch.Tensor, order: int) -> Plan:
    """Choose few enough channels for the shared memory, and just enough segments to fill the GPU."""
    batch, length, dim = x_BLD.shape
    channels = 16 if x_BLD.dtype == torch.bfloat16 else 8
    needed = _SHARED_MEMORY * max(1, triton.next_power_of_2(order) // 16)
    while channels > 1 and needed > shared_memory(x_BLD.device, _SHARED_MEMORY):
        channels, needed = channels // 2, needed // 2
    row_groups = triton.cdiv(_PROGRAMS, triton.cdiv(dim, channels))
    segments = max(1, ROWS * row_groups // max(1, batch))
    segment = triton.cdiv(triton.cdiv(length, segments), BLOCK) * BLOCK
    segment = min(max(segment, LEAST_SEGMENT), MOST_SEGMENT)
    return Plan(batch, length, dim, order, segment, channels, x_BLD.dtype == torch.bfloat16)


class Direction:
    """Coefficients and their tables for one direction of the op, and its launches."""

    def __init__(
        self,
        plan: Plan,
        coeffs: Coefficients,
        omega: torch.Tensor,
        mask: torch.Tensor | None,
        backward: bool,
    ) -> None:
        self.plan, self.coeffs, self.backward = plan, coeffs, backward
        # The compiler packs operands by the narrowest number that they depend on: of 8 bits, the mask
        # would keep accumulators from becoming operands in their registers.
        self.mask = None if mask is None else mask.to(torch.int16)
        # The backward direction is read one step late: its lags start at one, its powers at zero.
        self.shift = int(backward)
        dim, order, like = plan.dim, plan.order, {"device": omega.device, "dtype": torch.float32}
        self.powers = torch.empty(dim, BLOCK + 1, 2, order, **like)
        self.kernel = torch.empty(dim, BLOCK, **like)
        self.segment_power = torch.empty(2, 2, dim, order, **like)
        kernels.cema_tables_kernel[plan.coefficient_grid](
            tuple(coeffs),
            omega,
            self.powers,
            self.kernel,
            self.segment_power,
            dim,
            order,
            plan.segment,
            plan.last,
            SHIFT=self.shift,
            **plan.coefficient_constants,
        )

    def _buffer(self) -> torch.Tensor:
        plan = self.plan
        return self.powers.new_empty(2, plan.rows, plan.dim, plan.order)

    def ends(
        self, x_BLD: torch.Tensor, *, adjoint: bool, with_log: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what each segment adds to the state after it, and its derivative along log q."""
        ends, ends_log = self._buffer(), self._buffer() if with_log else None
        kernels.cema_ends_kernel[self.plan.grid](
            x_BLD,
            self.mask,
            self.powers,
            ends,
            ends_log,
            strides=x_BLD.stride()[:2],
            OFFSET=int(adjoint) * (1 - self.shift),
            REVERSE=self.backward != adjoint,
            ALIGN=self.plan.align(x_BLD),
            **self.plan.sizes,
            **self.plan.constants,
        )
        return ends, ends_log

    def carry(
        self,
        ends: torch.Tensor,
        carried: torch.Tensor,
        weight: tuple[torch.Tensor, torch.Tensor | None],
        state: torch.Tensor | None,
    ) -> torch.Tensor:
        """Fill ``carried`` with the states before the segments, return the state after the last."""
        return self._carry(ends, None, carried, weight, state)[0]

    def carry_log(
        self, ends: torch.Tensor, ends_log: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the same in place, from zero and with weight one, for ends and derivatives together."""
        return self._carry(ends, ends_log, ends, (None, None), None)

    def _carry(
        self,
        ends: torch.Tensor,
        ends_log: torch.Tensor | None,
        carried: torch.Tensor,
        weight: tuple[torch.Tensor | None, torch.Tensor | None],
        state: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        plan = self.plan
        features = plan.dim * plan.order
        final = self.powers.new_empty(plan.batch, plan.dim, plan.order, 2)
        final_log = None if ends_log is None else torch.empty_like(final)
        kernels.cema_carry_kernel[(plan.batch * triton.cdiv(features, 256),)](
            ends,
            ends_log,
            carried,
            self.segment_power,
            weight,
            state,
            final,
            final_log,
            plan.batch,
            plan.segments,
            features,
            plan.segment,
            plan.last,
            BLOCK=256,
        )
        return final, final_log

    def output(
        self,
        x_BLD: torch.Tensor,
        y_BLD: torch.Tensor,
        carried: torch.Tensor | None,
        *,
        adjoint: bool,
    ) -> None:
        """Write the outputs, or the gradient of the inputs if ``adjoint``.

        The second direction adds to the first, which in bf16 and fp16 has been rounded.
        """
        c = self.coeffs
        p, eta = (c.p, None), (c.eta_re, c.eta_im)
        write, read = (eta, p) if adjoint else (p, eta)
        kernels.cema_output_kernel[self.plan.grid](
            x_BLD,
            y_BLD,
            self.mask,
            self.powers,
            self.kernel,
            write,
            read,
            carried,
            strides=x_BLD.stride()[:2],
            WRITE_OFFSET=int(adjoint) * (1 - self.shift),
            READ_OFFSET=int(not adjoint) * (1 - self.shift),
            REVERSE=self.backward != adjoint,
            ACCUMULATE=self.backward,
            ALIGN=self.plan.align(x_BLD),
            **self.plan.sizes,
            **self.plan.constants,
        )

    def gradients(
        self,
        x_BLD: torch.Tensor,
        grad_BLD: torch.Tensor,
        carried: torch.Tensor | None,
        carried_log: torch.Tensor | None,
    ) -> tuple[Coefficients, torch.Tensor]:
        """Return gradients of the coefficients, and of omega (D,) if this is the forward direction."""
        plan, c = self.plan, self.coeffs
        partial = self.powers.new_empty(plan.row_groups, plan.dim, BLOCK + 4 * plan.order)
        kernels.cema_weights_kernel[plan.grid](
            x_BLD,
            grad_BLD,
            self.mask,
            self.powers,
            carried,
            carried_log,
            partial,
            x_strides=x_BLD.stride()[:2],
            grad_strides=grad_BLD.stride()[:2],
            OFFSET=1 - self.shift,
            REVERSE=not self.backward,
            ALIGN=plan.align(x_BLD, grad_BLD),
            **plan.sizes,
            **plan.constants,
        )
        sums = partial.sum(0)
        grads = Coefficients(*(torch.empty_like(tensor) for tensor in c))
        kernels.cema_finish_kernel[plan.coefficient_grid](
            sums,
            self.powers,
            tuple(c),
            tuple(grads),
            plan.dim,
            plan.order,
            SHIFT=self.shift,
            **plan.coefficient_constants,
        )
        return grads, sums[:, 0]
