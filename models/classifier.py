"""The classifier in plain PyTorch: embedding, bidirectional stack, pooling, head.

All architectures share it and differ in the stack and its configuration.

Legend: B batch, L length, D model dim.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.transforms import data_is_at_hand
from megalodon_tasks.models.config import EncoderConfig
from megalodon_tasks.models.embeddings import PatchEmbedding, ScalarEmbedding, TokenEmbedding
from megalodon_tasks.models.heads import ClassHead, MeanPool, PairHead
from megalodon_tasks.models.stack import MegalodonStack


@dataclass(frozen=True)
class ClassifierInputs:
    """Describe a classification data set as far as the model depends on it.

    kind: ``tokens`` (int64), ``pixels`` or ``waveform`` (float samples), or ``patches`` (images).
    vocab_size and padding_idx apply to tokens only.  max_length: longest sequence, 0 = no limit.
    pair: each item is two sequences.  image_size (height, width), patch_size (both in pixels) and
    channels apply to patches only.
    """

    kind: str
    num_classes: int
    vocab_size: int = 0
    padding_idx: int = 0
    max_length: int = 0
    pair: bool = False
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3


def build_embedding(inputs: ClassifierInputs, dim: int) -> nn.Module:
    """Build the embedding of width ``dim`` for ``inputs.kind``.  Raises ``ValueError`` if unknown."""
    if inputs.kind == "tokens":
        return TokenEmbedding(inputs.vocab_size, dim, inputs.padding_idx)
    if inputs.kind in ("pixels", "waveform"):
        return ScalarEmbedding(dim)
    if inputs.kind == "patches":
        return PatchEmbedding(dim, inputs.image_size, inputs.patch_size, inputs.channels)
    raise ValueError(f"inputs.kind={inputs.kind!r} is not one of tokens, pixels, waveform, patches")


class SequenceClassifier(nn.Module):
    """Classify a sequence, a pair of sequences, or an image read as a sequence of patches.

    Padding stands at the end of a sequence and changes no score.

    ``stack_type`` is built from ``config``.  It maps (B, L, D) and a padding mask (B, L) or None to
    (B, L, D), zero at padding, and a state that is not used here.  Attention in it has its chunk as
    ``chunk_size``, and each module that depends on the sampling rate has a ``time_step``, 1 at first;
    see :meth:`set_time_step`.
    """

    stack_type: ClassVar[type[nn.Module]] = MegalodonStack

    def __init__(self, config: EncoderConfig, inputs: ClassifierInputs) -> None:
        super().__init__()
        d = config.model_dim
        self.dropout = config.dropout
        self.trained_chunk_size = config.chunk_size
        self.embedding = build_embedding(inputs, d)
        self.stack = self.stack_type(config)
        self.pool = MeanPool(d, config.init_mode)
        if inputs.pair:
            self.head = PairHead(d, inputs.num_classes, config.dropout, config.init_mode)
        else:
            bias = inputs.kind == "patches"  # as Mega has it
            self.head = ClassHead(d, inputs.num_classes, config.dropout, bias)

    def set_time_step(self, factor: int) -> None:
        """Adapt the trained model to signals sampled ``factor`` times more slowly; 1 undoes it.

        All times in seconds stay the same: CEMA's rates and angles (see :class:`ComplexEMA`), RoPE's
        angles (a step advances by ``factor`` positions), and the duration of an attention chunk, which
        has ``1 / factor`` as many steps.

        Raises ``ValueError`` for a factor below 1 or one that does not divide the chunk size, and for
        tokens and patches, which have no sampling rate.
        """
        if not isinstance(self.embedding, ScalarEmbedding):
            raise ValueError(
                f"time step {factor}: only models of pixels or waveforms have one; this model "
                f"has a {type(self.embedding).__name__}"
            )
        chunk = self.trained_chunk_size
        if factor < 1 or (chunk is not None and chunk % factor):
            raise ValueError(
                f"time step {factor} must be at least 1 and divide the chunk size, {chunk}; the model "
                "can read signals sampled more slowly by a whole factor, but no faster ones"
            )
        for module in self.stack.modules():
            if hasattr(module, "time_step"):
                module.time_step = factor
            if hasattr(module, "chunk_size"):
                module.chunk_size = None if chunk is None else chunk // factor

    def encode(self, inputs: torch.Tensor, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
        """Encode ``inputs`` (see :meth:`forward`) and lengths (B,) as one vector each: (B, D)."""
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
        """Return class scores (B, classes).

        inputs: (B, L) int64 tokens or float samples, or (B, channels, height, width) float images.
        lengths: (B,) int64, each in [0, L]; None if nothing is padding.
        inputs2, lengths2: the second sequence of each pair, of any length.  Raises ``ValueError`` if a
        model of pairs does not get them.
        """
        first_BD = self.encode(inputs, lengths)
        if isinstance(self.head, PairHead):
            if inputs2 is None or lengths2 is None:
                raise ValueError("this model classifies pairs; pass inputs2 and lengths2 as well")
            return self.head(first_BD, self.encode(inputs2, lengths2))
        return self.head(first_BD)


def padding_mask_from_lengths(lengths_B: torch.Tensor, length: int) -> torch.Tensor | None:
    """Return (B, length) bool, True at padding, from lengths (B,); None if nothing is padding.

    None lets the ops skip every masking pass.  Code that is traced gets a mask in any case.
    """
    mask_BL = torch.arange(length, device=lengths_B.device) >= lengths_B.unsqueeze(1)
    return None if data_is_at_hand(mask_BL) and not mask_BL.any() else mask_BL
