"""Where the time of a step goes: per cent by kind of work, from PyTorch's profiler, on a CPU."""

from collections.abc import Callable

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

# The first of these that is part of an event's name decides for it and for all that it calls.
_KINDS = {
    "CEMA": ("cema",),
    "norms": ("Norm", "_norm"),
    "attention": ("softmax", "scaled_dot_product", "flash_attention", "aten::bmm", "baddbmm"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear", "mkldnn::_linear"),
    "optimizer": ("Optimizer.", "foreach_norm", "adam"),
}
OTHER = "elementwise and the rest"


def shares(step: Callable[[], object]) -> dict[str, int]:
    """Kind of work -> per cent of one call of ``step``."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        step()
    spent = dict.fromkeys((*_KINDS, OTHER), 0.0)
    for event in profile.events():
        if event.cpu_parent is None:
            _add(event, spent)
    total = sum(spent.values())
    return {kind: round(100 * time / total) for kind, time in spent.items()}


def _add(event: FunctionEvent, spent: dict[str, float]) -> None:
    for kind, names in _KINDS.items():
        if any(name in event.name for name in names):
            spent[kind] += event.cpu_time_total
            return
    spent[OTHER] += event.self_cpu_time_total
    for child in event.cpu_children:
        _add(child, spent)
