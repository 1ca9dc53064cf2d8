"""Evaluate a checkpoint: ``python -m megalodon_tasks.cli.evaluate CHECKPOINT --data DIR``.

The model, task and criterion are those of the checkpoint.  The result is printed beside the best
constant answer and the published numbers of ``recipes/results.csv``, and appended to a file of JSON
lines.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.logging import metrics
from tqdm import tqdm

from megalodon_tasks import fairseq_compat
from megalodon_tasks.cli import results
from megalodon_tasks.errors import UserError, user_errors

INTERRUPTED = 130  # 128 + SIGINT


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
    """What a model reached on one split; ``constant`` is the percentage of its commonest class."""

    statistics: dict[str, float]
    count: int
    constant: float | None


def load(path: Path, data: str | None, device: torch.device) -> Trained:
    """Build what ``path`` holds, on ``device``; ``data`` replaces the folder it was trained on.

    Nothing but tensors and settings is read from the file.  Raises :class:`UserError` where the file is
    missing, damaged, or of a model that this version builds otherwise.
    """
    overrides = {} if data is None else {"data": str(Path(data).resolve())}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
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
    labels: Counter[int] | None = Counter()
    count = 0
    with metrics.aggregate(new_root=True) as meters, torch.inference_mode():
        for sample in tqdm(batches, desc=split, unit="batch", disable=not sys.stderr.isatty()):
            sample = utils.move_to_cuda(sample) if device.type == "cuda" else sample
            _, _, logged = task.valid_step(sample, trained.model, trained.criterion)
            task.reduce_metrics([logged], trained.criterion)
            count += sample["id"].numel()
            labels = _counted(labels, sample.get("target"))
    if count != len(dataset):
        raise UserError(f"split {split}: {count} of {len(dataset)} items were evaluated, not all")
    constant = 100 * labels.most_common(1)[0][1] / count if labels else None
    return Score(dict(meters.get_smoothed_values()), count, constant)


def _counted(labels: Counter[int] | None, target: torch.Tensor | None) -> Counter[int] | None:
    """Add the classes of a batch; None once an item has no single class."""
    if labels is None or target is None or target.dim() != 1 or target.is_floating_point():
        return None
    labels.update(target.tolist())
    return labels


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
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--results", type=Path, help="file of JSON lines (default: results.jsonl beside CHECKPOINT)"
    )
    parser.add_argument("--recipe", help="id in recipes/results.csv (default: the task's name)")
    return parser


@user_errors()
def run(options: argparse.Namespace) -> None:
    """Evaluate, print and record."""
    cuda = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if cuda else "cpu")
    if not options.checkpoint.is_file():
        raise UserError(f"{options.checkpoint}: there is no such checkpoint")
    trained = load(options.checkpoint, options.data, device)
    score = evaluate(trained, options.split, options.batch_size, options.num_workers, device)
    benchmark = options.recipe or trained.cfg.task._name
    file = options.results or options.checkpoint.parent / "results.jsonl"
    record = describe(trained, score, benchmark, options.split, file, device)
    results.append(file, record)
    print("\n".join(results.summary(record, results.published(benchmark))))
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
        "n": score.count,
        "best_constant": score.constant,
        "checkpoint": results.relative(trained.path, file.parent),
        "update": trained.update,
        "epoch": trained.epoch,
        "params": sum(p.numel() for p in trained.model.parameters()),
        "chunk_size": trained.cfg.model.get("chunk_size"),
        "seed": trained.cfg.common.seed,
        **results.environment(device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    try:
        run(options)
    except KeyboardInterrupt:
        print("interrupted; nothing was recorded", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
