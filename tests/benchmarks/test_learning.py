"""The comparison of models: sizes, the choice of a rate, tables and pictures of made-up runs."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch
from matplotlib.image import imread

from benchmarks.learning import pictures, reading, runner, tables
from benchmarks.learning.__main__ import main
from benchmarks.learning.lengths import AtLength, lengths_table
from benchmarks.learning.speed import Speed
from benchmarks.learning.tasks import ABLATIONS, MODELS, TASKS
from megalodon_tasks.configuration import find_recipe, training_configuration
from megalodon_tasks.errors import UserError
from megalodon_tasks.models.config import MegaConfig, MegalodonConfig
from megalodon_tasks.models.mega import MegaStack
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack
from megalodon_tasks.runs.record import append
from megalodon_tasks.runs.sweep import Sweep, enter_sweep
from tests.runs.records import result, write_record

STACKS = {
    "megalodon": (MegalodonConfig, MegalodonStack),
    "mega": (MegaConfig, MegaStack),
    "transformer": (TransformerConfig, TransformerStack),
}


def size(task, name):
    """The parameters of the stack that a run would train; all else is the same in all models."""
    recipe = find_recipe(TASKS[task].recipe)
    overrides = [f"{key}={value}" for key, value in TASKS[task].overrides(name).items()]
    config = training_configuration(
        recipe.script.parent, recipe.config_name(demo=True), ["task.data=DATA", *overrides]
    )
    config_type, stack_type = STACKS[MODELS[name].architecture]
    values = {f.name: config.model[f.name] for f in fields(config_type) if f.name in config.model}
    if "causal" in (f.name for f in fields(config_type)):
        values["causal"] = task == "documentation"
    with torch.device("meta"):
        stack = stack_type(config_type(**values))
    return sum(parameter.numel() for parameter in stack.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_models_of_a_task_have_the_same_size_within_two_percent(task):
    sizes = {name: size(task, name) for name in TASKS[task].models}
    assert max(sizes.values()) <= 1.02 * min(sizes.values()), sizes


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_field_of_megalodon(name):
    task = TASKS["pathfinder"]
    ours, theirs = task.overrides(name), task.overrides("megalodon")
    assert dict(ours.items() - theirs.items()) == dict([ABLATIONS[name]])


def test_updates_and_warmup_are_scaled_together():
    scaled = TASKS["digits"].overrides("mega-chunk", 0.5)
    assert scaled["optimization.max_update"] == "380"
    assert scaled["lr_scheduler.warmup_updates"] == "50"
    assert (scaled["model._name"], scaled["model.chunk_size"]) == ("mega_lra_image", "32")


def sweep_of(save, task, model, values, maximize=True):
    """Leave a sweep whose runs are done; values: (rate, seed) -> validation and test."""
    points = [{reading.RATE: f"[{rate}]", "common.seed": str(seed)} for rate, seed in values]
    folder = save / task / model
    overrides = TASKS[task].overrides(model)
    sweep = enter_sweep(Sweep(folder, "lra/image", "no.sh", "data", True, overrides, points))
    config = {
        "checkpoint": {
            "best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": maximize,
        }
    }  # fmt: skip
    for run, (valid, test) in zip(sweep.runs, values.values(), strict=True):
        write_record(
            run.folder,
            [result(value=test, params=1000, n=10)],
            config,
            valid=[{"step": 10, "accuracy": valid - 1}, {"step": 20, "accuracy": valid}],
            train_inner=[{"step": 12, "wall": 3.0, "wps": 500.0, "host_peak_bytes": 1 << 30}],
        )
        append(run.attempts_file, {"status": 0, "seconds": 4.0})
    return folder


@pytest.mark.parametrize(("maximize", "chosen"), [(True, "[0.02]"), (False, "[0.005]")])
def test_the_rate_is_chosen_by_the_validation_of_the_first_seed(tmp_path, maximize, chosen):
    values = {
        ("0.005", 1): (50, 99),
        ("0.01", 1): (70, 50),
        ("0.02", 1): (80, 10),
        ("0.005", 2): (90, 0),
    }
    folder = sweep_of(tmp_path, "digits", "mega", values, maximize)
    assert reading.chosen_rate(folder) == chosen


def test_equal_validations_choose_the_smaller_rate(tmp_path):
    folder = sweep_of(tmp_path, "digits", "mega", {("0.02", 1): (80, 1), ("0.01", 1): (80, 1)})
    assert reading.chosen_rate(folder) == "[0.01]"


def test_no_rate_is_chosen_without_a_run(tmp_path):
    assert reading.chosen_rate(tmp_path / "digits" / "mega") is None


@pytest.fixture
def save(tmp_path):
    """Two models and an ablation on digits, one model on Pathfinder."""
    sweep_of(
        tmp_path, "digits", "megalodon",
        {("0.005", 1): (70, 60), ("0.01", 1): (80, 90), ("0.01", 2): (82, 94)},
    )  # fmt: skip
    sweep_of(tmp_path, "digits", "transformer", {("0.005", 1): (60, 61)})
    sweep_of(tmp_path, "digits", "no EMA", {("0.01", 1): (50, 51), ("0.01", 2): (50, 53)})
    sweep_of(tmp_path, "pathfinder", "mega", {("0.004", 1): (60, 61)})
    return tmp_path


def test_a_table_has_what_was_measured_and_says_what_was_not(save):
    results = list(reading.measured(save))
    speeds = {("digits", "megalodon"): Speed("megalodon", 0.0125, 500.0)}
    head, *lines = tables.comparison(results, speeds)
    found = {(line[0], line[1]): dict(zip(head[2:], line[2:], strict=True)) for line in lines}
    assert len(lines) == 2 * len(MODELS) + len(TASKS) - 2
    assert found[TASKS["digits"].title, "Megalodon"] == {
        "test": "92.0 %", "±": "2.8", "seeds": "2", "rate": "0.01", "updates": "20",
        "parameters": "1,000", "memory, GB": "1.00", "ms an update": "12.5", "tokens/s": "500",
    }  # fmt: skip
    assert found[TASKS["digits"].title, "Transformer"]["±"] == ""
    assert found[TASKS["digits"].title, "Transformer"]["tokens/s"] == "not measured"
    assert found[TASKS["digits"].title, "Mega"]["test"] == "not measured"
    assert found[TASKS["text"].title, "all"]["test"] == "not measured"


def test_ablations_stand_beside_megalodon(save):
    _, *lines = tables.ablations(list(reading.measured(save)))
    assert [line[1] for line in lines] == [
        "Megalodon",
        *(f"Megalodon, {name}" for name in ABLATIONS),
    ]
    values = {line[1]: line[2] for line in lines}
    assert values["Megalodon, no EMA"] == "52.0 %"
    assert values["Megalodon, real EMA"] == "not measured"


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_hold_every_run_and_every_point(save, capsys):
    assert main([str(save), "--report-only", "--output", str(save / "out")]) == 0
    runs = rows(save / "out" / "runs.csv")
    assert len(runs) == 7
    assert [run["chosen"] for run in runs if run["model"] == "megalodon"] == ["no", "yes", "yes"]
    curves = rows(save / "out" / "curves.csv")
    assert len(curves) == 2 * 6  # runs at a rate that was not chosen have no curve
    assert curves[0]["seconds"] == "2.5"
    assert "a card" in (save / "out" / "table.md").read_text()
    assert imread(save / "out" / "learning_curves.png").std() > 0
    assert "92.0 %" in capsys.readouterr().out


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run is done"):
        main([str(tmp_path), "--report-only"])


def test_lengths_are_means_over_seeds(tmp_path):
    points = [
        AtLength("listops", "mega", "0.004", seed, factor, 100, "accuracy, %", 50.0 - factor - seed)
        for seed in (1, 2)
        for factor in (1, 2, 8)
    ]
    assert lengths_table(points)[1] == [
        TASKS["listops"].title, "Mega", "accuracy, %", "2", "47.5", "46.5", "not measured", "40.5",
    ]  # fmt: skip
    assert imread(pictures.draw_lengths(points, tmp_path)).std() > 0
    assert pictures.draw_lengths([], tmp_path) is None


def test_runs_are_counted_before_they_start(tmp_path):
    plan = runner.Plan(
        tmp_path, ["digits", "documentation"], ["megalodon-chunk", "mega"], [1, 2, 3], [0.5, 1.0],
        scale=1.0, ablations=["digits"], workers=2,
    )  # fmt: skip
    assert plan.models_of("documentation") == ["megalodon-chunk"]
    assert plan.count() == 3 * 4 + 3 * len(ABLATIONS)


def test_an_ablation_of_a_model_that_is_not_trained_is_a_failure(tmp_path):
    plan = runner.Plan(tmp_path, [], [], [1], [1.0], scale=1.0, ablations=["digits"], workers=1)
    errors = runner.run(plan)
    assert len(errors) == len(ABLATIONS)
    assert "megalodon is not trained on it" in errors[0]


def test_an_interruption_ends_the_sweeps(tmp_path, monkeypatch):
    plan = runner.Plan(
        tmp_path, ["digits"], ["megalodon", "mega", "transformer"], [1], [1.0],
        scale=1.0, ablations=[], workers=2,
    )  # fmt: skip
    endless = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(runner, "prepare", lambda plan, task: None)
    monkeypatch.setattr(runner, "_megalodon", lambda *words: endless)

    def interrupt(*_):
        while len(plan.processes) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_follow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run(plan)
    assert all(process.poll() is not None for process in plan.processes)
    assert len(plan.processes) == 2  # the third is not started


@pytest.mark.slow
def test_a_tiny_comparison_runs_resumes_and_repeats(tmp_path):
    words = [str(tmp_path), "--tasks", "digits", "--models", "megalodon", "transformer"]
    words += ["--seeds", "1", "--rates", "0.5", "--updates-scale", "0.03", "--ablations", "digits"]
    command = [sys.executable, "-m", "benchmarks.learning", *words, "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    table = (tmp_path / "results" / "runs.csv").read_text()
    assert len(table.splitlines()) == 1 + 2 + len(ABLATIONS)
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "results" / "runs.csv").read_text() == table
    metrics = tmp_path / "digits" / "megalodon" / "sweep.json"
    assert json.loads(metrics.read_text())["fixed"]["optimization.max_update"] == "23"
