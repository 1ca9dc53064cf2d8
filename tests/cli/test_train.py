"""The training command: what it hands to hydra, what it keeps, how it ends."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from megalodon_tasks.cli import train
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "import sys, tests.toy_plugin\n"
    "from megalodon_tasks.cli.main import main\n"
    "sys.exit(main(['train', *sys.argv[1:]]))"
)


def prepared(*arguments):
    return train.hydra_arguments(arguments)


@pytest.fixture
def config_dir(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "toy.yaml").write_text(runs.YAML)
    return folder


@pytest.mark.parametrize("name", ["nope", "nope.yaml", "recipes/toy", "../recipes/toy"])
def test_a_missing_configuration_is_refused(config_dir, name):
    with pytest.raises(UserError, match=f"--config-name {name}: .* configurations there: toy"):
        prepared("--config-dir", str(config_dir), "--config-name", name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="--config-dir .*nowhere: there is no such folder"):
        prepared("--config-dir", str(tmp_path / "nowhere"), "--config-name", "toy")


def test_overrides_of_the_user_come_last(config_dir):
    line = prepared("--config-dir", str(config_dir), "--config-name", "toy.yaml",
                    "common.log_format=none", "--cfg", "job", "model.dim=3")  # fmt: skip
    assert line[:4] == ["--config-dir", str(config_dir), "--config-name", "toy"]
    assert line[-4:] == ["common.log_format=none", "--cfg", "job", "++model.dim=3"]
    assert any(part.startswith("hydra.run.dir=") for part in line)


def test_jobs_of_a_sweep_keep_their_own_folders(config_dir):
    line = prepared("--config-dir", str(config_dir), "--config-name", "toy", "-m", "model.dim=3,4")
    assert not any(part.startswith("hydra.run.dir=") for part in line)


def test_relative_folders_are_those_of_the_caller(config_dir, monkeypatch):
    monkeypatch.chdir(config_dir)
    line = prepared("--config-dir", ".", "--config-name", "toy", "--data", "d", "--save-dir", "s")
    assert f"task.data='{config_dir}/d'" in line
    assert f"checkpoint.save_dir='{config_dir}/s'" in line


@pytest.mark.parametrize(
    "value", ["plain", "with space", "it's", "a=b,c", "back\\slash", "end\\", "\\'", "(x)[y]{z}"]
)
def test_any_path_survives_hydras_grammar(value):
    parsed = OverridesParser.create().parse_override(f"task.data={train.quoted(value)}")
    assert parsed.value() == value


def command(config_dir, *arguments, **options):
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MEGALODON_DEBUG": ""}
    line = [sys.executable, "-c", COMMAND, "--config-dir", str(config_dir), "--config-name", "toy"]
    return subprocess.Popen(
        [*line, *arguments], env={**os.environ, **variables}, text=True, **options
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def pipes(tmp_path):
    return {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_trains_resumes_and_keeps_its_log(config_dir, pipes, tmp_path):
    save_dir = tmp_path / "it's a run"
    arguments = ["--save-dir", "it's a run"]
    code, out, _ = finish(command(config_dir, *arguments, "optimization.max_update=8", **pipes))
    assert code == 0
    assert "valid | epoch 001 | valid on 'valid' subset | loss" in out
    assert "{'_name': None" not in out  # the configuration is in the log, not on the terminal
    code, out, err = finish(command(config_dir, *arguments, **pipes))
    assert code == 0
    assert "Loaded checkpoint" in out
    assert "Traceback" not in err
    log = (save_dir / "train.log").read_text()
    assert log.count("num_updates 8 ") >= 1
    assert log.count("num_updates 20 ") >= 1
    assert "'_name': None" in log
    run = read_run(save_dir)
    assert (list(run.train_inner), max(run.train)) == ([5, 10, 15, 20], 20)
    assert (run.start["step"], run.start["config"]["model"]["chunk_size"]) == (8, 4)
    assert (save_dir / "hydra" / ".hydra" / "overrides.yaml").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "it's a run"}


@pytest.mark.slow
def test_an_error_is_one_message_and_in_the_log(config_dir, pipes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_last.pt").write_bytes(b"PK half")
    code, _, err = finish(command(config_dir, "--save-dir", "run", **pipes))
    assert code == 1
    assert "Traceback" not in err
    assert "Error executing job" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        line for line in err.splitlines() if "truncated" in line
    ]
    assert "truncated or damaged" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_an_unknown_setting_is_one_message(config_dir, pipes):
    code, _, err = finish(command(config_dir, "optimization.max_updates=3", **pipes))
    assert code == 1
    assert "max_updates" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(config_dir, pipes, tmp_path):
    process = command(config_dir, "--save-dir", "run", "optimization.max_update=100000", **pipes)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint_last.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert "Traceback" not in err
    assert "saved; the same command continues there" in out


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_the_log_has_the_losses(config_dir, tmp_path):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = command(config_dir, "--save-dir", "run", cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    shown = b""
    try:
        while chunk := os.read(reader, 65536):
            shown += chunk
    except OSError:  # the other end was closed
        pass
    assert process.wait(timeout=60) == 0
    screen = shown.decode()
    assert "epoch 004:   0%|" in screen
    assert "update=20]" in screen
    assert "it/s" in screen
    assert "train_inner |" not in screen
    log = (tmp_path / "run" / "train.log").read_text()
    assert "[train_inner][INFO] - epoch 001:      5 / 6 loss=" in log
    assert "num_updates=20" in log
    assert list(read_run(tmp_path / "run").train_inner) == [5, 10, 15, 20]
