"""Memory and time of training on many devices: simulated beside measured, and for large models.

    python -m benchmarks.scaling                # 1, 2 and 4 processes on this machine: two minutes
    python -m benchmarks.scaling table          # 1.3B and 7B on 256 H100, as in docs/scaling.md
    python -m benchmarks.scaling table --model 7b --gpu h200 --devices 512 --matrix-share 0.6

The first trains a small model with data and chunk parallelism on gloo and prints, for each number of
processes, the time of an update, its CPU time, and the bytes saved for the backward pass.  The second
computes the least memory and time at the published peaks of a GPU, or at a share of the peak rates of
products, of memory and of the links.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace

import torch

from benchmarks.limits import Rates
from benchmarks.scaling import tables
from benchmarks.scaling.calibration import TINY, Sizes
from benchmarks.scaling.costs import PRESETS
from benchmarks.scaling.devices import GPUS, Device, Link
from benchmarks.scaling.processes import compare


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    measure = parser.add_argument_group("measure")
    measure.add_argument("--processes", type=_positive, nargs="+", default=[1, 2, 4])
    measure.add_argument("--cores", type=_positive, default=len(os.sched_getaffinity(0)))
    measure.add_argument("--rounds", type=_positive, default=6)
    measure.add_argument("--tiny", action="store_true", help="only see whether it runs")
    table = parser.add_argument_group("table")
    table.add_argument("--model", choices=PRESETS, nargs="+", default=["1.3b", "7b"])
    table.add_argument("--gpu", choices=GPUS, default="h100")
    table.add_argument("--devices", type=_positive, default=tables.DEVICES)
    table.add_argument("--update-tokens", type=_positive, default=tables.TOKENS)
    for what in ("matrix", "copy", "link"):
        table.add_argument(
            f"--{what}-share", type=_share, default=1.0, help="of the published peak"
        )
    return parser


def _device(gpu: Device, matrix: float, copy: float, link: float) -> Device:
    near, far = (Link(link * one.rate, one.latency) for one in (gpu.near, gpu.far))
    rates = Rates(matrix * gpu.rates.matrix, copy * gpu.rates.copy)
    return replace(gpu, rates=rates, near=near, far=far)


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.what == "table":
            gpu = _device(GPUS[args.gpu], args.matrix_share, args.copy_share, args.link_share)
            for name in args.model:
                print(f"{name}, {args.devices} x {gpu.name}\n")
                print(tables.scaling_table(name, gpu, args.devices, args.update_tokens))
            return
        start = time.perf_counter()
        sizes = TINY if args.tiny else Sizes()
        rows, one, several = compare(args.processes, args.cores, args.rounds, sizes)
    except ValueError as error:
        parser.error(str(error))
    print(tables.measured_table(rows))
    print(tables.device_table(one, several))
    run = {"cores": args.cores, "rounds": args.rounds, "machine": platform.machine()}
    run |= {"torch": torch.__version__, "seconds": round(time.perf_counter() - start)}
    print(json.dumps(run))


if __name__ == "__main__":
    main()
