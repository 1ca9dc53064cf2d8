"""Evaluate a checkpoint: ``python -m megalodon_tasks.cli.evaluate CHECKPOINT --data DIR``.

The model, task and criterion are those of the checkpoint.  The result is printed beside the best
constant answer and the published numbers (``recipes/published.csv``), and appended to a file of JSON
lines.  For classifiers, predictions, a confusion matrix and the accuracy by length and class can be
written too, and ``--time-step 2`` evaluates on a signal of half the sampling rate without retraining.
"""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from fairseq import checkpoint_utils, utils
from fairseq.logging import metrics
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import open_dict
from tqdm import tqdm

from megalodon_tasks import fairseq_compat
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.evaluation import confusion, predictions
from megalodon_tasks.evaluation.predictions import Predictions
from megalodon_tasks.runs import results
from megalodon_tasks.runs.environment import environment
from megalodon_tasks.runs.record import RESULTS, append, relative
from megalodon_tasks.training import console

# Up to so many classes the accuracy of each is printed.
LISTED_CLASSES = 40


@dataclass(frozen=True)
class Trained:
    """A checkpoint made usable."""

    path: Path
    cfg: Any
    task: Any
    model: torch.nn.Module
    criterion: torch.nn.Module
    update: int
    epoch: int


@dataclass(frozen=True)
class Score:
    """What a model reached on one split; ``predictions`` is None where items have no single class."""

    statistics: dict[str, float]
    count: int
    predictions: Predictions | None

    @property
    def constant(self) -> float | None:
        """Percentage of the commonest class of the split."""
        return None if self.predictions is None else self.predictions.best_constant


def load(
    path: Path,
    data: str | None,
    device: torch.device,
    ema: bool = False,
    task_overrides: Mapping[str, Any] | None = None,
) -> Trained:
    """Build what ``path`` holds, on ``device``; ``data`` replaces the folder it was trained on.

    ``task_overrides``: other values for fields of the task.

    ``ema`` takes the weights that training averaged (``ema.store_ema=true``) instead of the last ones.

    Nothing but tensors and settings is read from the file.  Raises :class:`UserError` where the file is
    missing, damaged, or of a model that this version builds otherwise, and for an unknown field.
    """
    overrides = {} if data is None else {"data": str(Path(data).resolve())}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
    _override_task(state["cfg"].task, task_overrides or {})
    if ema:
        if "ema" not in state["extra_state"]:
            raise UserError(f"{path}: holds no averaged weights; train with ema.store_ema=true")
        state["model"] = state["extra_state"]["ema"]
    history, position = state["optimizer_history"][-1], state["extra_state"]["train_iterator"]
    try:
        (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], state=state
        )
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            f"{path}: does not fit the model that its settings name: {error}"
        ) from error
    between_epochs = position["iterations_in_epoch"] == 0
    return Trained(
        path=path,
        cfg=cfg,
        task=task,
        model=model.to(device).eval(),
        criterion=task.build_criterion(cfg.criterion).to(device).eval(),
        update=history["num_updates"],
        epoch=position["epoch"] - 1 if between_epochs else position["epoch"],
    )


def _override_task(task: Any, overrides: Mapping[str, Any]) -> None:
    """Set fields of the task's configuration, which may be newer than the checkpoint."""
    registered = TASK_DATACLASS_REGISTRY.get(task._name)
    known = set(task) | set(getattr(registered, "__dataclass_fields__", ())) - {"_name"}
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise UserError(
                f"--task-override {name}={value}: the task {task._name} has no field {name!r}; "
                f"there is {', '.join(near)}"
            )
        with open_dict(task):
            task[name] = value


def set_time_step(model: torch.nn.Module, factor: int) -> None:
    """Make ``model`` read a signal sampled ``factor`` times more slowly than that of training.

    Raises :class:`UserError` for a model that has no notion of a time step.
    """
    if not hasattr(model, "set_time_step"):
        raise UserError(f"--time-step {factor}: {type(model).__name__} has no time step to change")
    with user_errors():
        model.set_time_step(factor)


def evaluate(
    trained: Trained, split: str, batch_size: int | None, num_workers: int, device: torch.device
) -> Score:
    """Run the model over all of ``split`` and reduce as validation does."""
    task, settings = trained.task, trained.cfg.dataset
    task.load_dataset(split, combine=False, epoch=1)
    dataset = task.dataset(split)
    batches = task.get_batch_iterator(
        dataset=dataset,
        max_sentences=batch_size or settings.batch_size_valid or settings.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), trained.model.max_positions()
        ),
        num_workers=num_workers,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    collector = predictions.Collector()
    hook = trained.model.register_forward_hook(collector.hook)
    count = 0
    with metrics.aggregate(new_root=True) as meters, torch.inference_mode():
        for sample in tqdm(batches, desc=split, unit="batch", disable=not sys.stderr.isatty()):
            sample = utils.move_to_cuda(sample) if device.type == "cuda" else sample
            _, _, logged = task.valid_step(sample, trained.model, trained.criterion)
            task.reduce_metrics([logged], trained.criterion)
            count += sample["id"].numel()
            collector.add(sample)
    hook.remove()
    if count != len(dataset):
        raise UserError(f"split {split}: {count} of {len(dataset)} items were evaluated, not all")
    found = collector.result(getattr(task, "class_names", None))
    return Score(dict(meters.get_smoothed_values()), count, found)


