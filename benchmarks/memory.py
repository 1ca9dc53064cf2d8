"""The memory of a call: what it saves for its backward pass, and how much more it holds at its peak."""

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(forward: Callable[[], object], held: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of all tensors that autograd saves during ``forward``, storage that is shared once.

    ``held`` are tensors that exist anyway, such as the parameters of a model, and do not count.
    """
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result  # kept until here, so that no storage is counted twice under one address
    for tensor in held:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that ``function`` holds at its peak beyond what was held before, results included.

    On CUDA by the allocator.  On the CPU by the resident memory of the process, which Linux can be asked
    to record again; None elsewhere.  Pages are counted when they are touched and the threads' own room
    is in it, so that it means little below some megabytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    if not os.access(_CLEAR, os.W_OK):
        return None
    _return_free_memory()
    _CLEAR.write_text("5")  # the peak starts from what is resident now
    before = _resident("VmRSS")
    result = function()
    del result
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024


def _return_free_memory() -> None:
    """Give free pages back to the system, so that using them again is seen (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
