"""Counts of what kernels take: conflicts in PTX written by hand, bytes of a small call, the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.kernel_counts import main, missed, table_row
from benchmarks.ptx_banks import wavefronts_per_warp

ROOT = Path(__file__).resolve().parents[2]


def kernel(address, access, loop=True):
    """PTX whose main loop has one access at ``address`` of the lane, which is in %r1."""
    body = f"{address}\n{access}"
    if loop:
        body = f"$L_1:\nmma.sync.aligned.m16n8k16 {{%r90}}, {{%r91}};\n{body}\n@%p1 bra $L_1;"
    return f"mov.u32 %r1, %tid.x;\nst.shared.b32 [%r1], %r0;\n{body}"


@pytest.mark.parametrize(
    ("address", "access", "wavefronts"),
    [
        ("shl.b32 %r2, %r1, 2;", "ld.shared.b32 %r3, [%r2];", 1),
        ("shl.b32 %r2, %r1, 3;", "ld.shared.b32 %r3, [%r2+64];", 2),
        ("shl.b32 %r2, %r1, 7;", "@%p0 st.shared.b32 [%r2], %r3;", 32),
        ("shl.b32 %r2, %r1, 5;", "ld.shared.u16 %rs3, [%r2];", 8),
        ("mov.b32 %r2, 12;", "ld.shared.b32 %r3, [%r2];", 1),
        ("shl.b32 %r2, %r1, 4;", "ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r2];", 4),
        ("shl.b32 %r2, %r1, 4;", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3}, [%r2];", 4),
        ("shl.b32 %r2, %r1, 7;", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3}, [%r2];", 32),
        (
            "shl.b32 %r4, %r1, 7;\nshl.b32 %r5, %r1, 4;\nand.b32 %r6, %r5, 112;\nxor.b32 %r2, %r4, %r6;",
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3}, [%r2];",
            4,
        ),
        ("shl.b32 %r2, %r1, 4;", "cp.async.cg.shared.global [ %r2 + 0 ], [ %rd1 + 0 ], 16;", 4),
    ],
)
def test_wavefronts_of_patterns(address, access, wavefronts):
    assert wavefronts_per_warp(kernel(address, access), 1) == wavefronts


def test_wavefronts_without_a_loop_are_those_of_the_kernel():
    stored_and_loaded = kernel("shl.b32 %r2, %r1, 7;", "ld.shared.b32 %r3, [%r2];", loop=False)
    assert wavefronts_per_warp(stored_and_loaded, 2) > 32


def test_an_unknown_instruction_is_named():
    with pytest.raises(ValueError, match="brev"):
        wavefronts_per_warp(kernel("brev.b32 %r2, %r1;", "ld.shared.b32 %r3, [%r2];"), 1)


def test_what_is_missed_is_said():
    record = {"op": "cema", "arch": 90, "dim": 64, "dtype": "bfloat16", "warps": 16}
    record |= {"kernel": "cema_ends_kernel", "registers": 64, "spills": 4, "shared": 0}
    record["wavefronts"] = 1000.0
    record["missed"] = missed(record, 99)
    assert record["missed"] == [
        "spills: at most 0, counted 4",
        "wavefronts: at most 28, counted 1000.0",
    ]
    assert "| cema_ends_kernel | 16 | 64 | 4 |" in table_row(record)
    assert missed(record | {"spills": 0, "wavefronts": 20.0}, 99) == []


def test_bytes_of_a_short_call():
    command = [sys.executable, "-m", "benchmarks.kernel_bytes", "sequence_norm", "64"]
    command += ["--batch", "2", "--length", "40", "--dtype", "float32"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(done.stdout)
    # Besides x and y: moments of each feature, scale and bias.
    assert 1.5 <= record["forward_over_least"] < 1.9
    assert 1.6 <= record["both_over_least"] < 1.9
    assert 2 <= record["passes"]["sequence_norm_kernel"] < 2.5
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["fft"], "op 'fft' is not one of cema"), (["--dim", "61"], "--dim: invalid choice")],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_compiling_is_refused_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="unset TRITON_INTERPRET"):
        main(["cema"])
