"""Whether a call is transformed or traced, and so needs code that is nothing but PyTorch's operators."""

import torch
from torch.autograd import forward_ad


# torch.compile asks while it traces, and keeps the answer.
@torch.compiler.assume_constant_result
def transforms_are_active() -> bool:
    """Return whether a transform of ``torch.func`` or forward-mode differentiation is active.

    Hand-written operators have neither; they would drop a tangent without a word.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def plain_is_needed() -> bool:
    """Return whether to compute in plain PyTorch: in transforms, and in ``torch.export``.

    So an exported program holds PyTorch's own operators only and runs without this package.
    """
    return torch.compiler.is_exporting() or transforms_are_active()


def data_is_at_hand(tensor: torch.Tensor) -> bool:
    """Return whether shapes may depend on values in ``tensor``, as those of ``nonzero`` do."""
    traced = torch.compiler.is_compiling() or type(tensor) is not torch.Tensor
    return not (traced or plain_is_needed())
