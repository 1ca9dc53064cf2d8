"""Evaluate a checkpoint: ``megalodon evaluate CHECKPOINT --data DIR``.

The model, task and criterion are those of the checkpoint.  The result is printed beside the best
constant answer and the published numbers (``recipes/published.csv``), and appended to a file of JSON
lines.  For classifiers, predictions, a confusion matrix and the accuracy by length and class can be
written too, and ``--time-step 2`` evaluates on a signal of half the sampling rate without retraining.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megalodon_tasks.cli import options
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import accuracy, checkpoint, classifier
from megalodon_tasks.option_types import PROCESSES, whole
from megalodon_tasks.runs import results
from megalodon_tasks.runs.record import RESULTS, append, relative

AFTER_INTERRUPT = "nothing was recorded"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "evaluate", "Evaluate a checkpoint.", "SAVE/checkpoint_best.pt --by-class classes.csv"
    )
    options.add_checkpoint(parser)
    options.add_result(parser)
    options.add_chunk_size(parser)
    add = parser.add_argument
    add("--batch-size", type=whole(1), help="items per batch (default: as in training)")
    add("--num-workers", type=whole(0, PROCESSES), default=0, help="data loading processes")
    add("--ema", action="store_true", help="use the weights averaged in training")
    add(
        "--task-override", action="append", default=[], metavar="KEY=VALUE",
        help="another value for a field of the task, such as sample_rate=8000; may be repeated",
    )  # fmt: skip
    add(
        "--time-step", type=whole(1), default=1, metavar="N",
        help="the signal is sampled N times more slowly than in training (2: half the rate)",
    )  # fmt: skip
    files = parser.add_argument_group("files to write, for classifiers")
    files.add_argument("--predictions", type=Path, metavar="CSV", help="one row per item (or .tsv)")
    files.add_argument("--confusion", type=Path, metavar="PNG", help="picture of the confusions")
    files.add_argument("--by-length", type=Path, metavar="CSV", help="accuracy by length")
    files.add_argument("--by-class", type=Path, metavar="CSV", help="accuracy by class")
    return parser


def task_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` words as a dictionary, with values as in YAML."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--task-override {word}: write KEY=VALUE, such as sample_rate=8000")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--task-override {word}: its value is not YAML: {error}") from None
    return found


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print and record."""
    given = build_parser().parse_args(arguments)
    overrides = task_overrides(given.task_override)
    trained = checkpoint.load(
        given.checkpoint, given.data, given.device, given.ema, overrides, given.chunk_size
    )
    if given.time_step != 1:
        if not hasattr(trained.model, "set_time_step"):
            model = type(trained.model).__name__
            raise UserError(f"--time-step {given.time_step}: {model} has no time step to change")
        trained.model.set_time_step(given.time_step)
    score = classifier.evaluate(trained, given.split, given.batch_size, given.num_workers)
    file = given.results or given.checkpoint.parent / RESULTS
    measured = {
        "split": given.split,
        **score.record(trained.cfg.checkpoint.best_checkpoint_metric),
        "task_overrides": overrides,
        "time_step": given.time_step,
    }
    record = trained.result(file, measured, given.recipe)
    print("\n".join(results.summary(record)))
    names = ("predictions", "confusion", "by_length", "by_class")
    files = {name: path for name in names if (path := getattr(given, name)) is not None}
    if score.predictions is not None:
        title = f"{record['benchmark']}, {given.split}"
        files = accuracy.report(score.predictions, title, files)
    elif files:
        raise UserError(
            "predictions, confusion matrix and accuracy by length or class need items with one "
            "class each, and a model that gives a score for each class"
        )
    record["files"] = {k: relative(path, file.parent) for k, path in files.items()}
    append(file, record)
    print(f"recorded in {file}")
