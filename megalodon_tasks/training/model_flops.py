"""Count the floating-point operations that a model needs, for the utilisation of a device.

Counted is what the equations need, whatever a backend does (model FLOPs, as in PaLM, arXiv 2204.02311,
appendix B): two for each weight of a matrix and step of its sequence, two for each feature of a key and
of a value that a query looks at, twelve for each component of CEMA and five for each of a real average.
A backward pass counts twice.  Not counted: what activation checkpointing computes again, norms,
embeddings, the head of a classifier, and the rarer bands of an adaptive softmax.
"""

from typing import Any

import torch
from torch import nn

from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.fused_attention import FusedAttention
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.models.layers.mega_block import MegaAttention
from megalodon_tasks.models.mega import MegaStack
from megalodon_tasks.models.stack import MegalodonStack

# Operations a second in bf16 on dense matrices, from the data sheets of NVIDIA; by part of the name.
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
_CEMA = 12  # q s + p x, and the real part of eta s
_REAL_EMA = 5


def peak_flops(device: torch.device) -> float | None:
    """Return what ``device`` can do in a second at most; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def block_flops(block: nn.Module, length: int) -> float:
    """Return the operations of a forward pass per step of a sequence of ``length`` steps."""
    flops = 0.0
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            flops += 2 * layer.weight.numel()
        elif isinstance(layer, ComplexEMA):
            flops += (_CEMA if type(layer) is ComplexEMA else _REAL_EMA) * layer.alpha.numel()
        elif isinstance(layer, GatedAttention | MegaAttention | FusedAttention):
            flops += 2 * _keys(layer, length) * _width(layer)
    return flops


def _keys(layer: GatedAttention | MegaAttention | FusedAttention, length: int) -> float:
    """Return how many keys a query sees on average."""
    keys = min(layer.chunk_size or length, length)
    if isinstance(layer, MegaAttention) or not layer.causal:
        return keys
    if isinstance(layer, FusedAttention):  # a sliding window
        return keys - keys * (keys - 1) / (2 * length)
    return (keys + 1) / 2


def _width(layer: GatedAttention | MegaAttention | FusedAttention) -> int:
    """Return the features of a key and of a value."""
    if isinstance(layer, FusedAttention):
        return 2 * layer.out_proj.in_features
    return layer.qk_scale.shape[1] + layer.v_proj.out_features


def output_flops(output: nn.Module) -> float:
    """Return the operations of a forward pass per step in the output layer of a language model."""
    if isinstance(output, nn.Linear):
        return 2 * output.weight.numel()
    adaptive: Any = (
        output  # fairseq's adaptive softmax: its frequent symbols, and a row for each band
    )
    rows = adaptive.cutoff[0] + len(adaptive.cutoff) - 1
    return 2 * rows * adaptive.input_dim


def training_flops(lm: LanguageModel, length: int) -> float:
    """Return the operations of a training step on sequences of ``length`` steps, per step."""
    blocks = sum(block_flops(block, length) for block in lm.stack.blocks)
    return 3 * (blocks + output_flops(lm.output))


class FlopCounter:
    """Count the operations of the training steps of ``model`` on this process, from now on."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0.0
        for owner in list(model.modules()):
            stack, output = (getattr(owner, name, None) for name in ("stack", "output"))
            if isinstance(stack, MegalodonStack | MegaStack):
                self._watch(stack, 0.0 if output is None else output_flops(output))

    def _watch(self, stack: MegalodonStack | MegaStack, per_step: float) -> None:
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
