"""The root-mean-square norm in PyTorch with a hand-written backward; README.md has the equations.

Legend: N vectors, D features.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.norms.rms.reference import rms_norm_reference
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like
from megalodon_tasks.cuda_ops.transforms import plain_is_needed


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Compute the norm and save one number per vector for the backward.

    A compiler fuses the plain form better than it calls this one.
    """
    if torch.compiler.is_compiling() or plain_is_needed():
        return rms_norm_reference(x, weight, eps)
    return rms_norm_op(x, weight, eps)[0]


def rms_norm_fused(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Compute the norm by PyTorch's own kernel, which is fused on a GPU."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class _Arguments(NamedTuple):
    x: torch.Tensor  # (..., D)
    weight: torch.Tensor | None  # (D,)
    eps: float


class _Results(NamedTuple):
    y: torch.Tensor  # (..., D)
    r: torch.Tensor  # (N, 1), one over the root mean square


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _allocate(call: _Arguments) -> _Results:
    x = call.x
    wide = torch.promote_types(x.dtype, torch.float32)
    return _Results(empty_like(x), x.new_empty(x[..., 0].numel(), 1, dtype=wide))


def _forward(call: _Arguments) -> _Results:
    x, weight_D, eps = call
    x_ND = _wide(x).reshape(-1, x.shape[-1])
    norm_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
    r_N1 = norm_N1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y_ND = x_ND * r_N1
    if weight_D is not None:
        y_ND.mul_(weight_D)
    return _Results(y_ND.view(x.shape).to(x.dtype), r_N1)


def _backward(
    call: _Arguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    x, weight_D, _ = call
    (r_N1,) = saved
    x_ND = _wide(x).reshape(-1, x.shape[-1])
    grad_ND = _wide(grads[0]).reshape(x_ND.shape)
    product_ND = grad_ND * x_ND
    grad_weight = None
    if weight_D is None:
        along_N1 = product_ND.sum(1, keepdim=True)
    else:
        wide_D = _wide(weight_D)
        along_N1 = (product_ND @ wide_D)[:, None]
        grad_weight = (r_N1.T @ product_ND)[0].to(weight_D.dtype)
        grad_ND = grad_ND * wide_D
    # r^2 first and r last: r^3 would underflow for a large x.
    along_N1 = along_N1 * r_N1.square() / x.shape[-1]
    grad_x = torch.addcmul(grad_ND, x_ND, along_N1, value=-1).mul_(r_N1)
    return grad_x.view(x.shape).to(x.dtype), grad_weight


rms_norm_op = DifferentiableOperator(
    "rms_norm_torch",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y",),
    saved=("r",),
    gradients=("x", "weight"),
    plain=lambda call: (rms_norm_reference(*call),),
).register()
