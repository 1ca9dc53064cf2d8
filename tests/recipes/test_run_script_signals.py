"""Signals to a run script: passed on to what it runs, which ends first; the status says which it was."""

import os
import signal
import subprocess
import time

import pytest

from tests.recipes.run_scripts import LISTOPS

# Trains until a signal comes, notes its name, and ends as the signal asks.
PRETENDER = """#!/usr/bin/env python3
import os, signal, sys, time
if sys.argv[1] != "-m":
    sys.exit()
command, calls = sys.argv[3], os.environ["CALLS"]
def stop(number, frame):
    open(calls, "a").write(f"{command} {signal.Signals(number).name}\\n")
    time.sleep(0.3)  # saves
    open(calls, "a").write("saved\\n")
    sys.exit(int(os.environ.get("STATUS", 128 + number)))
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), stop)
if command == os.environ["WAITS"]:
    open(calls, "a").write(f"{os.getpid()}\\n")
    time.sleep(60)
elif command == "prepare":
    print("some where")
open(calls, "a").write(f"{command}\\n")
"""


def start(tmp_path, command, status=None):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PRETENDER)
    python.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_best.pt").touch()
    more = {} if status is None else {"STATUS": str(status)}
    environment = {
        **os.environ,
        "PYTHON": str(python),
        "CALLS": str(calls),
        "WAITS": command,
        **more,
    }
    process = subprocess.Popen(
        ["bash", LISTOPS, "data", "run"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    lines = []
    while not lines or not lines[-1].isdecimal():
        assert time.monotonic() < deadline
        time.sleep(0.02)
        lines = calls.read_text().split() if calls.exists() else []
    return process, calls, int(lines[-1])


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_script_reaches_its_command(tmp_path, command, name):
    process, calls, child = start(tmp_path, command)
    number = getattr(signal, name)
    os.kill(process.pid, number)
    assert process.wait(30) == 128 + number
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert calls.read_text().splitlines()[-2:] == [f"{command} {name}", "saved"]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_command_that_ends_well_all_the_same_is_the_last(tmp_path):
    process, calls, _ = start(tmp_path, "train", status=0)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 143
    assert "evaluate" not in calls.read_text()
