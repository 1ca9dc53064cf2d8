"""A whole classifier in plain PyTorch: embedding, bidirectional stack, pooling, head."""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import PatchEmbedding, ScalarEmbedding, TokenEmbedding
from megalodon_tasks.models.heads import ClassHead, MeanPool, PairHead
from megalodon_tasks.models.inputs import ClassifierInputs
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.models.layers.rotary import RotaryEmbedding
from megalodon_tasks.models.stack import MegalodonStack


def build_embedding(inputs: ClassifierInputs, dim: int) -> nn.Module:
    """The embedding for this kind of input.  Raises ``ValueError`` for a kind that has none."""
    if inputs.kind == "tokens":
        return TokenEmbedding(inputs.vocab_size, dim, inputs.padding_idx)
    if inputs.kind in ("pixels", "waveform"):
        return ScalarEmbedding(dim)
    if inputs.kind == "patches":
        return PatchEmbedding(dim, inputs.image_size, inputs.patch_size, inputs.channels)
    raise ValueError(f"inputs.kind={inputs.kind!r} is not one of tokens, pixels, waveform, patches")


class SequenceClassifier(nn.Module):
    """Class scores of a sequence, of a pair of sequences, or of an image as a sequence of patches.

    ``config`` says what the Megalodon is, ``inputs`` what the data set holds.  Padding is right of the
    sequence and changes no score.
    """

    def __init__(self, config: MegalodonConfig, inputs: ClassifierInputs) -> None:
        super().__init__()
        d = config.model_dim
        self.dropout = config.dropout
        self.trained_chunk_size = config.chunk_size
        self.embedding = build_embedding(inputs, d)
        self.stack = MegalodonStack(config)
        self.pool = MeanPool(d, config.init_mode)
        if inputs.pair:
            self.head = PairHead(d, inputs.num_classes, config.dropout, config.init_mode)
        else:
            bias = inputs.kind == "patches"  # as Mega has it
            self.head = ClassHead(d, inputs.num_classes, config.dropout, bias)

    def set_time_step(self, factor: int) -> None:
        """Read signals sampled ``factor`` times more slowly than those of training, without retraining.

        All times stay what they were: CEMA's rates and angles (see :class:`ComplexEMA`), the angles of
        RoPE, of which a step now takes ``factor``, and the duration of an attention chunk, which has
        ``1 / factor`` as many steps.  1 brings the model of training back.

        Raises ``ValueError`` for a factor below 1 or one that does not divide the chunk size, and where
        the input is no signal: symbols and patches have no sampling rate.
        """
        if not isinstance(self.embedding, ScalarEmbedding):
            raise ValueError(
                f"time step {factor}: only models of a signal have one; this one embeds its input by "
                f"{type(self.embedding).__name__}"
            )
        chunk = self.trained_chunk_size
        if factor < 1 or (chunk is not None and chunk % factor):
            raise ValueError(
                f"time step {factor} must be at least 1 and divide the chunk size, {chunk}; slower "
                "signals than those of training by a whole factor can be read, faster ones cannot"
            )
        for module in self.stack.modules():
            if isinstance(module, (ComplexEMA, RotaryEmbedding)):
                module.time_step = factor
            elif isinstance(module, GatedAttention):
                module.chunk_size = None if chunk is None else chunk // factor

    def encode(self, inputs: torch.Tensor, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
        """One vector per sequence: inputs as in ``forward``, (B,) lengths -> (B, D)."""
        x_BLD = F.dropout(self.embedding(inputs), self.dropout, self.training)
        padding_mask_BL = None
        if lengths_B is not None:
            padding_mask_BL = padding_mask_from_lengths(lengths_B, x_BLD.shape[1])
        x_BLD, _ = self.stack(x_BLD, padding_mask_BL)
        return self.pool(x_BLD, padding_mask_BL)

    def forward(
        self,
        inputs: torch.Tensor,
        lengths: torch.Tensor | None = None,
        inputs2: torch.Tensor | None = None,
        lengths2: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """inputs: (B, L) int64 tokens or float samples, or (B, channels, height, width) float images.

        lengths: (B,) int64, each in [0, L]; None where nothing is padding.
        inputs2, lengths2: the other side of a pair, of any length of its own.  Returns (B, classes).
        """
        first_BD = self.encode(inputs, lengths)
        if isinstance(self.head, PairHead):
            if inputs2 is None or lengths2 is None:
                raise ValueError("this model classifies pairs; pass inputs2 and lengths2 as well")
            return self.head(first_BD, self.encode(inputs2, lengths2))
        return self.head(first_BD)


def padding_mask_from_lengths(lengths_B: torch.Tensor, length: int) -> torch.Tensor | None:
    """(B,) lengths -> (B, length) bool, True at padding; None when there is none at all.

    None lets the ops skip every masking pass.
    """
    mask_BL = torch.arange(length, device=lengths_B.device) >= lengths_B.unsqueeze(1)
    return mask_BL if bool(mask_BL.any()) else None
