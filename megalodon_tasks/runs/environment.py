"""Describe what a run or an evaluation ran on."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import megalodon_tasks


def environment(device: torch.device) -> dict[str, Any]:
    """Return the date, device, versions, and the commit if this is a git checkout."""
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
    for name in ("ve-fairseq", "fairseq-fixed", "fairseq"):
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
        described = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None
