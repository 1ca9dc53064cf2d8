"""The ``native`` backend of timestep norm and sequence norm: C kernels for float32 on a CPU.

Sums over sequences are taken in a fixed order, so that results repeat bit for bit.

Letters: B batch, L length, D dim, G groups.
"""

import ctypes
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops import native
from megalodon_tasks.cuda_ops.norms.arguments import (
    NormCall,
    SequenceNormArguments,
    TimestepNormState,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, contiguous, empty_like

# Features that a part of a sequence should have: those that one read of memory brings.
_LEAST_FEATURES = 16


def sequence_norm_native(call: NormCall) -> torch.Tensor:
    """Compute :func:`sequence_norm` in C, for x in float32, bfloat16 or float16."""
    return sequence_norm_native_op(*SequenceNormArguments.of(call))[0]


def timestep_norm_native(call: NormCall) -> tuple[torch.Tensor, TimestepNormState]:
    """Compute :func:`timestep_norm` in C, for x in float32, bfloat16 or float16."""
    x, scale, bias, num_groups, eps, padding_mask, state = call
    past = (None, None, None)
    if state is not None:
        mean = state.mean.double()
        mean = mean if state.mean_low is None else mean + state.mean_low.detach()
        past = (state.count, mean, state.var.double())
    tensors = x, scale, bias, past[1], past[2]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, count, mean, var, _, _ = timestep_norm_native_op(
        x, scale, bias, *past, padding_mask, num_groups, eps, save
    )
    high = mean.float()
    low = (mean - high).detach().float()
    return y, TimestepNormState(count, high, var.float(), low)


class _SequenceResults(NamedTuple):
    y: torch.Tensor  # (B, L, D)
    total: torch.Tensor  # (3, B, G) float64: mean, variance, steps


class _TimestepArguments(NamedTuple):
    """The moments before the first step are all given, or all None."""

    x: torch.Tensor  # (B, L, D)
    scale: torch.Tensor  # (D,)
    bias: torch.Tensor  # (D,)
    count: torch.Tensor | None  # (B,) int64
    mean: torch.Tensor | None  # (B, G) float64
    var: torch.Tensor | None  # (B, G) float64
    padding_mask: torch.Tensor | None  # (B, L)
    groups: int
    eps: float
    save: bool  # whether there will be a backward


class _TimestepResults(NamedTuple):
    y: torch.Tensor  # (B, L, D)
    count: torch.Tensor  # (B,) int64, after the last step, as the next three
    mean: torch.Tensor  # (B, G) float64
    var: torch.Tensor  # (B, G) float64
    total: torch.Tensor  # (3, B, G) float64: mean, variance, steps
    moments: torch.Tensor  # (3, B, L, G) float32 of each step, if saved: high, low, 1 / deviation


class _Norm(ctypes.Structure):
    """``struct norm`` of the C file, which explains its fields."""

    _POINTERS = (
        *("x", "padding", "scale", "bias", "y", "total", "before", "moments"),
        *("grad_y", "grad_total", "grad_x", "grad_before", "grad_weights"),
    )
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "length", "dim", "groups", "parts", "threads")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


