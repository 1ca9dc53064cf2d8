"""The command ``megalodon sweep`` with a recipe whose script ends at once."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra

from megalodon_tasks.cli import sweep
from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.sweep import DONE, FAILED, RUNNING, WAITING, read_sweep
from tests.runs.toy_sweep import toy_recipe


@pytest.fixture
def toy(tmp_path):
    """The first words of a sweep of the toy recipe in ``tmp_path / "a sweep"``."""
    (tmp_path / "data").mkdir()
    script = toy_recipe(tmp_path / "toy")
    return [str(script), str(tmp_path / "data"), str(tmp_path / "a sweep")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a sweep"


def states(folder):
    return {run.name: run.state for run in read_sweep(folder).runs}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing varies"),
        (["--chunk-sizes", "big"], "could not be converted to Integer"),
        (["--chunk-sizes", "0"], "chunk_size=0"),
        (["--seeds", "one"], "could not be converted to Integer"),
        (["--sweep", "model.z_dim"], "write FIELD=VALUE"),
        (["--seeds", "1", "model.zdim=3"], "did you mean model.z_dim"),
        (["--seeds", "1", "common.seed=3"], "common.seed is given twice"),
        (["--seeds", "1", "--sweep", "common.seed=3"], "common.seed is given twice"),
        (["--seeds", "1", "--demo"], "listops_demo"),
        (["--seeds", "1", "--demo", "--generate"], "--demo brings its own data"),
        (["--seeds", "1", "--launcher-file", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(toy, folder, words, message):
    with pytest.raises(UserError) as caught:
        main(["sweep", *toy, *words])
    assert message in str(caught.value)
    assert not folder.exists()


def test_there_is_at_least_one_worker(toy, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", *toy, "--seeds", "1", "--workers", "0"])
    assert "--workers: 0 must be at least 1" in capsys.readouterr().err


def test_key_value_words_may_stand_anywhere():
    words = ["r", "d", "s", "--seeds", "1", "2", "a.b=1", "--sweep", "c.d=3,4", "e.f=x=y"]
    options, overrides = sweep.parse(words)
    assert (options.seeds, options.sweep) == (["1", "2"], ["c.d=3,4"])
    assert overrides == ["a.b=1", "e.f=x=y"]


def test_a_dry_run_shows_the_runs_and_writes_nothing(toy, folder, capsys):
    words = ["--chunk-sizes", "64", "full", "--seeds", "1", "2", "--workers", "2", "--dry-run"]
    assert main(["sweep", *toy, *words]) == 0
    shown = capsys.readouterr().out
    assert "4 runs" in shown
    assert "hydra/launcher=joblib" in shown
    assert "hydra.launcher.n_jobs=2" in shown
    assert shown.count("listops.sh") == 4
    run = f"'{folder}/runs/chunk_size-full_seed-2' model.chunk_size=null common.seed=2"
    assert run in shown
    assert not folder.exists()


def test_a_dry_run_for_slurm_shows_words_that_its_launcher_takes(toy, capsys, tmp_path):
    more = tmp_path / "cluster.yaml"
    more.write_text("account: lab\nmem_gb: 32\nsetup: [module load cuda]\n")
    words = ["--seeds", "1", "--launcher", "slurm", "--launcher-file", str(more), "--dry-run"]
    words += ["hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=64"]
    assert main(["sweep", *toy, *words]) == 0
    head, command = capsys.readouterr().out.splitlines()
    assert "hydra" not in command
    overrides = shlex.split(head.removesuffix(":").partition("by hydra with ")[2])
    GlobalHydra.instance().clear()
    with initialize(config_path=None, version_base="1.1"):
        config = compose(overrides=overrides, return_hydra_config=True)
    launcher = config.hydra.launcher
    assert "SlurmLauncher" in launcher._target_
    assert (launcher.account, launcher.partition, launcher.mem_gb) == ("lab", "gpu", 64)
    assert launcher.setup == ["module load cuda"]
    assert config.attached is False, "jobs end with the process that submitted them"


def test_a_sweep_runs_lists_failures_and_resumes(toy, folder, tmp_path, capsys):
    words = ["--chunk-sizes", "64", "full", "--seeds", "1", "13", "--threads", "3"]
    assert main(["sweep", *toy, *words, "--workers", "2"]) == 1
    failed = {"chunk_size-64_seed-13": FAILED, "chunk_size-full_seed-13": FAILED}
    done = {"chunk_size-64_seed-1": DONE, "chunk_size-full_seed-1": DONE}
    assert states(folder) == failed | done
    assert (tmp_path / "data" / "prepared").is_file()
    shown = capsys.readouterr()
    assert "failed: chunk_size-64_seed-13, exit status 3" in shown.err
    assert "    the loss is nan" in shown.err
    assert "2 of 4 runs done, 2 failed" in shown.out
    with open(folder / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["chunk_size"], row["accuracy"], row["seeds"]) for row in rows] == [
        ("64", "50.00", "1"), ("full", "50.00", "1"),
    ]  # fmt: skip
    assert (folder / "table.md").read_text() in shown.out
    assert (folder / "chunk_size.png").is_file()

    assert main(["sweep", *toy, *words]) == 1
    attempts = {run.name: run.output.read_text().count("called") for run in read_sweep(folder).runs}
    assert attempts == dict.fromkeys(failed, 2) | dict.fromkeys(done, 1)
    threads = folder / "runs" / "chunk_size-64_seed-1" / "threads"
    assert threads.read_text() == "OMP 3\n"


def test_synthetic_data_is_made_if_the_sweep_says_so(toy, tmp_path, capsys):
    words = ["--seeds", "1", "--threads", "1"]
    assert main(["sweep", *toy, *words, "--dry-run"]) == 0
    assert "--generate" not in capsys.readouterr().out
    words.append("--generate")
    assert main(["sweep", *toy, *words, "--dry-run"]) == 0
    assert "listops.sh --generate" in capsys.readouterr().out
    assert main(["sweep", *toy, *words]) == 0
    assert (tmp_path / "data" / "prepared").read_text() == "generated: yes\n"


def test_a_launcher_that_fails_is_named_with_its_log(toy, folder):
    with pytest.raises(UserError, match="hydra's launcher failed") as caught:
        main(["sweep", *toy, "--seeds", "1", "hydra.launcher.nonsense=1"])
    log = folder / "launcher.log"
    assert str(log) in str(caught.value)
    assert "nonsense" in log.read_text()
    assert states(folder) == {"seed-1": WAITING}


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_runs_stop_with_their_sweep_and_resume(toy, folder, tmp_path, launcher, number):
    words = [*toy, "--seeds", "99", "1", "--launcher", launcher]
    command = [sys.executable, "-m", "megalodon_tasks", "sweep", *words]
    process = subprocess.Popen(command, start_new_session=True)
    run = folder / "runs" / "seed-99"
    wait_for((run / "started").is_file)
    assert states(folder)["seed-99"] == RUNNING
    os.kill(process.pid, number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    wait_for(lambda: RUNNING not in states(folder).values())
    assert states(folder)["seed-99"] == WAITING
    (tmp_path / "data" / "go").touch()
    assert main(["sweep", *words]) == 0
    assert set(states(folder).values()) == {DONE}
