"""The competitors of each op: what a user would call without this library, in its own best layout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.authors_fft import authors_cema
from benchmarks.ops_cases import AttentionCase, Case, CemaCase, Contender, NormCase


def fft(case: CemaCase, tensors: dict[str, torch.Tensor]) -> Contender:
    """The op's own backend ``fft``: the convolution made as good as it gets; cuFFT on CUDA."""
    return Contender(tensors, lambda **leaves: case.call("fft", **leaves))


def authors(case: CemaCase, tensors: dict[str, torch.Tensor]) -> Contender:
    """The convolution as the authors write it."""
    return Contender(tensors, lambda x, **leaves: authors_cema(x, *leaves.values())[0])


def layer_norm(case: NormCase, tensors: dict[str, torch.Tensor]) -> Contender:
    """Norm each step, as in a Transformer.  Equal to the op for sequences of one step and one group."""

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (case.dim,), scale, bias)

    return Contender(tensors, run)


def group_norm(case: NormCase, tensors: dict[str, torch.Tensor]) -> Contender:
    """Whole sequences, in PyTorch's layout.  Equal to ``sequence_norm``, and to the last step of
    ``timestep_norm``."""
    channels_first = tensors["x"].transpose(1, 2).contiguous()

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, case.groups, scale, bias).transpose(1, 2)

    return Contender(tensors | {"x": channels_first}, run)


def sdpa(case: AttentionCase, tensors: dict[str, torch.Tensor]) -> Contender:
    """PyTorch's fused attention on tensors that are cut in chunks already, heads before steps."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(1, (-1, case.chunk)).flatten(0, 1).transpose(1, 2).contiguous()

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y_NHCV = F.scaled_dot_product_attention(q, k, v, is_causal=case.causal, scale=1.0)
        return y_NHCV.transpose(1, 2).unflatten(0, (case.batch, -1)).flatten(1, 2)

    return Contender({name: cut(tensor) for name, tensor in tensors.items()}, run)


_PEERS: dict[str, dict[str, Callable[..., Contender]]] = {
    "cema": {"fft": fft, "authors": authors},
    "timestep_norm": {"layer_norm": layer_norm, "group_norm": group_norm},
    "sequence_norm": {"group_norm": group_norm},
    "chunk_attention": {"sdpa": sdpa},
}


def peers_of(case: Case) -> dict[str, Callable[..., Contender]]:
    """The competitors of a case by name.

    The authors' form of cema is left out of the ladder: at a million steps it would hold the powers of q
    in tens of gigabytes, and take longer than all the rest.
    """
    left_out = ("authors",) if case.label == "ladder" else ()
    return {name: peer for name, peer in _PEERS[case.op].items() if name not in left_out}