def write_details(score: Score, title: str, options: argparse.Namespace) -> dict[str, Path]:
    """Write the files that the options ask for, and print the tables; returns what was written.

    Raises :class:`UserError` if the items have no single class each, as in language modelling.
    """
    wanted = {
        "predictions": options.predictions,
        "confusion": options.confusion,
        "by_length": options.by_length,
        "by_class": options.by_class,
    }
    wanted = {name: path for name, path in wanted.items() if path is not None}
    found = score.predictions
    if found is None:
        if wanted:
            raise UserError(
                "predictions, confusion matrix and accuracy by length or class need items with one "
                "class each, and a model that gives a score for each class"
            )
        return {}
    by_length, by_class = predictions.by_length(found), predictions.by_class(found)
    if len(by_class) <= LISTED_CLASSES:
        print("\n".join(predictions.table("class", by_class)))
    if by_length:
        print("\n".join(predictions.table("length", by_length)))
    elif "by_length" in wanted:
        print(f"all items have length {found.length[0]}: no accuracy by length")
        del wanted["by_length"]
    writers = {
        "predictions": lambda path: predictions.write_predictions(found, path),
        "confusion": lambda path: confusion.draw(found, title, path),
        "by_length": lambda path: predictions.write_groups("length", by_length, path),
        "by_class": lambda path: predictions.write_groups("class", by_class, path),
    }
    for name, path in wanted.items():
        writers[name](path)
        print(f"wrote {path}")
    return wanted


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.cli.evaluate", description="Evaluate a checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, help="a file that a training run wrote")
    parser.add_argument("--data", help="folder of the prepared data (default: as in training)")
    parser.add_argument("--split", default="test", help="which split (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="items per batch (default: as in training)")
    parser.add_argument("--num-workers", type=int, default=0, help="data loading processes")
    parser.add_argument("--ema", action="store_true", help="use the weights averaged in training")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--results", type=Path, help="file of JSON lines (default: results.jsonl beside CHECKPOINT)"
    )
    parser.add_argument("--recipe", help="id in recipes/results.csv (default: the task's name)")
    parser.add_argument(
        "--task-override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a field of the task, such as sample_rate=8000; may be repeated",
    )
    parser.add_argument(
        "--time-step",
        type=int,
        default=1,
        metavar="N",
        help="the signal is sampled N times more slowly than in training (2: half the rate)",
    )
    files = parser.add_argument_group("files to write, for classifiers")
    files.add_argument("--predictions", type=Path, metavar="CSV", help="one row per item (or .tsv)")
    files.add_argument("--confusion", type=Path, metavar="PNG", help="picture of the confusions")
    files.add_argument("--by-length", type=Path, metavar="CSV", help="accuracy by length")
    files.add_argument("--by-class", type=Path, metavar="CSV", help="accuracy by class")
    return parser


def task_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as a dictionary; values as in YAML.  Raises :class:`UserError` for others."""
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


@user_errors()
def run(options: argparse.Namespace) -> None:
    """Evaluate, print and record."""
    cuda = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if cuda else "cpu")
    if not options.checkpoint.is_file():
        raise UserError(f"{options.checkpoint}: there is no such checkpoint")
    overrides = task_overrides(options.task_override)
    trained = load(options.checkpoint, options.data, device, options.ema, overrides)
    if options.time_step != 1:
        set_time_step(trained.model, options.time_step)
    score = evaluate(trained, options.split, options.batch_size, options.num_workers, device)
    benchmark = options.recipe or trained.cfg.task._name
    file = options.results or options.checkpoint.parent / RESULTS
    record = describe(trained, score, benchmark, options.split, file, device)
    record |= {"task_overrides": overrides, "time_step": options.time_step}
    print("\n".join(results.summary(record, results.published(benchmark))))
    written = write_details(score, f"{benchmark}, {options.split}", options)
    record["files"] = {k: relative(path, file.parent) for k, path in written.items()}
    append(file, record)
    print(f"recorded in {file}")


def describe(
    trained: Trained, score: Score, benchmark: str, split: str, file: Path, device: torch.device
) -> dict[str, Any]:
    """The line of ``results.jsonl``: what was reached, by what, where."""
    metric = trained.cfg.checkpoint.best_checkpoint_metric
    if metric not in score.statistics:
        raise UserError(
            f"{trained.path}: its metric {metric!r} is not logged by the criterion, which logs "
            f"{', '.join(sorted(score.statistics))}"
        )
    return {
        "benchmark": benchmark,
        "split": split,
        "metric": metric,
        "value": float(score.statistics[metric]),
        "loss": float(score.statistics["loss"]),
        **{k: float(v) for k, v in score.statistics.items() if k in ("top5",) and k != metric},
        "n": score.count,
        "best_constant": score.constant,
        **provenance(trained, file, device),
    }


def provenance(trained: Trained, file: Path, device: torch.device) -> dict[str, Any]:
    """What a result in ``file`` was reached by, and where: the part that all results share."""
    return {
        "checkpoint": relative(trained.path, file.parent),
        "update": trained.update,
        "epoch": trained.epoch,
        "params": sum(p.numel() for p in trained.model.parameters()),
        "chunk_size": trained.cfg.model.get("chunk_size"),
        "seed": trained.cfg.common.seed,
        **environment(device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    return console.exit_status(lambda: run(options), "interrupted; nothing was recorded")


if __name__ == "__main__":
    sys.exit(main())
