"""Compile the Triton kernels of an op for a GPU that need not be there, down to machine code."""

import contextlib
import importlib
import io
import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from benchmarks.kernel_calls import forward_and_backward
from benchmarks.ptx_banks import wavefronts_per_warp

# Bytes of shared memory that a program may have: A100, Ada, H100, B200.
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Of the calls, which compile whatever they are; sizes that divide by 16 as in training, or do not.
_BATCH, _LENGTH = 8, 16384


class AbsentGPU:
    """The part of Triton's driver that compilation asks for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """Makes launches of this process compile and nothing else; results of ops are meaningless then."""

    def __init__(self, arch: int) -> None:
        self.kernels: dict[int, dict[str, object]] = {}
        launch = jit.JITFunction.run
        driver.set_active(AbsentGPU(arch))
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        tiles = importlib.import_module("megalodon_tasks.cuda_ops.attention.triton_launch")
        tiles.SHARED_MEMORY = SHARED_MEMORY[arch]

        def compile_only(
            function: object, *args: object, grid: object, warmup: bool, **options: object
        ) -> None:
            log = io.StringIO()
            with contextlib.redirect_stdout(log):
                kernel = launch(function, *args, grid=grid, warmup=True, **options)
            if id(kernel) not in self.kernels:
                self.kernels[id(kernel)] = _resources(kernel, log.getvalue()) | {"held": kernel}

        jit.JITFunction.run = compile_only

    def compile(self, op: str, dim: int, dtype: torch.dtype) -> list[dict[str, object]]:
        """Return the resources of the kernels that a call of the op launches, forward and backward.

        Sequences are long, except that a padded one has a length that 16 does not divide.
        """
        before = dict(self.kernels)
        forward_and_backward(op, _BATCH, _LENGTH if dim >= 512 else _LENGTH - 7, dim, dtype)
        return [
            {name: value for name, value in found.items() if name != "held"}
            for key, found in self.kernels.items()
            if key not in before
        ]


def _resources(kernel: object, log: str) -> dict[str, object]:
    """Return what the assembler says of a kernel, and its wavefronts of shared memory."""
    warps = kernel.metadata.num_warps
    return {
        "kernel": kernel.metadata.name,
        "warps": warps,
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "shared": kernel.metadata.shared,
        "wavefronts": round(wavefronts_per_warp(kernel.asm["ptx"], warps), 1),
    }
