"""The linear layer of all models, and its initialisation."""

import math

import torch
from torch import nn

from megalodon_tasks.cuda_ops.linear import linear


class Linear(nn.Linear):
    """Compute what ``torch.nn.Linear`` computes, by :func:`megalodon_tasks.cuda_ops.linear.linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


def init_linear(linear: nn.Linear, mode: str) -> None:
    """Initialise the matrix in place, and set the bias to 0.

    mode: ``he`` is Kaiming normal with slope sqrt(5), the default of the released model; ``bert`` is
    normal with deviation 0.02, the default of the authors' interim code; ``xavier`` is uniform.
    """
    if mode == "he":
        nn.init.kaiming_normal_(linear.weight, a=math.sqrt(5.0))
    elif mode == "bert":
        nn.init.normal_(linear.weight, std=0.02)
    elif mode == "xavier":
        nn.init.xavier_uniform_(linear.weight)
    else:
        raise ValueError(f"init_mode={mode!r} is unknown; choose he, bert or xavier")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
