"""CEMA's ``native`` backend: C kernels for float32 on a CPU, forward and backward.

``native_kernels.c`` does all work that follows the coefficients.

Letters: B batch, L length, D channels, N order, G directions.
"""

import ctypes

import torch

from megalodon_tasks.cuda_ops import native
from megalodon_tasks.cuda_ops.autocast import without_autocast
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, coefficients
from megalodon_tasks.cuda_ops.complex_ema.single_step import single_step

# The C file: steps of a group of blocks; the ways to store an output.
_GROUP = 256
_SET, _ADD, _STREAM = range(3)

# Steps that a part of the work should have.
_LEAST_STEPS = 2048
# Bytes of an output that would drive everything else out of the caches.
_LARGE = 1 << 23


@torch.compiler.disable
@without_autocast
def cema_native(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute :func:`cema` in blocks of 16 steps, with a channel in each lane of the CPU's vectors."""
    coeffs = coefficients(*call.logits)
    if call.x.shape[1] == 1 and not call.bidirectional:
        y_BLD, state = single_step(call, coeffs)
    else:
        state = None if call.state is None else call.state.to(torch.complex128)
        omega_D = call.omega[:, 0].double()
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (omega_D, *coeffs))
        y_BLD, state = _Cema.apply(
            call.x, state, omega_D, *coeffs, call.padding_mask, call.bidirectional, keep
        )
    return y_BLD, None if call.bidirectional else state.to(torch.complex64)


class _Call(ctypes.Structure):
    """``struct call`` of the C file, which explains its fields."""

    _INTEGERS = ("batch", "length", "dim", "order", "reverse", "storing", "splits", "threads")
    _POINTERS = (
        *Coefficients._fields,
        *("omega", "padding", "x", "y", "state", "last_state", "kept"),
        *("grad_y", "grad_last", "grad_x", "grad_state", "grad_coefficients", "grad_omega"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


class _Sizes:
    """Sizes passed to the C kernels: of the tensors, of a tile, of the division of work."""

    def __init__(self, shape: torch.Size, order: int) -> None:
        self.batch, self.length, self.dim = shape
        self.order = order
        self.lanes = native.load(native.CEMA).cema_lanes()
        self.tiles = -(-self.dim // self.lanes)
        self.threads = torch.get_num_threads()
        # Parts of the work: several per thread, so that none waits long for the last one, but no small
        # parts, because each computes the matrices of its channels first.
        parts = min(8 * self.threads, self.tiles * (self.batch * self.length // _LEAST_STEPS))
        self.splits = max(1, min(self.batch, -(-max(parts, self.threads) // self.tiles)))

    def saved_shape(self) -> tuple[int, ...]:
        """Return the shape of the states that are saved for the backward pass."""
        groups = -(-self.length // _GROUP)
        return self.batch, groups, self.tiles, 2 * self.order, self.lanes

    def call(self, function: str, direction: int, **tensors: torch.Tensor | None) -> None:
        """Call ``function`` for a direction.  The tensors must be contiguous."""
        large = 4 * self.batch * self.length * self.dim >= _LARGE
        pointers = {name: t.data_ptr() for name, t in tensors.items() if t is not None}
        arguments = _Call(
            **{name: getattr(self, name) for name in ("batch", "length", "dim", "order")},
            **{"reverse": direction, "splits": self.splits, "threads": self.threads},
            storing=_ADD if direction else _STREAM if large else _SET,
            **pointers,
        )
        if getattr(native.load(native.CEMA), function)(ctypes.byref(arguments)):
            raise MemoryError(f"cema: no memory for the work of {function} at {vars(self)}")


def _directions(coeffs: tuple[torch.Tensor, ...], dim: int) -> list[dict[str, torch.Tensor]]:
    """Return the coefficients of each direction by name."""
    parts = zip(*(tensor.contiguous().split(dim) for tensor in coeffs), strict=True)
    return [Coefficients(*part)._asdict() for part in parts]


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32).contiguous()


def _pairs(state_BDN: torch.Tensor | None) -> torch.Tensor | None:
    return None if state_BDN is None else state_BDN.resolve_conj().contiguous()


class _Cema(torch.autograd.Function):
    """(x, state, omega (D), p, log_radius, angle, eta_re, eta_im (GD, N)) -> (y, last state)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_BLD: torch.Tensor,
        state_BDN: torch.Tensor | None,
        omega_D: torch.Tensor,
        *arguments: torch.Tensor | bool | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        *coeffs, padding_mask, bidirectional, keep = arguments
        x = _float32(x_BLD)
        sizes = _Sizes(x.shape, coeffs[0].shape[1])
        y = torch.empty_like(x)
        last_state = None
        if not bidirectional:
            shape = sizes.batch, sizes.dim, sizes.order
            last_state = x.new_empty(shape, dtype=torch.complex128)
        padding = None if padding_mask is None else padding_mask.contiguous()
        states = []
        for direction, named in enumerate(_directions(coeffs, sizes.dim)):
            states.append(x.new_empty(sizes.saved_shape()) if keep else None)
            sizes.call(
                *("cema_forward", direction),
                **{"x": x, "y": y, "padding": padding, "kept": states[-1], **named},
                **{"state": _pairs(state_BDN), "last_state": last_state},
                omega=None if direction else omega_D,
            )
        ctx.set_materialize_grads(False)
        ctx.like = x_BLD.shape, x_BLD.dtype
        inputs = x_BLD if keep else None
        ctx.save_for_backward(inputs, padding, omega_D, *coeffs, *states)
        return y.to(x_BLD.dtype), last_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad_BLD: torch.Tensor | None,
        grad_last_BDN: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        x_BLD, padding, omega_D, *tensors = ctx.saved_tensors
        coeffs, states = tensors[:5], tensors[5:]
        shape, dtype = ctx.like
        sizes = _Sizes(shape, coeffs[0].shape[1])
        zeros = omega_D.new_zeros(shape, dtype=torch.float32) if grad_BLD is None else grad_BLD
        grad_y = _float32(zeros)
        grad_x = torch.empty_like(grad_y) if ctx.needs_input_grad[0] else None
        grad_state = None
        if ctx.needs_input_grad[1]:
            state = sizes.batch, sizes.dim, sizes.order
            grad_state = grad_y.new_empty(state, dtype=torch.complex128)
        x = None if x_BLD is None else _float32(x_BLD)
        by_coeffs, by_omega = [], []
        for direction, named in enumerate(_directions(coeffs, sizes.dim)):
            by_coeffs.append(omega_D.new_zeros(sizes.splits, 5, sizes.dim, sizes.order))
            by_omega.append(omega_D.new_zeros(sizes.splits, sizes.dim))
            sizes.call(
                *("cema_backward", direction),
                **{"x": x, "padding": padding, "kept": states[direction], **named},
                **{"grad_y": grad_y, "grad_x": grad_x},
                **{"grad_state": grad_state, "grad_last": _pairs(grad_last_BDN)},
                **{"grad_coefficients": by_coeffs[-1], "grad_omega": by_omega[-1]},
                omega=None if direction else omega_D,
            )
        if grad_x is not None:
            grad_x = grad_x.to(dtype)
        if x is None:
            return grad_x, grad_state, *(None,) * 9
        grads = torch.cat([parts.sum(0) for parts in by_coeffs], dim=1).unbind(0)
        return grad_x, grad_state, by_omega[0].sum(0), *grads, None, None, None
