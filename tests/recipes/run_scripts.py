"""Running a recipe's script: with an interpreter that only writes down its arguments, or for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTOPS = ROOT / "recipes" / "lra" / "listops.sh"

# Stands in for Python: prepare prints the folder $FOLDER, or OUT; train leaves the files of a run.
PRETENDER = """#!/usr/bin/env bash
[[ $1 == -m ]] || { echo -n "$MISSING"; exit 0; }
shift 2
printf '%s\\n' "$@" >> "$CALLS"
echo -- >> "$CALLS"
echo "${OMP_NUM_THREADS:-}" >> "$CALLS.threads"
if [[ $1 == ${FAILING:-} ]]; then
    exit "$STATUS"
elif [[ $1 == train ]]; then
    while [[ $1 != --save-dir ]]; do shift; done
    mkdir -p "$2"
    touch "$2/checkpoint_best.pt" "$2/metrics.jsonl"
elif [[ $1 == prepare ]]; then
    echo "a report" >&2
    echo "${FOLDER:-$4}"
fi
"""


class Script:
    """Runs a script in a folder of its own and reads what it called."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = folder / "calls.txt"
        self.python = folder / "my python"
        self.python.write_text(PRETENDER)
        self.python.chmod(0o755)

    def run(self, *arguments, script=LISTOPS, **variables):
        self.calls.write_text("")
        environment = {
            **os.environ, "PYTHON": str(self.python), "CALLS": str(self.calls), "MISSING": "",
        }  # fmt: skip
        return subprocess.run(
            ["bash", script, *arguments], cwd=self.folder, env={**environment, **variables},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def threads(self):
        """``OMP_NUM_THREADS`` of each call so far."""
        return self.calls.with_name("calls.txt.threads").read_text().splitlines()

    def called(self):
        """The calls of the command, each a list of words."""
        return [call.splitlines() for call in self.calls.read_text().split("--\n")[:-1]]


def option(call, name):
    """The word after ``name`` in a call."""
    return call[call.index(name) + 1]


def run_demo(script, folder):
    """Run a whole demo in ``folder``; what it printed, and the lines of its ``results.jsonl``."""
    environment = {**os.environ, "PYTHON": sys.executable}
    arguments = ["bash", script, "--demo", folder / "data", folder / "run"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "run" / "results.jsonl").read_text().splitlines()
    return done.stdout, [json.loads(line) for line in lines]
