"""Queries, keys and gates of one forward pass.  Legend: B batch, L length, H heads, K, V widths."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.layers.gated_attention import GatedAttention


@dataclass
class Observation:
    """What one attention layer did: rotated queries and keys (B, L, H, K), and the gate (B, L, V)."""

    layer: GatedAttention
    rotated: list[torch.Tensor] = field(default_factory=list)
    gate: torch.Tensor | None = None

    @property
    def chunk_steps(self) -> int:
        """The steps of a chunk; all of the sequence where attention is full."""
        length = self.rotated[0].shape[1]
        return min(self.layer.chunk_size or length, length)

    def attention(self, item: int, chunk: int, length: int | None = None) -> torch.Tensor:
        """(H, steps, steps): the weights of one chunk of one item, rows are queries.

        ``length``: real steps of the item.  Raises ``ValueError`` for a chunk that it does not have.
        """
        query, key = (tensor[item, :length].transpose(0, 1) for tensor in self.rotated)
        steps = self.chunk_steps
        chunks = -(-query.shape[1] // steps)
        if not 0 <= chunk < chunks:
            raise ValueError(
                f"chunk {chunk} is none of the {chunks} chunks of {steps} steps that the item has"
            )
        here = slice(chunk * steps, (chunk + 1) * steps)
        scores = query[:, here].double() @ key[:, here].double().transpose(1, 2)
        if self.layer.causal:
            later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return scores.softmax(-1)


@contextmanager
def observed(model: nn.Module) -> Iterator[list[Observation]]:
    """Within the block, a forward pass of ``model`` fills the observations of its attention layers."""
    layers = [module for module in model.modules() if isinstance(module, GatedAttention)]
    observations = [Observation(layer) for layer in layers]
    with ExitStack() as stack:
        for observation in observations:
            _watch(stack, observation)
        yield observations


def _watch(stack: ExitStack, observation: Observation) -> None:
    def see_rotated(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        # query, then key; of several passes the last counts
        observation.rotated = [*observation.rotated, output.detach()][-2:]

    def see_gate(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        observation.gate = F.silu(output.detach())

    layer = observation.layer
    stack.enter_context(_hook(layer.rotary, see_rotated))
    stack.enter_context(_hook(layer.gate_proj, see_gate))


@contextmanager
def _hook(module: nn.Module, function: Any) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()
