"""A whole classifier in plain PyTorch: embedding, bidirectional stack, pooling, head."""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import ScalarEmbedding, TokenEmbedding
from megalodon_tasks.models.heads import ClassHead, MeanPool, PairHead
from megalodon_tasks.models.inputs import ClassifierInputs
from megalodon_tasks.models.stack import MegalodonStack


def build_embedding(inputs: ClassifierInputs, dim: int) -> nn.Module:
    """The embedding for this kind of input.  Raises ``ValueError`` for a kind that has none."""
    if inputs.kind == "tokens":
        return TokenEmbedding(inputs.vocab_size, dim, inputs.padding_idx)
    if inputs.kind in ("pixels", "waveform"):
        return ScalarEmbedding(dim)
    raise ValueError(f"inputs.kind={inputs.kind!r} is not one of tokens, pixels, waveform")


class SequenceClassifier(nn.Module):
    """Class scores of a sequence, or of a pair of sequences.

    ``config`` says what the Megalodon is, ``inputs`` what the data set holds.  Padding is right of the
    sequence and changes no score.
    """

    def __init__(self, config: MegalodonConfig, inputs: ClassifierInputs) -> None:
        super().__init__()
        d = config.model_dim
        self.dropout = config.dropout
        self.embedding = build_embedding(inputs, d)
        self.stack = MegalodonStack(config)
        self.pool = MeanPool(d, config.init_mode)
        if inputs.pair:
            self.head = PairHead(d, inputs.num_classes, config.dropout, config.init_mode)
        else:
            self.head = ClassHead(d, inputs.num_classes, config.dropout)

    def encode(self, inputs_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """One vector per sequence: (B, L) tokens or samples, (B,) lengths -> (B, D)."""
        padding_mask_BL = padding_mask_from_lengths(lengths_B, inputs_BL.shape[1])
        x_BLD = F.dropout(self.embedding(inputs_BL), self.dropout, self.training)
        x_BLD, _ = self.stack(x_BLD, padding_mask_BL)
        return self.pool(x_BLD, padding_mask_BL)

    def forward(
        self,
        inputs: torch.Tensor,
        lengths: torch.Tensor,
        inputs2: torch.Tensor | None = None,
        lengths2: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """inputs: (B, L) int64 tokens or float samples.  lengths: (B,) int64, each in [0, L].

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
