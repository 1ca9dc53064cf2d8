"""The Triton kernels compile for GPUs, which need not be there, and fit them.

The interpreter accepts what the compiler does not: types that change in a loop, operands of a product
that differ, more shared memory than there is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_ops.compile_kernels import SHARED_MEMORY

ROOT = Path(__file__).resolve().parents[2]
# Bytes stored and loaded again: a few registers may spill, more mean that a tile is too large.
# Attention with wide values on an sm_80 keeps two accumulators and needs more than the rest.
SPILLS = {"chunk_attention": 256, "cross_attention": 256}
FEW_SPILLS = 100


def compiled(op, dtype, arch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.cuda_ops.compile_kernels", op, dtype, str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("op", "arch"),
    [
        (op, arch)
        for op in ("cema", "timestep_norm", "sequence_norm", "chunk_attention", "cross_attention")
        for arch in SHARED_MEMORY
        # CEMA takes fewer channels where a GPU has less memory than it wants, and asks the GPU itself.
        if (op, arch) != ("cema", 89)
    ],
)
def test_kernels_compile_and_fit(op, dtype, arch):
    kernels = compiled(op, dtype, arch)
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[arch], kernel
        assert kernel["spills"] <= SPILLS.get(op, FEW_SPILLS), kernel
