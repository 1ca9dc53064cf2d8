"""Run ops that carry float32 states outside of torch.autocast."""

import functools
from collections.abc import Callable

import torch


def without_autocast(function: Callable) -> Callable:
    """Decorate a function of a tensor, or of a tuple that starts with one, to run outside of autocast.

    Autocast would round the operands of its matrix products, states among them, to 16 bits.
    """

    @functools.wraps(function)
    def run(first: torch.Tensor | tuple, *args: object, **kwargs: object) -> object:
        kind = (first[0] if isinstance(first, tuple) else first).device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return function(first, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(first, *args, **kwargs)

    return run
