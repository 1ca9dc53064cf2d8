"""The run scripts: what they call, in which order, with which folders, and how they end.

An interpreter that only writes down its arguments stands in for Python.
"""

import os
import shutil

import pytest

from tests.recipes.run_scripts import LISTOPS, ROOT, option

GENERATE, PREPARE = "recipes.lra.listops.generator", "recipes.lra.listops.prepare"
TRAIN, EVALUATE, PLOT = "cli.train", "cli.evaluate", "runs.plot"


def names(calls):
    return [call[0] for call in calls]


def test_does_everything_in_order(script):
    done = script.run("my data", "my run", "optimization.max_update=20", "dataset.batch_size=4")
    assert done.returncode == 0, done.stderr
    generate, prepare, train, evaluate, plot = script.called()
    assert generate == [GENERATE, "my data/raw"]
    assert prepare == [PREPARE, "my data/raw", "my data/prepared"]
    assert train == [
        TRAIN, "--config-dir", str(LISTOPS.parent), "--config-name", "listops",
        "--data", "my data/prepared", "--save-dir", "my run",
        "optimization.max_update=20", "dataset.batch_size=4",
    ]  # fmt: skip
    assert evaluate == [
        EVALUATE, "my run/checkpoint_best.pt", "--data", "my data/prepared", "--split", "test",
        "--recipe", "lra/listops", "--results", "my run/results.jsonl",
        "--predictions", "my run/predictions.csv", "--confusion", "my run/confusion.png",
        "--by-length", "my run/accuracy_by_length.csv",
        "--by-class", "my run/accuracy_by_class.csv",
    ]  # fmt: skip
    assert plot == [PLOT, "my run"]


def test_what_is_prepared_is_not_prepared_again(script):
    script.run("data", "run")
    assert script.run("data", "run").returncode == 0
    assert names(script.called()) == [TRAIN, EVALUATE, PLOT]


def test_a_demo_has_its_own_data_and_name(script):
    assert script.run("--demo", "data", "run").returncode == 0
    generate, prepare, train, evaluate, _ = script.called()
    assert generate[1] == "data/demo/raw"
    assert generate[generate.index("--train") + 1] == "40000"
    assert prepare[1:] == ["data/demo/raw", "data/demo/prepared"]
    assert train[train.index("--config-name") + 1] == "listops_demo"
    assert train[train.index("--data") + 1] == "data/demo/prepared"
    assert evaluate[evaluate.index("--recipe") + 1] == "lra/listops-demo"


@pytest.mark.parametrize("released", ["basic_train.tsv", "lra_release/"])
def test_released_files_are_used(script, released):
    path = script.folder / "data" / released
    path.parent.mkdir(parents=True)
    path.mkdir() if released.endswith("/") else path.touch()
    script.run("prepare", "data", "run")
    assert script.called() == [[PREPARE, "data", "data/prepared"]]


def test_a_prepared_folder_is_taken_as_it_is(script):
    (script.folder / "data").mkdir()
    (script.folder / "data" / "manifest.json").touch()
    script.run("train", "data", "run")
    (train,) = script.called()
    assert train[train.index("--data") + 1] == "data"


PREPARED_ONCE = (
    "lra/text",
    "lra/retrieval",
    "lra/image",
    "lra/pathfinder",
    "lra/pathx",
    "speech/sc_raw",
)


@pytest.mark.parametrize("recipe", PREPARED_ONCE)
@pytest.mark.parametrize("below", [".", "prepared"])
def test_prepared_data_is_taken_as_it_is(script, recipe, below):
    folder = script.folder / "data" / below
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    script.run("train", "data", "run", script=ROOT / "recipes" / f"{recipe}.sh")
    (train,) = script.called()
    assert os.path.normpath(option(train, "--data")) == os.path.normpath(f"data/{below}")


@pytest.mark.parametrize(
    ("word", "modules"),
    [("prepare", [GENERATE, PREPARE]), ("train", [TRAIN]), ("evaluate", [EVALUATE, PLOT])],
)
def test_a_first_word_does_that_part(script, word, modules):
    script.run("data", "run")
    assert script.run(word, "data", "run").returncode == 0
    assert names(script.called()) == modules


@pytest.mark.parametrize("status", [1, 130])
def test_a_failed_training_is_not_evaluated(script, status):
    done = script.run("data", "run", TRAIN_STATUS=str(status))
    assert done.returncode == status
    assert names(script.called()) == [GENERATE, PREPARE, TRAIN]


def test_evaluating_before_training_is_refused_before_anything_is_done(script):
    done = script.run("evaluate", "data", "run")
    assert done.returncode == 1
    assert done.stderr == "error: run/checkpoint_best.pt does not exist: train first\n"
    assert script.called() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA_DIR and SAVE_DIR are needed"),
        (["data"], "DATA_DIR and SAVE_DIR are needed"),
        (["data", ""], "DATA_DIR or SAVE_DIR is empty"),
        (["data", "run", "train"], "'train' is not an override: write key=value"),
        (["data", "run", "--fast"], "unknown option --fast"),
        (["evaluate", "data", "run", "model.dim=3"], "'evaluate' takes none (it got model.dim=3)"),
    ],
)
def test_wrong_usage_is_explained(script, arguments, message):
    done = script.run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "usage: listops.sh [--demo]" in done.stderr
    assert script.called() == []


def test_help_goes_to_standard_output(script):
    done = script.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: listops.sh")


def test_an_interpreter_without_what_is_needed_is_named(script):
    done = script.run("data", "run", MISSING="torch fairseq")
    assert done.returncode == 1
    assert f"error: {script.python} lacks: torch fairseq; run 'make venv'" in done.stderr


def test_the_interpreter_of_the_checkout_comes_before_the_one_on_the_path(script, tmp_path):
    checkout = tmp_path / "check out"
    (checkout / "recipes").mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "run.sh", checkout / "recipes")
    shutil.copytree(LISTOPS.parent, checkout / "recipes" / "lra")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(script.python, checkout / ".venv" / "bin" / "python")
    copied = checkout / "recipes" / "lra" / "listops.sh"
    assert script.run("data", "run", script=copied, PYTHON="").returncode == 0
    assert names(script.called())[-1] == PLOT
