import pytest

from megalodon_tasks.sweeps import catalogue, request, status
from megalodon_tasks.sweeps.request import Request
from tests.runs.records import result, write_record

# Stands in for a recipe's script: "trains" and leaves what a run leaves.
SCRIPT = """#!/usr/bin/env bash
set -eu
echo "called with $*"
[[ $* != *seed=13* ]] || { echo "the loss is nan"; exit 3; }
[[ $* != *seed=99* ]] || { trap 'echo saved; exit 130' INT; while true; do sleep 0.05; done; }
mkdir -p "$2"
echo "OMP $OMP_NUM_THREADS" > "$2/threads"
echo '{"benchmark": "lra/listops", "split": "test", "metric": "accuracy", "value": 50.0,' \
    '"params": 7}' >> "$2/results.jsonl"
"""


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

    def finished(run, value, seconds=10.0, wps=(100, 300, 500), **memory):
        folder = status.run_folder(tmp_path / "sweep", run)
        write_record(
            folder,
            [result(value=value, params=1234)],
            train_inner=[
                {"step": 10 * i, "wps": w, "samples_per_second": 8.0, **memory}
                for i, w in enumerate(wps, start=1)
            ],
        )
        status.write(tmp_path / "sweep", run, status.Status(status.DONE, seconds, returncode=0))

    return finished
