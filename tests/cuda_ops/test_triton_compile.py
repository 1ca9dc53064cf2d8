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

ROOT = Path(__file__).resolve().parents[2]
# Bytes that a program may have, of the generations 80 (A100) and 90 (H100).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
# A few registers may spill; hundreds of bytes mean that a tile is too large.
SPILLS = 100


def compiled(op, dtype, arch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.cuda_ops.compile_kernels", op, dtype, str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", ["cema"])
def test_kernels_compile_and_fit(op, dtype, arch):
    kernels = compiled(op, dtype, arch)
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[arch], kernel
        assert kernel["spills"] <= SPILLS, kernel
