"""The linear layer, by the faster of the two libraries that PyTorch has for float32 on a CPU.

``torch.nn.functional.linear`` calls MKL, which leaves the 512-bit units of CPUs by other makers than its
own unused: a product takes twice as long there as in oneDNN, which PyTorch has too.

Legend: N rows, I inputs, O outputs.
"""

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from megalodon_tasks.cuda_ops.transforms import data_is_at_hand

# Multiplications below which a product is too short to pay for a function of autograd in Python.
_LEAST = 1 << 22
_ONEDNN = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``x weight^T + bias`` as ``torch.nn.functional.linear`` does.

    x: (..., I).  weight: (O, I).  bias: (O,) or None.  Returns (..., O).

    Only plain float32 tensors on a CPU with AVX-512 go to oneDNN, in eager mode and outside of autocast.
    Code that traces, transforms or counts operators sees PyTorch's own.
    """
    if not _runs_in_onednn(x, weight):
        return F.linear(x, weight, bias)
    tensors = x, weight, bias
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _runs_in_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        _ONEDNN
        and data_is_at_hand(x)
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and x.dtype == torch.float32 == weight.dtype
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() * weight.shape[0] >= _LEAST
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
    )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Differentiate the product by products in oneDNN, and the second time by PyTorch's own."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        product = F.linear if torch.is_grad_enabled() else _product
        grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        if needs_x:
            grad_x = product(grad, weight.t(), None)
        if needs_weight:
            # oneDNN copies the transpose of its first operand: let it be the smaller one.
            if grad_NO.shape[1] <= x_NI.shape[1]:
                grad_weight = product(grad_NO.t(), x_NI.t(), None)
            else:
                grad_weight = product(x_NI.t(), grad_NO.t(), None).t()
        return grad_x, grad_weight, grad_NO.sum(0) if needs_bias else None
