"""Count the bytes that the Triton kernels of an op load and store, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m benchmarks.kernel_bytes OP DIM [--batch 8] [--length 16384]

Prints one JSON object: bytes per kernel, in passes over x, and of the forward pass and of both passes
over the least possible, which is every tensor of the size of x once in each direction: x and y forward;
x, the gradient of y and that of x backward.

Some programs of each launch run, spread evenly, and stand for all.  Products are left out: addresses do
not depend on them.  A tensor that fits in the L2 cache several times over counts once per launch.
"""

import argparse
import bisect
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

# Programs that run for each launch.
_PROGRAMS = 6
# Bytes: of a tensor that stays in the L2 cache of a GPU while a kernel runs (H100: 50 MB).
_CACHED = 4 << 20


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _spread(programs: int) -> list[int]:
    """Return some programs, spread over all in steps that no size of a tile divides."""
    golden = (math.sqrt(5) - 1) / 2
    return sorted({int(programs * (k * golden % 1)) for k in range(_PROGRAMS)})


class _Launch:
    """Bytes that the programs of one launch load and store, by storage."""

    def __init__(self, arguments: list[object]) -> None:
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for argument in arguments
            for t in _tensors(argument)
        }
        self._starts = sorted(storages)
        self._sizes = [storages[start] for start in self._starts]
        self._moved: dict[tuple[int, str], int] = defaultdict(int)

    def add(self, addresses: np.ndarray, mask: np.ndarray, size: int, direction: str) -> None:
        """Count an access of elements of ``size`` bytes."""
        if mask.any():
            storage = bisect.bisect(self._starts, int(addresses[mask].flat[0])) - 1
            self._moved[storage, direction] += int(mask.sum()) * size

    def total(self, scale: float) -> float:
        """Return the bytes of all programs, ``scale`` times as many as ran."""
        total = 0.0
        for (storage, _), moved in self._moved.items():
            size = self._sizes[storage]
            total += min(moved * scale, size) if size <= _CACHED else moved * scale
        return total


class Counter:
    """Makes launches of this process count bytes; results of ops are meaningless then."""

    def __init__(self) -> None:
        from triton.runtime import interpreter

        self.by_kernel: dict[str, float] = defaultdict(float)
        self._launch: _Launch | None = None
        self._places: list[int] = []
        self._patch_accesses(interpreter)
        self._patch_grids(interpreter)

    def _patch_accesses(self, interpreter: object) -> None:
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(this: object, ptrs: object, mask: object, *options: object) -> object:
            self._add(ptrs, mask, "load")
            return load(this, ptrs, mask, *options)

        def counted_store(
            this: object, ptrs: object, value: object, mask: object, *options: object
        ) -> object:
            self._add(ptrs, mask, "store")
            return store(this, ptrs, value, mask, *options)

        builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
        builder.create_dot = lambda this, a, b, acc, *options: acc

    def _add(self, ptrs: object, mask: object, direction: str) -> None:
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        self._launch.add(ptrs.data, mask.data, size, direction)

    def _patch_grids(self, interpreter: object) -> None:
        original = interpreter.InterpretedFunction.__getitem__

        def sampled(kernel: object, grid: tuple[int]) -> object:
            places = _spread(grid[0])

            def launch(*args: object, **options: object) -> None:
                self._launch, self._places = _Launch([*args, *options.values()]), places
                original(kernel, (len(places),))(*args, **options)
                moved = self._launch.total(grid[0] / len(places))
                self.by_kernel[kernel.fn.__name__] += moved

            return launch

        def set_place(builder: object, x: int, y: int, z: int) -> None:
            builder.grid_idx = (self._places[x], y, z)

        interpreter.InterpretedFunction.__getitem__ = sampled
        interpreter.InterpreterBuilder.set_grid_idx = set_place


def count(op: str, dim: int, batch: int, length: int, dtype: torch.dtype) -> dict[str, object]:
    """Return bytes by kernel, and of the passes over the least; in a process of its own."""
    from benchmarks.kernel_calls import CALLS

    # Numbers that no program wrote are arbitrary.
    np.seterr(all="ignore")
    counter = Counter()
    y = CALLS[op](batch, length, dim, dtype)
    forward = sum(counter.by_kernel.values())
    torch.autograd.backward(y, torch.empty_like(y))
    both = sum(counter.by_kernel.values())
    once = batch * length * dim * dtype.itemsize
    return {
        "op": op,
        "dim": dim,
        "batch": batch,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "forward_over_least": round(forward / (2 * once), 3),
        "both_over_least": round(both / (5 * once), 3),
        "passes": {name: round(moved / once, 3) for name, moved in counter.by_kernel.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_bytes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("op", choices=("cema", "timestep_norm", "sequence_norm"))
    parser.add_argument("dim", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    args = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("bytes are counted in Triton's interpreter: set TRITON_INTERPRET=1")
    dtype = getattr(torch, args.dtype)
    json.dump(count(args.op, args.dim, args.batch, args.length, dtype), sys.stdout)
    print()


if __name__ == "__main__":
    main()
