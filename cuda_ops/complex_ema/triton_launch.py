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

    def ends_shape(self, planes: int) -> tuple[int, ...]:
        """Return the shape of what segments add to states: ``planes`` pairs of real numbers."""
        return planes, 2, self.rows, self.dim, self.order

    @staticmethod
    def planes(ends: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return states and their derivatives along log q, each None if it is not there."""
        states = None if ends is None else ends[0]
        return states, ends[1] if ends is not None and len(ends) > 1 else None

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

    def ends(self, x_BLD: torch.Tensor, ends: torch.Tensor) -> None:
        """Fill ``ends`` (planes, 2, rows, D, N) with what each segment adds to the state after it.

        Real and imaginary part; a second plane gets the derivatives along log q.
        """
        kernels.cema_ends_kernel[self.plan.grid](
            x_BLD,
            self.mask,
            self.powers,
            *self.plan.planes(ends),
            strides=x_BLD.stride()[:2],
            REVERSE=self.backward,
            ALIGN=self.plan.align(x_BLD),
            **self.plan.sizes,
            **self.plan.constants,
        )

    def carry(
        self, ends: torch.Tensor, carried: torch.Tensor, state: torch.Tensor | None
    ) -> torch.Tensor:
        """Fill ``carried`` with the states before the segments, return the state after the last."""
        final = self._pairs()
        weight = (self.coeffs.p, None)
        self._carry(ends[:1], carried=carried, weight=weight, state=state, final=final)
        return final

    def carry_back(
        self, ends: torch.Tensor, others: torch.Tensor | None, last: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Carry what :meth:`sums` found, ``ends``, from the last segment to the first.

        ``others`` is what :meth:`ends` found of x, ``last`` the adjoint state after the last step.
        Returns the adjoint states that enter each segment; the one before the first step; the same for
        a weight of one from zero, with its derivative, in one tensor (2, B, D, N, 2); and the sums over
        pairs of steps in different segments, (B, D, 4 N), if ``others`` is given.
        """
        plan = self.plan
        carried, final, finals = torch.empty_like(ends[0]), self._pairs(), self._pairs(2)
        sums = None
        if others is not None:
            sums = ends.new_empty(plan.batch, plan.dim, 4 * plan.order)
        weight = (self.coeffs.eta_re, self.coeffs.eta_im)
        named = {"carried": carried, "weight": weight, "state": last, "final": final}
        self._carry(ends, others, sums=sums, finals=finals, adjoint=True, **named)
        return carried, final, finals, sums

    def total(self, ends: torch.Tensor) -> torch.Tensor:
        """Return what all segments add to a state, and its derivative, (2, B, D, N, 2)."""
        finals = self._pairs(2)
        self._carry(ends, finals=finals)
        return finals

    def _pairs(self, *planes: int) -> torch.Tensor:
        plan = self.plan
        return self.powers.new_empty(*planes, plan.batch, plan.dim, plan.order, 2)

    def _carry(
        self,
        ends: torch.Tensor,
        others: torch.Tensor | None = None,
        *,
        carried: torch.Tensor | None = None,
        weight: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
        state: torch.Tensor | None = None,
        final: torch.Tensor | None = None,
        sums: torch.Tensor | None = None,
        finals: torch.Tensor | None = None,
        adjoint: bool = False,
    ) -> None:
        plan = self.plan
        kernels.cema_carry_kernel[(plan.batch * triton.cdiv(plan.dim * plan.order, 32),)](
            *plan.planes(ends),
            *plan.planes(others),
            carried,
            self.segment_power,
            weight,
            state,
            final,
            sums,
            finals,
            plan.batch,
            plan.segments,
            plan.dim,
            plan.order,
            plan.segment,
            plan.last,
            REVERSED=adjoint,
            ROWS=min(8, triton.next_power_of_2(plan.segments)),
            BLOCK=32,
            **{"num_warps": 1},
        )

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
            REVERSED=adjoint,
            ACCUMULATE=self.backward,
            ALIGN=self.plan.align(x_BLD),
            **self.plan.sizes,
            **self.plan.constants,
        )

    def sums(
        self, x_BLD: torch.Tensor, grad_BLD: torch.Tensor, ends: torch.Tensor | None
    ) -> torch.Tensor:
        """Return sums over pairs of steps of a segment, (D, BLOCK + 4 N), for :meth:`gradients`.

        Fills ``ends``, unless None, as :meth:`ends` does, for the gradients in the order of the adjoint.
        """
        plan = self.plan
        partial = self.powers.new_empty(plan.row_groups, plan.dim, BLOCK + 4 * plan.order)
        kernels.cema_sums_kernel[plan.grid](
            x_BLD,
            grad_BLD,
            self.mask,
            self.powers,
            *plan.planes(ends),
            partial,
            x_strides=x_BLD.stride()[:2],
            grad_strides=grad_BLD.stride()[:2],
            OFFSET=1 - self.shift,
            REVERSE=not self.backward,
            ALIGN=plan.align(x_BLD, grad_BLD),
            **plan.sizes,
            **plan.constants,
        )
        return partial.sum(0)

    def gradients(self, sums: torch.Tensor) -> tuple[Coefficients, torch.Tensor]:
        """Return gradients of the coefficients, and of omega (D,) if this is the forward direction.

        ``sums`` is of all pairs of steps; see the kernel.
        """
        plan, c = self.plan, self.coeffs
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
