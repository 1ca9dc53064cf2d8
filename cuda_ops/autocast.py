"""Keeping an op that carries float32 states out of torch.autocast."""

import functools
from collections.abc import Callable

import torch


def without_autocast(function: Callable) -> Callable:
    """Decorate an op whose first argument is a tensor to run outside of autocast.

    Autocast would round the operands of its matrix products, states among them, to 16 bits.
    """

    @functools.wraps(function)
    def run(x: torch.Tensor, *args: object, **kwargs: object) -> object:
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return function(x, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(x, *args, **kwargs)

    return run
