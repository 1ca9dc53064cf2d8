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
