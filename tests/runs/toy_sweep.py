"""A recipe whose script ends at once, and sweeps of it."""

from megalodon_tasks.runs.sweep import Sweep, grid

# "Trains" and leaves the files of a run.  Seed 13 fails; seed 99 runs until the file `go` is in DATA.
SCRIPT = """#!/usr/bin/env bash
set -eu
[[ $1 != --demo ]] || shift
generated=no
[[ $1 != --generate ]] || { generated=yes; shift; }
[[ $1 != prepare ]] || { mkdir -p "$2"; echo "generated: $generated" > "$2/prepared"; exit; }
echo "called with $*"
mkdir -p "$2"
[[ $* != *seed=13* ]] || { echo "the loss is nan"; exit 3; }
[[ $* != *seed=99* ]] || { touch "$2/started"; until [[ -f $1/go ]]; do sleep 0.05; done; }
echo "OMP $OMP_NUM_THREADS" > "$2/threads"
echo "${CUDA_VISIBLE_DEVICES-none}" > "$2/gpus"
echo '{"benchmark": "toy/listops", "split": "test", "metric": "accuracy", "value": 50.0, "params": 7}' \\
    >> "$2/results.jsonl"
"""

CONFIGURATION = """
common: {seed: 1}
task: {_name: lra_text, data: '???', benchmark: listops, max_positions: 64}
model: {_name: megalodon_lra_listops, chunk_size: null}
"""


def toy_recipe(folder):
    """Write the recipe into ``folder`` and return its script."""
    folder.mkdir()
    script = folder / "listops.sh"
    script.write_text(SCRIPT)
    script.with_suffix(".yaml").write_text(CONFIGURATION)
    return script


def toy_sweep(folder, *words, **changes):
    """Return a sweep in ``folder/sweep`` over two chunk sizes and two seeds, or over ``words``."""
    settings = {
        "folder": folder / "sweep",
        "recipe": "toy/listops",
        "script": str(folder / "toy" / "listops.sh"),
        "data": str(folder / "data"),
        "demo": False,
        "fixed": {"model.dropout": "0"},
        "points": grid(words or ["model.chunk_size=64,null", "common.seed=1,2"]),
    }
    return Sweep(**settings | changes)
