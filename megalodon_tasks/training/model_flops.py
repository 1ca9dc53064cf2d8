"""Count the floating-point operations that a model needs, for the utilisation of a device.

Counted is what the equations need, whatever a backend does (model FLOPs, as in PaLM, arXiv 2204.02311,
appendix B): two for each weight of a matrix and step of its sequence, two for each feature of a key and
of a value that a query looks at, and twelve for each complex component of CEMA.  A backward pass counts
twice.  Not counted: what activation checkpointing computes again, norms, embeddings, the head of a
classifier, and the rarer bands of an adaptive softmax.
"""

from typing import Any

import torch
from torch import nn

from megalodon_tasks.models.layers.block import MegalodonBlock
from megalodon_tasks.models.stack import MegalodonStack

# Operations a second in bf16 on dense matrices, from the data sheets of NVIDIA; by part of the name.
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
_CEMA = 12  # q s + p x, and the real part of eta s


def peak_flops(device: torch.device) -> float | None:
    """Return what ``device`` can do in a second at most; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def block_flops(block: MegalodonBlock, length: int) -> float:
    """Return the operations of a forward pass per step of a sequence of ``length`` steps."""
    attention = block.attention
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))
    keys: float = min(attention.chunk_size or length, length)
    if attention.causal:
        keys = (keys + 1) / 2
    width = attention.z_proj.out_features + attention.v_proj.out_features
    return 2 * weights + 2 * keys * width + _CEMA * attention.cema.alpha.numel()


def output_flops(output: nn.Module) -> float:
    """Return the operations of a forward pass per step in the output layer of a language model."""
    if isinstance(output, nn.Linear):
        return 2 * output.weight.numel()
    adaptive: Any = (
        output  # fairseq's adaptive softmax: its frequent symbols, and a row for each band
    )
    rows = adaptive.cutoff[0] + len(adaptive.cutoff) - 1
    return 2 * rows * adaptive.input_dim


class FlopCounter:
    """Count the operations of the training steps of ``model`` on this process, from now on."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0.0
        for owner in list(model.modules()):
            stack, output = (getattr(owner, name, None) for name in ("stack", "output"))
            if isinstance(stack, MegalodonStack):
                self._watch(stack, 0.0 if output is None else output_flops(output))

    def _watch(self, stack: MegalodonStack, per_step: float) -> None:
        def count(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if module.training:
                batch, length = arguments[0].shape[:2]
                forward = per_step + sum(block_flops(block, length) for block in stack.blocks)
                self.total += 3 * forward * batch * length

        stack.register_forward_pre_hook(count)

    def take(self) -> float:
        """Return the operations since the last call."""
        total, self.total = self.total, 0.0
        return total
