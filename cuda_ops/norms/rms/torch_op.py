"""The root-mean-square norm in PyTorch with a hand-written backward; README.md has the equations.

Legend: N vectors, D features.
"""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Compute the norm and save one number per vector for the backward."""
    return _RmsNorm.apply(x, weight, eps)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight_D: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        x_ND = _wide(x).reshape(-1, x.shape[-1])
        norm_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
        r_N1 = norm_N1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y_ND = x_ND * r_N1
        if weight_D is not None:
            y_ND.mul_(weight_D)
        ctx.save_for_backward(x, weight_D, r_N1)
        return y_ND.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight_D, r_N1 = ctx.saved_tensors
        x_ND = _wide(x).reshape(-1, x.shape[-1])
        grad_ND = _wide(grad).reshape(x_ND.shape)
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
        return grad_x.view(x.shape).to(x.dtype), grad_weight, None
