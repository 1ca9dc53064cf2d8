"""Turn the vectors of a sequence into scores.  Legend: B batch, L length, D dim, V vocabulary."""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.layers.linear import Linear, init_linear


class MeanPool(nn.Module):
    """Average ``SiLU(W x + x)`` over the real positions: the tail of the encoder.

    A sequence of padding only gives zeros.
    """

    def __init__(self, dim: int, init_mode: str) -> None:
        super().__init__()
        self.proj = Linear(dim, dim)
        init_linear(self.proj, init_mode)

    def forward(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map (B, L, D) to (B, D)."""
        x_BLD = F.silu(self.proj(x_BLD) + x_BLD)
        if padding_mask_BL is None:
            return x_BLD.mean(1)
        x_BLD = x_BLD.masked_fill(padding_mask_BL.unsqueeze(-1), 0.0)
        count_B1 = (~padding_mask_BL).sum(1, keepdim=True).clamp(min=1)
        return x_BLD.sum(1) / count_B1


class ClassHead(nn.Module):
    """Dropout and one linear layer (Xavier, bias 0); only classifiers of images have a bias."""

    def __init__(self, dim: int, num_classes: int, dropout: float, bias: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.proj = Linear(dim, num_classes, bias=bias)
        init_linear(self.proj, "xavier")

    def forward(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Map (B, D) to (B, classes)."""
        return self.proj(F.dropout(pooled_BD, self.dropout, self.training))


class PairHead(nn.Module):
    """Score a pair of sequences from ``[a, b, a * b, a - b]`` through one hidden layer.

    Dropout acts on that vector and on the hidden layer.  Source: the authors' interim code for the
    Retrieval task.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float, init_mode: str) -> None:
        super().__init__()
        self.dropout = dropout
        self.hidden = Linear(4 * dim, dim)
        init_linear(self.hidden, init_mode)
        self.head = ClassHead(dim, num_classes, dropout)

    def forward(self, a_BD: torch.Tensor, b_BD: torch.Tensor) -> torch.Tensor:
        """Map two (B, D) to (B, classes)."""
        joined = torch.cat((a_BD, b_BD, a_BD * b_BD, a_BD - b_BD), dim=-1)
        joined = F.dropout(joined, self.dropout, self.training)
        return self.head(F.gelu(self.hidden(joined)))


class TokenOutput(Linear):
    """Score the next token by one matrix without bias, truncated N(0, 1/d)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__(dim, vocab_size, bias=False)
        nn.init.trunc_normal_(self.weight, std=dim**-0.5)

    def scores(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to unnormalised log-probabilities (B, L, V)."""
        return self(x_BLD)

    def nll(self, x_BLD: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of ``targets`` (B, L) in nats: (B, L) float32."""
        logits_BVL = self(x_BLD).float().transpose(1, 2)
        return F.cross_entropy(logits_BVL, targets_BL, reduction="none")
