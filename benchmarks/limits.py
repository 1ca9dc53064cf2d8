"""What the machine can do, measured in the same rounds as the ops: a large product, a large copy."""

from collections.abc import Callable
from typing import NamedTuple

import torch

# Rows and columns of the product, bytes of the copy: far more than a cache, far less than a second.
_PRODUCT = {"cpu": 1536, "cuda": 8192}
_COPY = {"cpu": 1 << 27, "cuda": 1 << 30}


class Work(NamedTuple):
    """What a call has to do at least: operations (a multiplication and an addition are two) and bytes
    read and written, every tensor that it takes or gives once in each direction."""

    operations: float
    bytes: float


class Probe(NamedTuple):
    """Something of known size to run; its rate is ``amount`` over its seconds."""

    run: Callable[[], object]
    amount: float


class Rates(NamedTuple):
    """Operations and bytes (read plus written) per second."""

    matrix: float
    copy: float

    def seconds(self, work: Work) -> float:
        """The least time for ``work``: that of its operations or of its bytes, the longer."""
        return max(work.operations / self.matrix, work.bytes / self.copy)


def matrix_probe(device: torch.device, dtype: torch.dtype, size: int | None = None) -> Probe:
    """A product of two square matrices."""
    size = size or _PRODUCT[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return Probe(lambda: torch.mm(left, right, out=result), 2.0 * size**3)


def copy_probe(device: torch.device, size: int | None = None) -> Probe:
    """A copy from one place of the memory to another, both touched before."""
    size = size or _COPY[device.type]
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    return Probe(lambda: target.copy_(source), 2.0 * source.nbytes)
