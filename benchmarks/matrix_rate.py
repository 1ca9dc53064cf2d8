"""Measure how fast a device multiplies matrices."""

import time

import torch


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Measure the fastest of ``repeats`` products of square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    one, other = torch.randn(2, size, size, device=device).to(dtype)
    fastest = float("inf")
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        one @ other
        wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
