"""From what a data set holds (tokens, samples, images) to vectors: (batch, length, dim)."""

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


class PatchEmbedding(nn.Module):
    """Images: each square patch through one linear map, plus a learned vector per position.

    The patches follow each other row by row.  The map is a convolution of PyTorch's initialisation; the
    position vectors are N(0, 1/d), cut off at two deviations, and tagged to take no weight decay.
    Source: the Mega code base for ImageNet, which has no class token either.

    Raises ``ValueError`` if the patch size does not divide the image size, (height, width) in pixels.
    """

    def __init__(
        self, dim: int, image_size: tuple[int, int], patch_size: int = 16, channels: int = 3
    ) -> None:
        super().__init__()
        self.image_shape = (channels, *image_size)
        if patch_size < 1 or any(side < 1 or side % patch_size for side in image_size):
            raise ValueError(
                f"patch_size={patch_size} does not divide the image size {tuple(image_size)}; "
                "choose sides that are multiples of the patch"
            )
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], dim))
        self.position.param_group = "no_weight_decay"
        std = dim**-0.5
        nn.init.trunc_normal_(self.position, std=std, a=-2 * std, b=2 * std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, height, width) float -> (B, L, D), with L = height * width / patch^2.

        Raises ``ValueError`` for images of another shape than declared.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}, this model was built for "
                f"{self.image_shape} (channels, height, width)"
            )
        return self.proj(images).flatten(2).transpose(1, 2) + self.position
