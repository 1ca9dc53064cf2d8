"""Embed tokens, samples or images as vectors.  Legend: B batch, L length, D dim."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.layers.no_decay import WithoutDecay


class TokenEmbedding(nn.Module):
    """Embed symbols or bytes: N(0, 1/d), output times sqrt(d) if ``scaled``, zeros for padding.

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
        """Embed tokens (B, L) int64 as (B, L, D)."""
        return F.embedding(tokens_BL, self.weight, padding_idx=self.padding_idx) * self.scale


class ScalarEmbedding(nn.Module):
    """Embed pixels or audio samples: each value times a learned vector, plus a learned bias.

    Vector N(0, 1), bias N(0, 0.01).  Source: the Mega code base, for images and raw speech.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))
        self.bias = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, samples_BL: torch.Tensor) -> torch.Tensor:
        """Embed samples (B, L) float as (B, L, D)."""
        return torch.addcmul(self.bias, samples_BL.unsqueeze(-1).to(self.weight.dtype), self.weight)


class PatchEmbedding(WithoutDecay):
    """Embed images: each square patch through one linear map, plus a learned vector per position.

    Patches are in row-major order.  The map is a convolution with PyTorch's initialisation; the position
    vectors are N(0, 1/d), truncated at two deviations, and tagged to take no weight decay.
    Source: the Mega code base for ImageNet, which has no class token either.

    Raises ``ValueError`` if the patch size does not divide the image size, (height, width) in pixels.
    """

    undecayed = ("position",)

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
        std = dim**-0.5
        nn.init.trunc_normal_(self.position, std=std, a=-2 * std, b=2 * std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, channels, height, width) as (B, L, D), L = height * width / patch^2.

        Raises ``ValueError`` for images of another shape than the model was built for.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}, this model was built for "
                f"{self.image_shape} (channels, height, width)"
            )
        return self.proj(images).flatten(2).transpose(1, 2) + self.position
