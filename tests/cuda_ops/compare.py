"""Comparison of a backend with the float64 reference: one number and one message per tensor."""

import torch

FORWARD = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
BACKWARD = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}


def rel_rms(candidate: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``truth``, both taken in double precision."""
    wide = torch.complex128 if truth.is_complex() or candidate.is_complex() else torch.float64
    candidate, truth = candidate.detach().to(wide), truth.detach().to(wide)
    assert candidate.shape == truth.shape, f"shapes {candidate.shape} and {truth.shape} differ"
    scale = truth.norm().item()
    return (candidate - truth).norm().item() / (scale if scale > 0 else 1.0)


def assert_close(name: str, candidate: torch.Tensor, truth: torch.Tensor, tolerance: float) -> None:
    """Fail, naming the tensor, unless it is finite and within ``tolerance`` of ``truth``."""
    assert torch.isfinite(
        torch.view_as_real(candidate) if candidate.is_complex() else candidate
    ).all(), f"{name} is not finite"
    error = rel_rms(candidate, truth)
    largest = (
        (candidate.detach() - truth.detach().to(candidate.dtype)).abs().max().item()
        if candidate.numel()
        else 0
    )
    assert error <= tolerance, (
        f"{name}: relative error {error:.2e} > {tolerance:.0e}, max |diff| {largest:.2e}"
    )
