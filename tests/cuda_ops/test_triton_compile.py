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

from benchmarks.kernel_calls import CALLS, DIMS

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes stored and loaded again: a few registers may spill, more mean that a tile is too large.
# Attention with wide values on an sm_80 keeps two accumulators and needs more than the rest; so does the
# kernel of cema's sums, which keeps four states and their products, most of all on an sm_100.
SPILLS = {"chunk_attention": 256, "cema": 400}
FEW_SPILLS = 100


def compiled(op, arch, dims, dtype="bfloat16"):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_counts", op, "--json", "--no-bytes"]
    command += [f"--arch={arch}", f"--dtype={dtype}", *(f"--dim={dim}" for dim in dims)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_fit(kernels, op, arch):
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[arch], kernel
        assert kernel["spills"] <= SPILLS.get(op, FEW_SPILLS), kernel


@pytest.mark.parametrize("op", ["sequence_norm"])
def test_kernels_of_a_small_model_compile(op):
    assert_fit(compiled(op, 90, [60]), op, 90)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("arch", SHARED_MEMORY)
@pytest.mark.parametrize("op", CALLS)
def test_kernels_compile_and_fit(op, dtype, arch):
    assert_fit(compiled(op, arch, DIMS, dtype), op, arch)
