"""Run the Triton kernels on a GPU for the first time: parity, times, special cases, within six minutes.

    python -m benchmarks.gpu_check                           # from a checkout, with torch and Triton
    python -m benchmarks.gpu_check --section special --out records.jsonl
    TRITON_INTERPRET=1 python -m benchmarks.gpu_check --device cpu      # tiny sizes: see that it runs

Prints one JSON line per case, with the name of the device, and last a summary.  ``ok`` is true, false,
or null where nothing is asked.  Each section is a process with a budget of its own, so that neither a
crash nor a hang in one stops the others.  The exit status is 1 if anything failed.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_run import Record, Run

# Of everything, in seconds, and what a process needs beyond its budget to start and to stop.
_TOTAL = 360.0
_GRACE = 15.0


class Section(NamedTuple):
    """Sections of one stage run at the same time, each for ``seconds`` at most."""

    stage: int
    seconds: float
    records: Callable[[Run], Iterator[Record]]


def sections() -> dict[str, Section]:
    """Return all sections by name; compiling kernels, not running them, takes the time of stage 1."""
    import torch

    from benchmarks import gpu_parity, gpu_special, gpu_times

    timed = gpu_times.timed_cases(Run(torch.device("cuda"), 0.0))
    parity = {
        f"parity.{op}": Section(1, 95, partial(gpu_parity.parity, op=op)) for op in gpu_parity.CASES
    }
    warm = {
        f"warm.{index}": Section(1, 95, partial(gpu_times.warm, index=index))
        for index in range(len(timed))
    }
    return {
        "device": Section(0, 15, gpu_times.device),
        **parity,
        **warm,
        "times": Section(2, 90, gpu_times.times),
        "special": Section(3, 60, gpu_special.special),
        "large": Section(4, 25, gpu_special.large),
    }


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor under the interpreter."""
    import torch

    return (
        torch.cuda.get_device_name() if device == "cuda" else f"interpreter, {platform.machine()}"
    )


def run_here(name: str, device: str, seconds: float) -> None:
    """Print the records of one section."""
    import torch

    run = Run(torch.device(device), time.monotonic() + seconds)
    torch.manual_seed(0)
    for record in sections()[name].records(run):
        print(json.dumps({"section": name, "device": device_name(device), **record}), flush=True)


class Process:
    """A section that runs in a process of its own."""

    def __init__(self, name: str, device: str, seconds: float, folder: Path) -> None:
        self.name, self.device = name, device
        self._output, self._errors = folder / f"{name}.jsonl", folder / f"{name}.err"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--here", name]
        command += ["--device", device, "--seconds", str(seconds)]
        with self._output.open("w") as output, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).resolve().parents[1],
                # One thread compiles at a time in each of several processes.
                env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self._end = time.monotonic() + seconds + _GRACE

    def records(self) -> Iterator[Record]:
        """Wait for the section, stop it if it is late, and yield its records."""
        try:
            status = self._process.wait(max(0.0, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            status = "stopped: out of time"
        for line in self._output.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut off in the middle
                continue
        if status != 0:
            tail = self._errors.read_text()[-600:]
            place = {"section": self.name, "device": device_name(self.device)}
            record = place | {"case": "process", "ok": False}
            yield record | {"status": status, "error": tail}

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def run_all(names: list[str], device: str, seconds: float) -> Iterator[Record]:
    """Yield the records of the sections, stage after stage, within ``seconds`` in all."""
    table, end = sections(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for _, stage in groupby(names, key=lambda name: table[name].stage):
            processes = []
            for name in stage:
                left = end - time.monotonic() - _GRACE
                if left < 5:
                    yield {"section": name, "case": "all", "ok": None, "skipped": "no time left"}
                    continue
                budget = min(left, table[name].seconds)
                processes.append(Process(name, device, budget, Path(folder)))
            try:
                for process in processes:
                    yield from process.records()
            finally:
                for process in processes:
                    process.stop()


def summary(records: list[Record], device: str, seconds: float) -> Record:
    """Return the last line: how many cases passed, and which failed or were skipped."""

    def named(chosen: Callable[[Record], bool]) -> list[str]:
        return [f"{r['section']}: {r['case']}" for r in records if chosen(r)]

    return {
        "section": "summary",
        "device": device_name(device),
        "passed": len(named(lambda r: r["ok"] is True)),
        "failed": named(lambda r: r["ok"] is False),
        "skipped": named(lambda r: "skipped" in r),
        "seconds": round(seconds, 1),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--section", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=_TOTAL, help="of everything")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the records there, too")
    parser.add_argument("--here", metavar="NAME", help="run one section in this process")
    args = parser.parse_args(arguments)
    known = sections()
    chosen = args.section or list(known)
    for name in [*chosen, *([args.here] if args.here else [])]:
        if name not in known:
            parser.error(f"section {name!r} is not one of {', '.join(known)}")
    args.section = sorted(chosen, key=lambda name: known[name].stage)
    _check_device(parser, args.device)
    return args


def _check_device(parser: argparse.ArgumentParser, device: str) -> None:
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "PyTorch sees no CUDA device here; TRITON_INTERPRET=1 and --device cpu run tiny sizes in "
            "Triton's interpreter"
        )
    if device == "cuda" and interpreted:
        parser.error("TRITON_INTERPRET=1 would interpret the kernels on the CPU: unset it")
    if device == "cpu" and not interpreted:
        parser.error("--device cpu runs Triton's interpreter: set TRITON_INTERPRET=1")


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    args, start = parse(arguments), time.monotonic()
    if args.here:
        run_here(args.here, args.device, args.seconds)
        return
    records: list[Record] = []

    def show(record: Record) -> None:
        print(json.dumps(record), flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")

    for record in run_all(args.section, args.device, args.seconds):
        records.append(record)
        show(record)
    last = summary(records, args.device, time.monotonic() - start)
    show(last)
    if last["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
