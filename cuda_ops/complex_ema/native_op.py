"""CEMA's ``native`` backend: C kernels for float32 on a CPU as a differentiable operator of PyTorch.

``native_kernels.c`` does all work that follows the coefficients.  Complex numbers enter and leave the
operator as pairs of float64.

Letters: B batch, L length, D channels, N order, G directions.
"""

import ctypes
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops import native
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, coefficients
from megalodon_tasks.cuda_ops.complex_ema.single_step import single_step
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, contiguous, empty_like

# The C file: steps of a group of blocks; the ways to store an output.
_GROUP = 256
_SET, _ADD, _STREAM = range(3)

# Steps that a part of the work should have.
_LEAST_STEPS = 2048
# Bytes of an output that would drive everything else out of the caches.
_LARGE = 1 << 23


def cema_native(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute :func:`cema` in blocks of 16 steps, with a channel in each lane of the CPU's vectors."""
    coeffs = coefficients(*call.logits)
    if call.x.shape[1] == 1 and not call.bidirectional:
        y_BLD, state = single_step(call, coeffs)
        return y_BLD, state.to(torch.complex64)
    pairs = None
    if call.state is not None:
        pairs = torch.view_as_real(call.state.to(torch.complex128).resolve_conj())
    omega_D = call.omega[:, 0].double()
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (omega_D, *coeffs))
    y_BLD, last, _ = cema_native_op(
        call.x, *coeffs, omega_D, pairs, call.padding_mask, call.bidirectional, save
    )
    return y_BLD, None if call.bidirectional else torch.view_as_complex(last).to(torch.complex64)


class _Arguments(NamedTuple):
    """Coefficients are float64, (D, N) or, with both directions, (2D, N)."""

    x: torch.Tensor  # (B, L, D)
    p: torch.Tensor
    log_radius: torch.Tensor
    angle: torch.Tensor
    eta_re: torch.Tensor
    eta_im: torch.Tensor
    omega: torch.Tensor  # (D,) float64
    state: torch.Tensor | None  # (B, D, N, 2) float64
    padding_mask: torch.Tensor | None  # (B, L)
    bidirectional: bool
    save: bool  # whether the backward will ask for gradients of coefficients or omega


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, D)
    last: torch.Tensor  # (B, D, N, 2) float64, the state after step L; empty if bidirectional
    states: torch.Tensor  # float32, those of each direction that the backward starts from, if saved


# As the C file takes them: q in real numbers.
_COEFFICIENTS = ("p", "q_re", "q_im", "eta_re", "eta_im")


class _Call(ctypes.Structure):
    """``struct call`` of the C file, which explains its fields."""

    _INTEGERS = ("batch", "length", "dim", "order", "reverse", "storing", "splits", "threads")
    _POINTERS = (
        *_COEFFICIENTS,
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


def _directions(call: _Arguments) -> list[dict[str, torch.Tensor | None]]:
    """Return the coefficients of each direction, and omega for the first, by name."""
    radius = call.log_radius.exp()
    tensors = call.p, radius * call.angle.cos(), radius * call.angle.sin(), call.eta_re, call.eta_im
    parts = zip(*(tensor.contiguous().split(call.x.shape[2]) for tensor in tensors), strict=True)
    omega = call.omega.contiguous()
    return [
        {**dict(zip(_COEFFICIENTS, part, strict=True)), "omega": None if direction else omega}
        for direction, part in enumerate(parts)
    ]


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32).contiguous()


def _allocate(call: _Arguments) -> _Results:
    sizes, new = _Sizes(call.x.shape, call.p.shape[1]), call.x.new_empty
    last = (0,) if call.bidirectional else (sizes.batch, sizes.dim, sizes.order, 2)
    states = (1 + call.bidirectional, *sizes.saved_shape()) if call.save else (0,)
    return _Results(
        empty_like(call.x),
        new(last, dtype=torch.float64),
        new(states, dtype=torch.float32),
    )


def _forward(call: _Arguments) -> _Results:
    results, x = _allocate(call), _float32(call.x)
    y = results.y if results.y.dtype == torch.float32 else torch.empty_like(x)
    sizes = _Sizes(x.shape, call.p.shape[1])
    padding, state = contiguous(call.padding_mask, call.state)
    for direction, named in enumerate(_directions(call)):
        sizes.call(
            *("cema_forward", direction),
            **{"x": x, "y": y, "padding": padding, **named},
            kept=results.states[direction] if call.save else None,
            state=state,
            last_state=None if call.bidirectional else results.last,
        )
    return results._replace(y=y.to(call.x.dtype))


def _backward(
    call: _Arguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    sizes = _Sizes(call.x.shape, call.p.shape[1])
    x = _float32(call.x) if call.save else None
    grad_y = _float32(torch.zeros_like(call.x) if grads[0] is None else grads[0])
    grad_x = torch.empty_like(grad_y)
    grad_state = None if call.state is None else torch.empty_like(call.state)
    padding, grad_last = contiguous(call.padding_mask, None if call.bidirectional else grads[1])
    by_coeffs, by_omega = [], []
    for direction, named in enumerate(_directions(call)):
        by_coeffs.append(call.p.new_zeros(sizes.splits, 5, sizes.dim, sizes.order))
        by_omega.append(call.p.new_zeros(sizes.splits, sizes.dim))
        sizes.call(
            *("cema_backward", direction),
            **{"x": x, "padding": padding, **named},
            kept=saved[0][direction] if call.save else None,
            **{"grad_y": grad_y, "grad_x": grad_x},
            **{"grad_state": grad_state, "grad_last": grad_last},
            **{"grad_coefficients": by_coeffs[-1], "grad_omega": by_omega[-1]},
        )
    # Without saved states these are zeros that nobody asked for.
    coeffs = torch.cat([parts.sum(0) for parts in by_coeffs], dim=1)
    return [grad_x.to(call.x.dtype), *map(torch.clone, coeffs), by_omega[0].sum(0), grad_state]


cema_native_op = DifferentiableOperator(
    "cema_native",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y", "last"),
    saved=("states",),
    gradients=("x", *Coefficients._fields, "omega", "state"),
).register()
