"""The command itself: its list of subcommands, their help, and how they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megalodon_tasks.cli import inspect
from megalodon_tasks.cli.main import COMMANDS, INTERRUPTED, main

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_all_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: megalodon {command} ")
    assert f"megalodon {command} " in printed.partition("example")[2]


WITHOUT_FAIRSEQ = """
import sys
sys.modules.update(fairseq=None, fairseq_cli=None)
from megalodon_tasks.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["train", "sample"])
def test_without_fairseq_a_command_says_what_to_install(command):
    words = [sys.executable, "-c", WITHOUT_FAIRSEQ, command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{command} needs fairseq: pip install 'megalodon-tasks[fairseq]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "near"), [("evalute", "evaluate, evaluate-lm"), ("x", "prepare,")]
)
def test_an_unknown_command_is_named_with_those_near_it(word, near, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([word])
    assert f"unknown command {word!r}; there is {near}" in capsys.readouterr().err


def test_ctrl_c_is_an_exit_status(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "main", interrupted)
    assert main(["inspect", "checkpoint.pt"]) == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_mistake_of_the_user_is_one_message(tmp_path, debug):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "megalodon_tasks", "evaluate", "nowhere.pt"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "MEGALODON_DEBUG": debug},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nowhere.pt: there is no such checkpoint" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
    assert debug or done.stderr == "error: nowhere.pt: there is no such checkpoint\n"
