"""Count what the Triton kernels take, without a GPU: registers, spills, shared memory, bytes.

    python -m benchmarks.kernel_counts                            # everything, some minutes
    python -m benchmarks.kernel_counts cema --arch 90 --dim 1024 --dim 60 --json

Kernels are compiled down to machine code for each architecture and dim (``kernel_compile.py``); a dim
whose kernels are those of an earlier one has no rows.  ``wavefronts`` are those of one pass through the
main loop, for each warp (``ptx_banks.py``).  Bytes are counted once per dim in Triton's interpreter
(``kernel_bytes.py``) at 8 x 16,384 steps, unless ``--no-bytes`` is given.

What is asked stands beside what was counted: no spills, shared memory that fits, wavefronts of cema's
loops, and bytes moved over the least possible.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# At most; the wavefronts are of a pass over 16 steps of bf16, in which a copy takes about 62.
WAVEFRONTS = {"cema_ends_kernel": 28, "cema_output_kernel": 64}
BYTES_OVER_LEAST = 1.6
# Both passes of these ops are held to BYTES_OVER_LEAST.
BYTES_ASKED = ("cema", "timestep_norm")

_COLUMNS = ("op", "arch", "dim", "kernel", "warps", "registers", "spills", "shared", "wavefronts")
_ARCHES = (80, 90, 100)


def compiled(ops: list[str], arch: int, dims: list[int], dtype: str) -> Iterator[dict[str, object]]:
    """Yield one record per kernel; launches of this process compile from now on."""
    import torch

    from benchmarks.kernel_compile import SHARED_MEMORY, Compiler

    compiler = Compiler(arch)
    for op in ops:
        for dim in dims:
            for kernel in compiler.compile(op, dim, getattr(torch, dtype)):
                record = {"op": op, "arch": arch, "dim": dim, "dtype": dtype} | kernel
                yield record | {"missed": missed(record, SHARED_MEMORY[arch])}


def missed(record: dict[str, object], shared_memory: int) -> list[str]:
    """Return what a kernel misses of what is asked."""
    limits = {"spills": 0, "shared": shared_memory}
    if record["dtype"] == "bfloat16" and record["kernel"] in WAVEFRONTS:
        limits["wavefronts"] = WAVEFRONTS[record["kernel"]]
    return [
        f"{name}: at most {most}, counted {record[name]}"
        for name, most in limits.items()
        if record[name] > most
    ]


def bytes_moved(op: str, dim: int, dtype: str) -> dict[str, object]:
    """Return what ``benchmarks.kernel_bytes`` counts, in a process under the interpreter."""
    command = [sys.executable, "-m", "benchmarks.kernel_bytes", op, str(dim), "--dtype", dtype]
    output = _run(command, os.environ | {"TRITON_INTERPRET": "1"})
    record = json.loads(output)
    over = record["both_over_least"]
    asked = op in BYTES_ASKED and over > BYTES_OVER_LEAST
    return record | {
        "missed": [f"bytes: at most {BYTES_OVER_LEAST}, counted {over}"] if asked else []
    }


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Run a process from the root of the checkout and return its output; its errors are shown."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit status {done.returncode}")
    return done.stdout


def rows(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield all records; each architecture in a process of its own, as Triton has one driver."""
    if len(args.arch) == 1:
        yield from compiled(args.op, args.arch[0], args.dim, args.dtype)
    else:
        shared = [*args.op, "--dtype", args.dtype, "--json", "--no-bytes"]
        shared += [f"--dim={dim}" for dim in args.dim]
        for arch in args.arch:
            command = [sys.executable, "-m", __spec__.name, *shared, f"--arch={arch}"]
            for line in _run(command, dict(os.environ)).splitlines():
                yield json.loads(line)
    if args.bytes:
        for op in args.op:
            for dim in args.dim if op != "chunk_attention" else ():
                yield bytes_moved(op, dim, args.dtype)


def table_row(record: dict[str, object]) -> str:
    """Return a line of the table."""
    verdict = "; ".join(record["missed"]) or "reached"
    if "passes" in record:
        what = ", ".join(f"{name} {moved:g}" for name, moved in record["passes"].items())
        over = f"bytes / least: {record['forward_over_least']} forward, {record['both_over_least']} both"
        cells = [record["op"], "any", record["dim"], f"{over} ({what})", *["-"] * 5]
    else:
        cells = [record[name] for name in _COLUMNS]
    return "| " + " | ".join(map(str, [*cells, verdict])) + " |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    from benchmarks.kernel_calls import CALLS, DIMS
    from benchmarks.kernel_compile import SHARED_MEMORY

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_counts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("op", nargs="*", metavar="OP", help=f"{', '.join(CALLS)} (default: all)")
    parser.add_argument("--arch", type=int, action="append", choices=sorted(SHARED_MEMORY))
    parser.add_argument("--dim", type=int, action="append", choices=DIMS)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--no-bytes", dest="bytes", action="store_false")
    parser.add_argument("--json", action="store_true", help="one JSON line per kernel")
    args = parser.parse_args(arguments)
    for name in args.op:
        if name not in CALLS:
            parser.error(f"op {name!r} is not one of {', '.join(CALLS)}")
    args.op, args.arch, args.dim = args.op or [*CALLS], args.arch or _ARCHES, args.dim or DIMS
    return args


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    args = parse(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("kernels cannot be compiled under the interpreter: unset TRITON_INTERPRET")
    if not args.json:
        print(f"| {' | '.join((*_COLUMNS, 'verdict'))} |")
        print("|---" * (len(_COLUMNS) + 1) + "|")
    for record in rows(args):
        print(json.dumps(record) if args.json else table_row(record), flush=True)


if __name__ == "__main__":
    main()
