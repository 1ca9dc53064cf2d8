"""The encoder and the decoder together, in plain PyTorch: from a source sequence to a target sequence.

The encoder is the bidirectional stack with group norm over time, the decoder the causal one with
timestep norm and, in each block, cross attention to the encoder's output.
Legend: B batch, L target length, S source length, D model dim, V vocabulary, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import TokenEmbedding
from megalodon_tasks.models.heads import TokenOutput
from megalodon_tasks.models.layers.block import MegalodonBlock, drop_path
from megalodon_tasks.models.layers.cross_attention import GatedCrossAttention, SourceKeys
from megalodon_tasks.models.settings import setting
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import BlockState, StackState


@dataclass
class Seq2SeqConfig(MegalodonConfig):
    """Sizes of both stacks, and which matrices they share.  ``causal`` is ignored."""

    decoder_layers: Optional[int] = setting(
        None, "blocks of the decoder; left out: as many as the encoder's (num_layers)"
    )
    cross_scale: float = setting(
        1.0,
        "length of the queries and keys of cross attention at the start; 1 as published, "
        "more lets attention choose among the source's steps earlier in training",
    )
    share_all_embeddings: bool = setting(
        False, "one matrix for both embeddings and the output; needs one dictionary"
    )
    share_decoder_input_output_embed: bool = setting(
        False, "one matrix for the decoder's embedding and the output"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        super().validate()
        if self.decoder_layers is not None and self.decoder_layers < 1:
            raise ValueError(
                f"model.decoder_layers={self.decoder_layers} must be a positive integer; leave it out "
                "for as many as model.num_layers"
            )
        if self.cross_scale <= 0:
            raise ValueError(f"model.cross_scale={self.cross_scale} must be greater than 0")

    def stack(self, *, causal: bool) -> MegalodonConfig:
        """Return the configuration of the decoder's stack (``causal``) or the encoder's."""
        values = {f.name: getattr(self, f.name) for f in fields(MegalodonConfig)}
        if causal and self.decoder_layers is not None:
            values["num_layers"] = self.decoder_layers
        return MegalodonConfig(**values | {"causal": causal})


class Encoded(NamedTuple):
    """An encoder's output, at the places of the tokens that it read."""

    vectors: torch.Tensor  # (B, S, D), zero at padding
    padding_mask: torch.Tensor | None  # (B, S) bool, True at padding; None if nothing is padding


