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

from megalodon_tasks.cuda_ops.attention.arguments import ChunkAttentionCall
from megalodon_tasks.cuda_ops.attention.cross.op import CrossAttentionCall
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState

OPS = "megalodon_tasks.cuda_ops"
# Bytes that a program may have, of the generations 80 (A100), 89 (Ada) and 90 (H100).
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}


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
    run = importlib.import_module(f"{OPS}.complex_ema.triton_op").cema_triton
    batch, length, dim, order = 2, 1000, 64, 16
    for bidirectional in (False, True):
        rows = 2 * dim if bidirectional else dim
        shapes = [(rows, order, 1), (rows, order, 1), (rows, 1, 1), (rows, order, 2), (dim, 1)]
        tensors = [torch.zeros(batch, length, dim, dtype=dtype), *map(torch.zeros, shapes)]
        state = None if bidirectional else torch.zeros(batch, dim, order, dtype=torch.complex64)
        mask = torch.zeros(batch, length, dtype=torch.bool) if bidirectional else None
        leaves = [tensor.requires_grad_() for tensor in tensors]
        y, last = run(CemaCall(*leaves, state, mask, bidirectional))
        loss = y.float().sum() + (0 if last is None else torch.view_as_real(last).sum())
        loss.backward()


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def timestep_norm(dtype: torch.dtype) -> None:
    """Many blocks with a state and padding, and one block: wide groups and single features."""
    run = importlib.import_module(f"{OPS}.norms.timestep.triton_op").timestep_norm_triton
    batch, dim = 2, 1024
    for groups in (1, 32, dim):
        moments = _zeros(batch, groups), _zeros(batch, groups)
        for length, state in (
            (2000, TimestepNormState(_zeros(batch, dtype=torch.int64), *moments)),
            (3, None),
        ):
            tensors = _zeros(batch, length, dim, dtype=dtype), _zeros(dim), _zeros(dim)
            mask = None if state is None else _zeros(batch, length, dtype=torch.bool)
            y, end = run(NormCall(*tensors, groups, 1e-5, mask, state))
            (y.float().sum() + end.mean.sum() + end.var.sum()).backward()


def sequence_norm(dtype: torch.dtype) -> None:
    """With padding and without: wide groups and single features."""
    run = importlib.import_module(f"{OPS}.norms.sequence.triton_op").sequence_norm_triton
    batch, length, dim = 2, 2000, 1024
    for groups in (1, 32, dim):
        tensors = _zeros(batch, length, dim, dtype=dtype), _zeros(dim), _zeros(dim)
        mask = None if groups == 1 else _zeros(batch, length, dtype=torch.bool)
        run(NormCall(*tensors, groups, 1e-5, mask)).float().sum().backward()


def chunk_attention(dtype: torch.dtype, sizes: tuple = ((64, 160), (96, 320), (256, 2048))) -> None:
    """Widths of the presets: narrow and encoding, wide and causal with DropKey."""
    run = importlib.import_module(f"{OPS}.attention.triton_op").chunk_attention_triton
    for key, value in sizes:
        causal = value > 256
        widths = (key, key, value)
        tensors = [_zeros(2, 4096, 1, width, dtype=dtype) for width in widths]
        mask, dropout_p = _zeros(2, 4096, dtype=torch.bool), 0.1 if causal else 0.0
        y, _ = run(ChunkAttentionCall(*tensors, 2048, causal, dropout_p, mask, None))
        y.float().sum().backward()


def cross_attention(dtype: torch.dtype) -> None:
    """Widths of the presets, with padding and DropKey."""
    run = importlib.import_module(f"{OPS}.attention.cross.triton_op").cross_attention_triton
    tensors = [_zeros(2, *size, dtype=dtype) for size in ((70, 1, 128), (90, 1, 128), (90, 1, 512))]
    mask = _zeros(2, 90, dtype=torch.bool)
    run(CrossAttentionCall(*tensors, 0.1, mask)).float().sum().backward()


if __name__ == "__main__":
    op, dtype, arch = sys.argv[1:]
    kernels = compile_launches(int(arch))
    tiles = importlib.import_module(f"{OPS}.attention.triton_launch")
    tiles.SHARED_MEMORY = SHARED_MEMORY[int(arch)]
    ops = (cema, timestep_norm, sequence_norm, chunk_attention, cross_attention)
    {function.__name__: function for function in ops}[op](getattr(torch, dtype))
    for kernel in {id(kernel): kernel for kernel in kernels}.values():
        print(json.dumps(resources(kernel)))
