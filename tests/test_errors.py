"""One message and no traceback, through each of fairseq's commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import CompactHydraException

from megalodon_tasks import errors
from megalodon_tasks.cuda_ops import BackendUnavailable, timestep_norm
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.errors import UserError, user_errors
from tests.toy_plugin import runs

ROOT = Path(__file__).resolve().parent.parent


def wrong_shape():
    timestep_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3), 1)


def test_errors_of_the_project_become_user_errors():
    with pytest.raises(ValueError, match="timestep_norm: x has shape") as direct:
        wrong_shape()
    with pytest.raises(UserError) as translated, user_errors():
        wrong_shape()
    assert str(translated.value) == str(direct.value)
    assert isinstance(translated.value.__cause__, ValueError)
    assert isinstance(translated.value, CompactHydraException)


def test_as_a_decorator(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        user_errors()(PreparedDataset)(tmp_path)


def test_missing_files_and_backends_are_translated(tmp_path):
    missing = tmp_path / "no such file"
    with pytest.raises(UserError, match=f"{missing}: there is no such file"), user_errors():
        missing.read_text()
    with pytest.raises(UserError, match="no triton"), user_errors():
        raise BackendUnavailable("no triton")


def test_errors_of_libraries_keep_their_traceback():
    with pytest.raises(ValueError, match="invalid literal") as caught, user_errors():
        int("x")
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ZeroDivisionError), user_errors():
        1 / 0  # noqa: B018


def test_a_user_error_passes_unchanged():
    error = UserError("as it is")
    with pytest.raises(UserError) as caught, user_errors():
        raise error
    assert caught.value is error


class FailingDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("row 7 is broken")


def test_the_message_survives_a_data_worker():
    with pytest.raises(UserError) as caught:
        list(torch.utils.data.DataLoader(FailingDataset(), num_workers=1))
    assert str(caught.value) == "row 7 is broken"


def shown(error, capsys):
    sys.excepthook(type(error), error, None)
    return capsys.readouterr().err


def test_excepthook_prints_the_message_alone(capsys, monkeypatch):
    monkeypatch.delenv(errors.DEBUG_VARIABLE, raising=False)
    assert shown(UserError("it is missing"), capsys) == "error: it is missing\n"
    text = "-- Process 1 terminated\nTraceback ...\nmegalodon_tasks.errors.UserError: too long\n"
    spawned = torch.multiprocessing.ProcessRaisedException(text, 1, 2)
    assert shown(spawned, capsys) == "error: too long\n"


def test_excepthook_leaves_other_errors_alone(capsys, monkeypatch):
    monkeypatch.delenv(errors.DEBUG_VARIABLE, raising=False)
    assert shown(KeyError("x"), capsys) == "KeyError: 'x'\n"
    spawned = torch.multiprocessing.ProcessRaisedException("KeyError: 'x'", 1, 2)
    assert "error: " not in shown(spawned, capsys).splitlines()[0]


def test_debugging_brings_the_traceback_back(capsys, monkeypatch):
    monkeypatch.setenv(errors.DEBUG_VARIABLE, "1")
    assert shown(UserError("x"), capsys).strip().endswith("megalodon_tasks.errors.UserError: x")


def run_command(module, arguments, cwd, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def own_lines(stderr):
    """What is left of standard error without the warnings of fairseq's own import."""
    lines = stderr.splitlines()
    return [line for line in lines if "torch.jit.script" not in line and line != "  warnings.warn("]


@pytest.fixture
def broken_run(tmp_path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"half")
    return tmp_path


PLUGIN = str(ROOT / "tests" / "toy_plugin")


def test_fairseq_train_ends_in_one_message(broken_run):
    arguments = [*runs.SETTINGS, "--user-dir", PLUGIN, "--save-dir", str(broken_run)]
    done = run_command("fairseq_cli.train", arguments, broken_run, MEGALODON_DEBUG="")
    assert done.returncode == 1
    message = own_lines(done.stderr)
    assert len(message) == 1
    assert message[0].startswith(f"error: {broken_run}/checkpoint_last.pt: the checkpoint is trunc")


@pytest.mark.slow
def test_fairseq_validate_ends_in_one_message(broken_run):
    arguments = [".", "--user-dir", PLUGIN, "--task", "toy", "--path", "checkpoint_last.pt",
                 "--batch-size", "1"]  # fmt: skip
    done = run_command("fairseq_cli.validate", arguments, broken_run, MEGALODON_DEBUG="")
    assert done.returncode == 1
    assert own_lines(done.stderr)[-1].startswith("error: checkpoint_last.pt: the checkpoint is")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["", "1"])
def test_fairseq_hydra_train_ends_in_one_message(broken_run, debug):
    (broken_run / "toy.yaml").write_text(runs.YAML)
    arguments = ["--config-dir", ".", "--config-name", "toy", f"common.user_dir={PLUGIN}",
                 "hydra.job.chdir=false", f"checkpoint.save_dir={broken_run}"]  # fmt: skip
    done = run_command("fairseq_cli.hydra_train", arguments, broken_run, MEGALODON_DEBUG=debug)
    assert done.returncode == 1
    assert f"{broken_run}/checkpoint_last.pt: the checkpoint is truncated" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
