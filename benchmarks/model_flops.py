"""Count what a language model has to compute, and measure how fast a device multiplies matrices.

Model FLOPs utilisation (Chowdhery et al., arXiv 2204.02311, appendix B) is the first times tokens a
second over the second.  It counts what the model needs, not what is computed again for the backward
pass, and here is relative to a matrix product measured on the same device, not to its data sheet.
"""

import time

import torch
from torch import nn

from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.layers.fused_attention import FusedAttention
from megalodon_tasks.models.layers.gated_attention import GatedAttention


def training_flops_per_token(lm: LanguageModel, length: int) -> float:
    """Count the floating-point operations of a training step on sequences of ``length``, per token.

    Matrices: 6 per weight.  Attention: 6 per key that a query sees on average and per feature of queries
    and values.  Norms, CEMA and other work along features are not counted.
    """
    linears = [module for module in lm.modules() if isinstance(module, nn.Linear)]
    flops = 6.0 * sum(linear.weight.numel() for linear in linears)
    for layer in lm.modules():
        if isinstance(layer, GatedAttention):
            widths = layer.qk_scale.shape[1] + layer.v_proj.out_features
            flops += 6.0 * widths * (min(length, layer.chunk_size or length) + 1) / 2
        elif isinstance(layer, FusedAttention):
            window = min(length, layer.chunk_size or length)
            seen = window - window * (window - 1) / (2 * length)
            flops += 6.0 * 2 * layer.out_proj.in_features * seen
    return flops


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
