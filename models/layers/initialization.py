"""Initialisation of matrices."""

import math

from torch import nn


def init_linear(linear: nn.Linear, mode: str) -> None:
    """Initialise in place.  Biases become 0.

    mode: ``he`` Kaiming normal with slope sqrt(5), the released model's default; ``bert`` N(0, 0.02),
    the default of the authors' interim code; ``xavier`` uniform.
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
