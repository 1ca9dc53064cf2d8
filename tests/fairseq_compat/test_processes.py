"""Several processes on CPUs, as fairseq and torchrun start them, and what happens if one is gone."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import last_checkpoint
from megalodon_tasks.fairseq_compat.processes import join_launched_processes
from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = str(ROOT / "tests" / "toy_plugin")
SPAWN = [sys.executable, "-m", "fairseq_cli.train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--standalone", "-m", "fairseq_cli.train"]  # fmt: skip
TWO = ("--distributed-world-size", "2")
EXACT = ("--dropout", "0")
FOREVER = ("--max-update", "100000000", "--save-interval", "20")
LAUNCHED = {
    "MASTER_ADDR": "x", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1",
}  # fmt: skip


def with_batch_of_three():
    batch = runs.SETTINGS.index("--batch-size") + 1
    return [*runs.SETTINGS[:batch], "3", *runs.SETTINGS[batch + 1 :]]


def start(save_dir, *words, command=SPAWN):
    line = [
        *command,
        *with_batch_of_three(),
        "--user-dir",
        PLUGIN,
        "--save-dir",
        str(save_dir),
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, status=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output[-3000:]
    return output


def test_two_processes_train_as_one_with_both_batches(tmp_path, monkeypatch):
    """Both ways to start them run at the same time, beside the single process."""
    monkeypatch.setattr(runs, "SETTINGS", with_batch_of_three())
    both = [
        start(tmp_path / "spawn", *TWO, *EXACT),
        start(tmp_path / "torchrun", *EXACT, command=TORCHRUN),
    ]
    runs.train(tmp_path / "one", *EXACT, "--update-freq", "2")
    one = torch.load(tmp_path / "one" / "checkpoint_last.pt", weights_only=True)
    for process, name in zip(both, ("spawn", "torchrun"), strict=True):
        finish(process)
        two = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)
        for key, tensor in one["model"].items():
            torch.testing.assert_close(two["model"][key], tensor, rtol=1e-4, atol=1e-5)
        start_line = read_run(tmp_path / name).start
        assert (start_line["processes"], start_line["effective_batch"]) == (2, 6)


def test_a_users_error_is_one_message(tmp_path):
    output = finish(start(tmp_path, *TWO, "--best-checkpoint-metric", "nonsense"), status=1)
    assert "error: checkpoint.best_checkpoint_metric='nonsense' is not logged" in output
    assert "Traceback" not in output


def settings(**changes):
    return Namespace(
        **{
            "distributed_init_method": None, "distributed_world_size": 1, "distributed_rank": 0,
            "distributed_no_spawn": False, "device_id": 0,
        } | changes
    )  # fmt: skip


@pytest.mark.parametrize(("on_cpu", "device"), [(True, 0), (False, 1)])
def test_takes_its_place_from_torchrun(on_cpu, device):
    parallel = settings()
    join_launched_processes(parallel, LAUNCHED, on_cpu)
    assert (parallel.distributed_world_size, parallel.distributed_rank) == (2, 1)
    assert (parallel.distributed_init_method, parallel.device_id) == ("env://", device)
    assert parallel.distributed_no_spawn


@pytest.mark.parametrize("environment", [{}, LAUNCHED | {"WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_stays_one(environment):
    parallel = settings()
    join_launched_processes(parallel, environment, on_cpu=True)
    assert vars(parallel) == vars(settings())


def test_refuses_another_number_than_torchrun_started():
    with pytest.raises(UserError, match="distributed_world_size=4, but torchrun started 2"):
        join_launched_processes(settings(distributed_world_size=4), LAUNCHED, on_cpu=True)


def test_the_first_process_decides_when_all_save(group_of_one, monkeypatch):
    """On a group of this process only, which fairseq is made to count as two."""
    saved, exchanges, reduce = [], [], distributed_utils.all_reduce
    monkeypatch.setattr(checkpoint_utils, "save_checkpoint", lambda *words: saved.append(words))
    monkeypatch.setattr(
        distributed_utils,
        "all_reduce",
        lambda *args, **kw: exchanges.append(1) or reduce(*args, **kw),
    )
    monkeypatch.setattr(last_checkpoint, "_due", 0.0)
    train = SimpleNamespace(
        train=lambda *words: None, validate_and_save=lambda *words: ([None], False)
    )
    last_checkpoint.install_in(train)
    group = {"data_parallel_world_size": 2, "data_parallel_process_group": group_of_one}
    first, second = (
        SimpleNamespace(device="cpu", data_parallel_rank=rank, **group) for rank in (0, 1)
    )
    task = SimpleNamespace(saves_last_often=True)
    for trainer, expected in ((second, 0), (first, 1), (first, 1)):
        train.validate_and_save(SimpleNamespace(checkpoint=None), trainer, task, None, [], False)
        assert len(saved) == expected  # the last time it was not due
    assert len(exchanges) == 3  # one an update


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def trainers(process):
    """Return the ids of the two training processes, in the order of their start."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children(process.pid)}
    return sorted(pid for pid, name in names.items() if "resource_tracker" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("command", [SPAWN, TORCHRUN], ids=["spawn", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_all_and_the_run_resumes(tmp_path, command, rank, how):
    words = TWO if command is SPAWN else ()
    process = start(tmp_path, *words, *FOREVER, command=command)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint_last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    own = trainers(process)
    os.kill(own[rank], how)
    lost = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert process.returncode
    assert time.monotonic() - lost < 75  # and under a minute on a machine that is not busy
    assert f"process {rank} of 2" in output or f"rank      : {rank} " in output, output[-3000:]
    assert not [pid for pid in own if Path(f"/proc/{pid}").exists()]
    done = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    updates = done["optimizer_history"][-1]["num_updates"]
    finish(start(tmp_path, *words, "--max-update", str(updates + 3), command=command))
