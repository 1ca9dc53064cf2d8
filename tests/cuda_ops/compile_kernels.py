"""Compile the Triton kernels of one call for a GPU that need not be there.

``python -m tests.cuda_ops.compile_kernels OP DTYPE ARCH`` runs the op forward and backward on the CPU
with launches replaced by compilation, down to machine code, and prints one JSON object per kernel: its
name, registers, bytes of spills, bytes of shared memory.  The results of the op are meaningless.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit


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


def compile_launches(arch: int) -> list:
    """From now on launches compile; returns the list that the compiled kernels are added to."""
    compiled, launch = [], jit.JITFunction.run
    driver.set_active(AbsentGPU(arch))

    def compile_only(self, *args, grid, warmup, **options):
        compiled.append(launch(self, *args, grid=grid, warmup=True, **options))

    jit.JITFunction.run = compile_only
    return compiled


def resources(kernel: object) -> dict[str, object]:
    """What the assembler says of the kernel."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(kernel.asm["ptx"])
        source.flush()
        arch = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)[1]
        command = [
            triton.knobs.nvidia.ptxas.path,
            "-v",
            f"-arch={arch}",
            source.name,
            "-o",
            "/dev/null",
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "name": kernel.metadata.name,
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "shared": kernel.metadata.shared,
    }


def cema(dtype: torch.dtype) -> None:
    """Both kinds of call: causal with a state, and bidirectional with padding."""
    run = importlib.import_module("megalodon_tasks.cuda_ops.cema.triton_op").cema_triton
    batch, length, dim, order = 2, 1000, 64, 16
    for bidirectional in (False, True):
        rows = 2 * dim if bidirectional else dim
        shapes = [(rows, order, 1), (rows, order, 1), (rows, 1, 1), (rows, order, 2), (dim, 1)]
        tensors = [torch.zeros(batch, length, dim, dtype=dtype), *map(torch.zeros, shapes)]
        state = None if bidirectional else torch.zeros(batch, dim, order, dtype=torch.complex64)
        mask = torch.zeros(batch, length, dtype=torch.bool) if bidirectional else None
        leaves = [tensor.requires_grad_() for tensor in tensors]
        y, last = run(*leaves, state=state, padding_mask=mask, bidirectional=bidirectional)
        loss = y.float().sum() + (0 if last is None else torch.view_as_real(last).sum())
        loss.backward()


if __name__ == "__main__":
    op, dtype, arch = sys.argv[1:]
    kernels = compile_launches(int(arch))
    {"cema": cema}[op](getattr(torch, dtype))
    for kernel in {id(kernel): kernel for kernel in kernels}.values():
        print(json.dumps(resources(kernel)))