def _run(
    function: str,
    call: SequenceNormArguments | _TimestepArguments,
    **tensors: torch.Tensor | None,
) -> None:
    """Call a function of the C file.  The tensors must be contiguous."""
    batch, length, dim = call.x.shape
    threads, padding = torch.get_num_threads(), *contiguous(call.padding_mask)
    tensors |= {"padding": padding}
    parts = 1
    if batch % threads and batch < 4 * threads:  # threads would wait long for the last sequence
        parts = min(threads, call.groups, max(1, dim // _LEAST_FEATURES))
    pointers = {name: t.data_ptr() for name, t in tensors.items() if t is not None}
    arguments = _Norm(batch, length, dim, call.groups, parts, threads, call.eps, **pointers)
    if getattr(native.load(native.NORMS), function)(ctypes.byref(arguments)):
        raise MemoryError(f"{function}: no memory for the work on {tuple(call.x.shape)}")


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32).contiguous()


def _inputs(call: SequenceNormArguments | _TimestepArguments) -> dict[str, torch.Tensor]:
    return {"x": _float32(call.x), "scale": _float32(call.scale)}


def _gradients(
    call: SequenceNormArguments | _TimestepArguments, grad_y: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Return the gradient of y, and room for those of x, scale and bias, as the kernels take them."""
    grad_y = _float32(torch.zeros_like(call.x) if grad_y is None else grad_y)
    batch, _, dim = call.x.shape
    weights = grad_y.new_zeros(batch, 2, dim, dtype=torch.float64)
    return {"grad_y": grad_y, "grad_x": torch.empty_like(grad_y), "grad_weights": weights}


def _as_given(
    call: SequenceNormArguments | _TimestepArguments, gradients: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Return the gradients of x, scale and bias in their dtypes."""
    x, scale, bias = call[:3]
    grad_scale, grad_bias = gradients["grad_weights"].sum(0)
    return [
        gradients["grad_x"].to(x.dtype),
        grad_scale.to(scale.dtype, copy=True),
        grad_bias.to(bias.dtype, copy=True),
    ]


def _total(call: SequenceNormArguments | _TimestepArguments) -> torch.Tensor:
    return call.x.new_empty(3, call.x.shape[0], call.groups, dtype=torch.float64)


def _allocate_sequence(call: SequenceNormArguments) -> _SequenceResults:
    return _SequenceResults(empty_like(call.x), _total(call))


def _forward_sequence(call: SequenceNormArguments) -> _SequenceResults:
    inputs, total = _inputs(call), _total(call)
    y = torch.empty_like(inputs["x"])
    _run("sequence_norm_forward", call, **inputs, bias=_float32(call.bias), y=y, total=total)
    return _SequenceResults(y.to(call.x.dtype), total)


def _backward_sequence(
    call: SequenceNormArguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> list[torch.Tensor]:
    gradients = _gradients(call, grads[0])
    _run("sequence_norm_backward", call, **_inputs(call), **gradients, total=saved[0])
    return _as_given(call, gradients)


sequence_norm_native_op = DifferentiableOperator(
    "sequence_norm_native",
    SequenceNormArguments,
    _SequenceResults,
    forward=_forward_sequence,
    fake=_allocate_sequence,
    backward=_backward_sequence,
    differentiable=("y",),
    saved=("total",),
    gradients=("x", "scale", "bias"),
).register()


def _allocate_timestep(call: _TimestepArguments) -> _TimestepResults:
    (batch, length, _), new = call.x.shape, call.x.new_empty
    saved = (3, batch, length, call.groups) if call.save else (0,)
    return _TimestepResults(
        empty_like(call.x),
        new(batch, dtype=torch.int64),
        *(new(batch, call.groups, dtype=torch.float64) for _ in range(2)),
        _total(call),
        new(saved, dtype=torch.float32),
    )


def _before(call: _TimestepArguments) -> torch.Tensor | None:
    """Return the moments before the first step, (3, B, G)."""
    if call.count is None:
        return None
    return torch.stack((call.mean, call.var, call.count[:, None].expand_as(call.mean).double()))


def _forward_timestep(call: _TimestepArguments) -> _TimestepResults:
    results, inputs = _allocate_timestep(call), _inputs(call)
    y, total = torch.empty_like(inputs["x"]), results.total
    moments = results.moments if call.save else None
    outputs = {"y": y, "total": total, "moments": moments}
    _run(
        "timestep_norm_forward",
        call,
        **inputs,
        bias=_float32(call.bias),
        before=_before(call),
        **outputs,
    )
    return results._replace(
        y=y.to(call.x.dtype),
        count=total[2, :, 0].to(torch.int64),
        mean=total[0].clone(),
        var=total[1].clone(),
    )


def _backward_timestep(
    call: _TimestepArguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    gradients, (total, moments) = _gradients(call, grads[0]), saved
    grad_total = torch.stack([torch.zeros_like(total[0]) if g is None else g for g in grads[1:]])
    before = _before(call)
    grad_before = None if before is None else torch.empty_like(grad_total)
    tensors = {"total": total, "moments": moments, "before": before, "grad_total": grad_total}
    _run(
        "timestep_norm_backward",
        call,
        **_inputs(call),
        **gradients,
        **tensors,
        grad_before=grad_before,
    )
    past = (None, None) if grad_before is None else map(torch.clone, grad_before)
    return [*_as_given(call, gradients), *past]


timestep_norm_native_op = DifferentiableOperator(
    "timestep_norm_native",
    _TimestepArguments,
    _TimestepResults,
    forward=_forward_timestep,
    fake=_allocate_timestep,
    backward=_backward_timestep,
    differentiable=("y", "mean", "var"),
    saved=("total", "moments"),
    gradients=("x", "scale", "bias", "mean", "var"),
).register()
