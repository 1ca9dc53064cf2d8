"""Every mistake in settings, options, files and prepared data ends in one message.

The slow tests run all cases and print how many ended how; ``FUZZ_SHARE=0.1`` in the environment takes a
tenth.  The fast test runs a few.
"""

import os
import subprocess
import sys

import pytest

from tests.fuzz.outcomes import CRASH, HANG, MESSAGE, OK, SILENT, TRACEBACK, Case, run
from tests.fuzz.runs import ROOT


def fuzz(*words: str) -> None:
    """Run cases in a process that has imported nothing else, and show its counts."""
    command = [sys.executable, "-m", "tests.fuzz", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def test_a_few():
    fuzz("settings", "--only", "lra/listops_demo: d", "--share", "0.1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["settings", "files", "prepared", "options"])
def test_all(kind):
    fuzz(kind, "--share", os.environ.get("FUZZ_SHARE", "1"))


def fails():
    raise KeyError("x")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("action", "refused", "outcome"),
    [
        (lambda: 0, False, OK),
        (lambda: 0, True, SILENT),
        (lambda: print("error: no") or 1, True, MESSAGE),
        (lambda: 1, True, SILENT),
        (fails, False, TRACEBACK),
        (lambda: os.kill(os.getpid(), 9), False, CRASH),
    ],
)
def test_outcomes_are_told_apart(action, refused, outcome, tmp_path):
    assert run(Case("a case", action, refused), tmp_path, 60.0).outcome == outcome


def test_a_case_that_waits_for_ever_is_ended(tmp_path):
    assert (
        run(Case("waiting", lambda: os.read(os.pipe()[0], 1), False), tmp_path, 0.2).outcome == HANG
    )
