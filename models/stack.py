"""The unified encoder/decoder: the same blocks, causal or bidirectional, and a norm at the end."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.block import MegalodonBlock
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.norms import TimeNorm, build_norm
from megalodon_tasks.models.state import BlockState, StackState

# Graphs that blocks are compiled to before more kinds of calls run uncompiled.  drop_path makes one for
# each block, and different lengths of sequences two or three.
GRAPHS = 128


class MegalodonStack(nn.Module):
    """Map vectors to vectors, as a decoder (``config.causal``) or an encoder.

    In a decoder the output at a step depends only on that step and earlier ones, and a sequence may be
    fed in pieces with the state carried.  An encoder sees both directions and has no state.

    With ``config.checkpoint_activations`` training stores only the input of each block and recomputes
    the block in the backward pass, with the same dropout: the same gradients in less memory.

    With ``config.compile_blocks`` training runs the blocks through ``torch.compile``, one graph for all
    of them where they differ only in their parameters; evaluation, where shapes vary, does not.
    """

    block_type: ClassVar[type[nn.Module]] = MegalodonBlock

    def __init__(self, config: MegalodonConfig) -> None:
        super().__init__()
        config.validate()
        self.causal = config.causal
        self.checkpoint_activations = config.checkpoint_activations
        self.compile_blocks = config.compile_blocks
        self.blocks = nn.ModuleList(self.block_type(config, i) for i in range(config.num_layers))
        self.norm = self.build_norm(config)
        # What a state holds besides the open chunk: moments of norms, and moving averages.
        averages = any(isinstance(module, ComplexEMA) for module in self.blocks.modules())
        self.carries = (isinstance(self.norm, TimeNorm), averages)

    @staticmethod
    def build_norm(config: MegalodonConfig) -> nn.Module:
        """Build the norm at the end."""
        return build_norm(config)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: StackState | None = None,
    ) -> tuple[torch.Tensor, StackState | None]:
        """Return (B, L, D), zero at padding, and the state after step L (None if not causal).

        x: (B, L, D) float.  padding_mask: (B, L) bool, True at padding.  state: of the steps before.
        Raises ``ValueError`` for a state given to an encoder or to a stack of another depth.
        """
        self.check_state(state)
        states = state.blocks if state is not None else (None,) * len(self.blocks)
        new_states = []
        for block, block_state in zip(self.blocks, states, strict=True):
            x_BLD, block_state = self.run_block(block, x_BLD, padding_mask_BL, block_state)
            new_states.append(block_state)
        x_BLD, norm_state = self.norm(x_BLD, padding_mask_BL, state.norm if state else None)
        return x_BLD, StackState(tuple(new_states), norm_state) if self.causal else None

    def run_block(
        self, block: nn.Module, *inputs: torch.Tensor | BlockState | None
    ) -> tuple[torch.Tensor, BlockState | None]:
        """Call a block of this stack, with its activations stored or to be recomputed."""
        run = _compiled() if self.compile_blocks and self.training else _run
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(run, block, *inputs, use_reentrant=False)
        return run(block, *inputs)

    def check_state(self, state: StackState | None) -> None:
        """Raise ``ValueError`` for a state that cannot be of this stack."""
        if state is None:
            return
        if not self.causal:
            raise ValueError(
                "a bidirectional stack carries no state; pass the whole sequence at once, "
                "or build the stack with causal=True"
            )
        if len(state.blocks) != len(self.blocks):
            raise ValueError(
                f"the state has {len(state.blocks)} blocks, this stack {len(self.blocks)}; "
                "pass a state that this model returned"
            )
        parts = (state.norm, state.blocks[0].cema)
        if tuple(part is not None for part in parts) != self.carries:
            raise ValueError(
                f"the state is of another architecture than {type(self).__name__}; pass a state that "
                "this model returned"
            )


def _run(
    block: MegalodonBlock, *inputs: torch.Tensor | BlockState | None
) -> tuple[torch.Tensor, BlockState | None]:
    return block(*inputs)


@functools.cache
def _compiled() -> Callable:
    """Compile the call of a block, for all models of this process."""
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    return torch.compile(_run)
