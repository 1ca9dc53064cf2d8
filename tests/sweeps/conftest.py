import json

import pytest

from megalodon_tasks.sweeps import catalogue, request, status
from megalodon_tasks.sweeps.request import Request

# Stands in for a recipe's script: "trains" and leaves what a run leaves.
SCRIPT = """#!/usr/bin/env bash
set -eu
echo "called with $*"
[[ $* != *seed=13* ]] || { echo "the loss is nan"; exit 3; }
[[ $* != *seed=99* ]] || { trap 'echo saved; exit 130' INT; while true; do sleep 0.05; done; }
mkdir -p "$2"
echo "OMP $OMP_NUM_THREADS" > "$2/threads"
echo '{"metric": "accuracy", "value": 50.0, "params": 7}' >> "$2/results.jsonl"
"""

LOG = (
    "[2026-01-01 00:00:00,000][train_inner][INFO] - "
    '{{"epoch": 1, "num_updates": "{update}", "wps": "{wps}", "ups": "2", "bsz": "4"}}\n'
)


@pytest.fixture
def asked(tmp_path):
    """A sweep over two chunk sizes and two seeds, entered in ``tmp_path / "sweep"``."""
    axes = {"model.chunk_size": ["64", "null"], "common.seed": ["1", "2"]}
    wanted = Request("lra/listops", str(tmp_path / "data"), False, {"model.dropout": "0"}, axes)
    return request.enter(tmp_path / "sweep", wanted)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Let every recipe be a script that ends at once: seed 13 fails, and 99 runs until interrupted."""
    path = tmp_path / "recipe.sh"
    path.write_text(SCRIPT)
    monkeypatch.setattr(catalogue, "find", lambda name: catalogue.Recipe(name, path))
    return path


@pytest.fixture
def finish(tmp_path):
    """A function that makes a run of the sweep look finished."""

    def finished(run, value, seconds=10.0, wps=(100, 300, 500), peak=None):
        folder = status.run_folder(tmp_path / "sweep", run)
        folder.mkdir(parents=True)
        record = {"metric": "accuracy", "value": value, "params": 1234}
        (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
        lines = [LOG.format(update=10 * i, wps=w) for i, w in enumerate(wps, start=1)]
        lines += [f"[...][INFO] - peak memory of the process: {peak:.2f} GB\n"] if peak else []
        (folder / "train.log").write_text("".join(lines))
        status.write(tmp_path / "sweep", run, status.Status(status.DONE, seconds, returncode=0))

    return finished
