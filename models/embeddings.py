"""From what a data set holds to vectors: (batch, length) tokens or samples -> (batch, length, dim)."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class TokenEmbedding(nn.Module):
    """Symbols or bytes.  N(0, 1/d), output times sqrt(d) if ``scaled``, padding symbol's row zero.

    Source: the authors' interim code for the same benchmarks.
    """

    def __init__(
        self, vocab_size: int, dim: int, padding_idx: int | None = None, scaled: bool = True
    ) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.scale = math.sqrt(dim) if scaled else 1.0
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        with torch.no_grad():
            nn.init.normal_(self.weight, std=dim**-0.5)
            if padding_idx is not None:
                self.weight[padding_idx].zero_()

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 -> (B, L, D)."""
        return F.embedding(tokens_BL, self.weight, padding_idx=self.padding_idx) * self.scale


class ScalarEmbedding(nn.Module):
    """Pixels or audio samples: each value times a learned vector, plus a learned vector.

    Vector N(0, 1), bias of deviation 0.1.  Source: the Mega code base, for images and raw speech.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))
        self.bias = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, samples_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) float -> (B, L, D)."""
        return torch.addcmul(self.bias, samples_BL.unsqueeze(-1).to(self.weight.dtype), self.weight)
