"""Times of several functions in turn, in one process, so that their ratios hold where speed varies."""

import math
import time
from collections.abc import Callable, Hashable, Mapping

import torch

# A sample shorter than this, in seconds, would measure the clock: fast functions are called repeatedly.
_SAMPLE = 5e-3
_MOST_CALLS = 200


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    functions: Mapping[Hashable, Callable[[], object]], repeats: int, device: torch.device
) -> dict[Hashable, list[float]]:
    """Seconds per call of each function, ``repeats`` samples each.

    One round takes a sample of every function, after one round that warms up and says how many calls a
    sample needs.  A function therefore finds the caches as the one before it left them.
    """
    calls = {}
    for name, function in functions.items():
        function()  # the first call may compile
        once = _sample(function, 1, device)
        calls[name] = min(_MOST_CALLS, math.ceil(_SAMPLE / max(once, 1e-9)))
    seconds: dict[Hashable, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(_sample(function, calls[name], device))
    return seconds


def _sample(function: Callable[[], object], calls: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait(device)
    return (time.perf_counter() - start) / calls
