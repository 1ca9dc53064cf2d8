"""Trainings that are killed, get signals or lose their disk at random moments; prints what was lost."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import fault_harness, faults

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [kind.name for kind in faults.KINDS])
def test_a_run_that_is_struck_ends_as_one_that_is_not(name, capsys):
    # it forks, which this process with its threads cannot
    command = [sys.executable, "-m", "tests.training.fault_harness", "--only", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    with capsys.disabled():
        print(f"\n{result.stdout.splitlines()[-1]}", end="")


def change_a_weight(folder):
    if (path := folder / faults.LAST).exists():
        state = torch.load(path)
        state["model"]["scale"][0] += 1e-6
        torch.save(state, path)


def lose_the_last(folder):
    for path in folder.glob("*.pt"):
        path.unlink()


def run_with_repair(folder, repair):
    kind = dataclasses.replace(faults.KINDS[0], repair=repair)
    try:
        fault_harness.Harness(kind, folder, seed=0).run(4)
    except fault_harness.Unlike:
        os._exit(7)


@pytest.mark.parametrize("repair", [change_a_weight, lose_the_last])
def test_the_harness_notices(tmp_path, repair):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_with_repair, args=(tmp_path, repair))
    process.start()
    process.join()
    assert process.exitcode == 7