class PaddingLast(NamedTuple):
    """How to move the padding of each row to its end, and back; None where it stands there."""

    mask: torch.Tensor | None  # (B, L) bool, with the padding moved
    order: torch.Tensor | None  # (B, L) int64

    @classmethod
    def of(cls, mask_BL: torch.Tensor) -> "PaddingLast":
        """Find where the tokens go, in their order."""
        if not bool(mask_BL.any()):
            return cls(None, None)
        moved_BL, order_BL = mask_BL.to(torch.uint8).sort(dim=1, stable=True)
        moved_BL = moved_BL.bool()
        return cls(moved_BL, None if torch.equal(moved_BL, mask_BL) else order_BL)

    def move(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Put the padding last."""
        return tokens_BL if self.order is None else tokens_BL.gather(1, self.order)

    def move_back(self, x_BL: torch.Tensor) -> torch.Tensor:
        """Return steps (B, L, ...) to their places."""
        if self.order is None:
            return x_BL
        back = self.order.argsort(1).view(*self.order.shape, *(1,) * (x_BL.dim() - 2))
        return x_BL.gather(1, back.expand_as(x_BL))


class Encoder(nn.Module):
    """Encode tokens as vectors that depend on the whole sequence, without a limit on its length.

    Padding may be anywhere: it is moved to the end, where it changes nothing, before chunks and
    rotations are counted.
    """

    def __init__(self, config: MegalodonConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embedding = embedding
        self.stack = MegalodonStack(config)

    def forward(self, tokens_BS: torch.Tensor) -> Encoded:
        """Encode tokens (B, S) int64.

        Raises ``ValueError`` for no tokens, and for a row of padding only.
        """
        mask_BS = tokens_BS == self.embedding.padding_idx
        if tokens_BS.numel() == 0:
            raise ValueError(
                f"the source has shape {tuple(tokens_BS.shape)} (batch, length), without a symbol; a "
                "source holds at least the end symbol"
            )
        padding = PaddingLast.of(mask_BS)
        if padding.mask is not None and bool(padding.mask[:, 0].any()):
            row = int(padding.mask[:, 0].nonzero()[0, 0])
            raise ValueError(
                f"row {row} of the source is padding only (symbol {self.embedding.padding_idx}); a "
                "source holds at least the end symbol"
            )
        x_BSD = self.embedding(padding.move(tokens_BS))
        x_BSD = F.dropout(x_BSD, self.dropout, self.training)
        x_BSD, _ = self.stack(x_BSD, padding.mask)
        return Encoded(padding.move_back(x_BSD), None if padding.mask is None else mask_BS)


class CrossBlock(MegalodonBlock):
    """Compute ``Y1 = Attention(Norm(X)) + X;  Y2 = Cross(Y1, E) + X;  Y = FFN(Norm(Y2)) + X``.

    Every branch adds to the block's input, as in the authors' interim code; with ``config.residual``
    "plain" each adds to the sum of those before it.
    """

    def __init__(self, config: MegalodonConfig, layer_index: int) -> None:
        super().__init__(config, layer_index)
        self.cross = GatedCrossAttention(config)

    def forward(
        self,
        x_BLD: torch.Tensor,
        source: SourceKeys,
        padding_mask_BL: torch.Tensor | None = None,
        state: BlockState | None = None,
    ) -> tuple[torch.Tensor, BlockState | None]:
        """Map (B, L, D) to (B, L, D) and the state after the last step."""
        branch_BLD, state = self.attention(x_BLD, padding_mask_BL, state)
        y_BLD = drop_path(branch_BLD, self.drop_path, self.training) + x_BLD
        branch_BLD = drop_path(self.cross(y_BLD, source), self.drop_path, self.training)
        y_BLD = branch_BLD + (x_BLD if self.two_hop else y_BLD)
        branch_BLD = drop_path(self.feed_forward(y_BLD), self.drop_path, self.training)
        return branch_BLD + (x_BLD if self.two_hop else y_BLD), state


class CrossStack(MegalodonStack):
    """A causal stack whose blocks also attend to an encoded source."""

    block_type = CrossBlock

    def forward(
        self,
        x_BLD: torch.Tensor,
        sources: Sequence[SourceKeys],
        padding_mask_BL: torch.Tensor | None = None,
        state: StackState | None = None,
    ) -> tuple[torch.Tensor, StackState]:
        """Return (B, L, D), zero at padding, and the state after step L.

        sources: keys and values for each block.  Other arguments as in :class:`MegalodonStack`.
        """
        self.check_state(state)
        states = state.blocks if state is not None else (None,) * len(self.blocks)
        new_states = []
        for block, source, block_state in zip(self.blocks, sources, states, strict=True):
            x_BLD, block_state = self.run_block(block, x_BLD, source, padding_mask_BL, block_state)
            new_states.append(block_state)
        x_BLD, norm_state = self.norm(x_BLD, padding_mask_BL, state.norm if state else None)
        return x_BLD, StackState(tuple(new_states), norm_state)


class Decoder(nn.Module):
    """Score the next token of a target, given an encoded source and the tokens so far.

    A target may be fed in pieces with the state carried; the source's keys and values are computed once.
    """

    def __init__(
        self, config: MegalodonConfig, embedding: TokenEmbedding, output: TokenOutput
    ) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.model_dim = config.model_dim
        self.embedding = embedding
        self.stack = CrossStack(config)
        self.output = output

    def read_source(self, encoded: Encoded) -> tuple[SourceKeys, ...]:
        """Compute the keys and values of all blocks; ``ValueError`` for vectors of another width."""
        width = encoded.vectors.shape[-1]
        if width != self.model_dim:
            raise ValueError(
                f"the encoder's output has {width} features, this decoder reads {self.model_dim} "
                "(model.model_dim); use the encoder that it was built with, or one of its width"
            )
        return tuple(block.cross.keys_and_values(*encoded) for block in self.stack.blocks)

    def features(
        self,
        tokens_BL: torch.Tensor,
        sources: Sequence[SourceKeys],
        state: StackState | None = None,
    ) -> tuple[torch.Tensor, StackState]:
        """Return the input of the output layer, (B, L, D), zero at padding, and the state after step L.

        tokens: (B, L) int64; padding on the left is moved to the end first.  sources: of
        :meth:`read_source`.  state: of the steps before, which must not have ended in padding.
        """
        padding = PaddingLast.of(tokens_BL == self.embedding.padding_idx)
        x_BLD = self.embedding(padding.move(tokens_BL))
        x_BLD = F.dropout(x_BLD, self.dropout, self.training)
        x_BLD, state = self.stack(x_BLD, sources, padding.mask, state)
        return padding.move_back(x_BLD), state

    @torch.no_grad()
    def alignment(
        self, tokens_BL: torch.Tensor, sources: Sequence[SourceKeys]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what :meth:`features` returns, and the last block's weights of cross attention.

        The weights are (B, L, S), averaged over heads; a row is that of the token which follows.
        """
        seen = []
        last = self.stack.blocks[-1].cross
        hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
        with hook:
            x_BLD, _ = self.features(tokens_BL, sources)
        padding = PaddingLast.of(tokens_BL == self.embedding.padding_idx)
        return x_BLD, padding.move_back(last.weights(*seen[0]).mean(1))


class Seq2Seq(nn.Module):
    """An encoder and a decoder, each with its own vocabulary or with one for both."""

    def __init__(
        self, config: Seq2SeqConfig, source_size: int, target_size: int, padding_idx: int
    ) -> None:
        """Build both; ``ValueError`` for an impossible configuration.

        source_size, target_size: symbols of the two vocabularies, which share ``padding_idx``.
        """
        super().__init__()
        config.validate()
        if config.share_all_embeddings and source_size != target_size:
            raise ValueError(
                f"model.share_all_embeddings=true needs one dictionary, the source's has {source_size} "
                f"symbols and the target's {target_size}; prepare the data with --joined-dictionary"
            )
        d = config.model_dim
        source = TokenEmbedding(source_size, d, padding_idx)
        target = (
            source if config.share_all_embeddings else TokenEmbedding(target_size, d, padding_idx)
        )
        output = TokenOutput(d, target_size)
        if config.share_all_embeddings or config.share_decoder_input_output_embed:
            output.weight = target.weight
        self.encoder = Encoder(config.stack(causal=False), source)
        self.decoder = Decoder(config.stack(causal=True), target, output)
        for block in self.decoder.stack.blocks:
            nn.init.constant_(block.cross.qk_scale, config.cross_scale - 1)

    def forward(self, source_BS: torch.Tensor, target_BL: torch.Tensor) -> torch.Tensor:
        """Return scores (B, L, V), unnormalised log-probabilities of the token after each of target.

        source: (B, S) int64.  target: (B, L) int64, usually starting with the end symbol.
        """
        sources = self.decoder.read_source(self.encoder(source_BS))
        x_BLD, _ = self.decoder.features(target_BL, sources)
        return self.decoder.output.scores(x_BLD)
