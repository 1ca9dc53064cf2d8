"""Results of runs: one JSON line each beside the run, and the published numbers to compare them with."""

import contextlib
import csv
import datetime
import importlib.metadata
import importlib.resources
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import megalodon_tasks

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None


def append(file: Path, record: dict[str, Any]) -> None:
    """Add ``record`` to ``file`` as one line, whole or not at all, also beside other writers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        # a line that a crash of the machine cut short must not swallow this one
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * torn + json.dumps(record).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Keep other writers out until ``descriptor`` is closed, where the file system can."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def relative(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``, so that a folder of runs can be moved."""
    return os.path.relpath(path.resolve(), folder.resolve())


def environment(device: torch.device) -> dict[str, Any]:
    """Date, device, versions, and the commit if this is a git checkout."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else _processor_name(),
        "versions": {
            "megalodon_tasks": megalodon_tasks.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fairseq": _fairseq_version(),
        },
        "commit": _commit(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _fairseq_version() -> str | None:
    for name in ("fairseq-fixed", "fairseq"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    root = Path(megalodon_tasks.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def published(benchmark: str) -> list[dict[str, str]]:
    """The rows of ``recipes/results.csv`` for ``benchmark`` and its variants (``benchmark-...``)."""
    rows = _table("results.csv")
    return [row for row in rows if row["id"] == benchmark or row["id"].startswith(f"{benchmark}-")]


def peers(benchmark: str) -> list[dict[str, str]]:
    """The rows of ``recipes/published.csv`` for ``benchmark``: what each published system reached."""
    return [row for row in _table("published.csv") if row["id"] == benchmark]


def _table(name: str) -> list[dict[str, str]]:
    table = importlib.resources.files("megalodon_tasks.recipes").joinpath(name)
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary(record: dict[str, Any], rows: list[dict[str, str]]) -> list[str]:
    """The lines to print: the result, the best constant answer, ``rows`` of this project's recipes,
    and other published systems.
    """
    found = [("this checkpoint", record["value"], _position(record))]
    if "top5" in record:
        found.append(("this checkpoint, top 5", record["top5"], ""))
    if record["best_constant"] is not None:
        found.append(("best constant answer", record["best_constant"], ""))
    found += [
        (r["id"], float(r["paper_value"]), r["paper_source"]) for r in rows if r["paper_value"]
    ]
    others = [
        row for row in peers(record["benchmark"]) if not row["system"].startswith("Megalodon")
    ]
    found += [(row["system"], float(row["value"]), row["source"]) for row in others if row["value"]]
    width = max(len(name) for name, _, _ in found)
    title = (
        f"{record['benchmark']}: {record['metric']} on {record['split']} "
        f"({record['n']} items, loss {record['loss']:.3f})"
    )
    lines = [f"  {name:{width}}  {value:6.2f}  {note}".rstrip() for name, value, note in found]
    return [title, *lines]


def _position(record: dict[str, Any]) -> str:
    return f"update {record['update']}, epoch {record['epoch']}, {record['params']:,} parameters"
