"""Inputs for the tests of both norms over time."""

import torch


def randn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_mask(kind, batch, length):
    """Padding on the right, on the left, anywhere, or a first row of nothing else."""
    steps = torch.arange(length)[None]
    real = torch.tensor([max(1, length - 3 * row) for row in range(batch)])[:, None]
    masks = {
        "none": None,
        "right": steps >= real,
        "left": steps < length - real,
        "middle": torch.rand(batch, length, generator=torch.Generator().manual_seed(7)) < 0.4,
        "row": (torch.arange(batch) == 0)[:, None].expand(batch, length).contiguous(),
    }
    return masks[kind]


def two_pass(x, groups, eps=1e-5):
    """Timestep norm in float64 by sums around the mean of the whole: exact enough to judge float32."""
    x_BLGJ = x.double().unflatten(-1, (groups, -1))
    x_BLGJ = x_BLGJ - x_BLGJ.mean((1, 3), keepdim=True)
    steps = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)[None, :, None]
    mean = x_BLGJ.mean(-1).cumsum(1) / steps
    square = x_BLGJ.square().mean(-1).cumsum(1) / steps - mean.square()
    normed = (x_BLGJ - mean[..., None]) / (square.clamp(min=0) + eps).sqrt()[..., None]
    return normed.flatten(2)
