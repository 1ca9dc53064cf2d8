"""Evaluate trained models at 1, 2, 4 and 8 times the longest sequence of training.

ListOps: new expressions of k/2 to k times the longest in training (k = 2, 4, 8), with as many arguments
and deeper, as no other is so long.  Language models: the bytes of the test documents whose number of
predecessors is k/2 to k times the longest sequence.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.learning.reading import Finished, Measured
from benchmarks.learning.tasks import ABLATIONS, MODELS, TASKS, Task
from megalodon_tasks.cli import prepare
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.manifest import is_prepared
from megalodon_tasks.evaluation import checkpoint, classifier, language_model
from megalodon_tasks.evaluation.long_context import FEW_TOKENS
from megalodon_tasks.runs.record import append

FACTORS = (1, 2, 4, 8)
FILE = "lengths.jsonl"
LISTOPS = "--generate --train 1 --valid 1 --test 500 --max-depth 12 --max-args 5 --seed 1"
PIECE = 512  # bytes that are read at a time


@dataclass(frozen=True)
class AtLength:
    """What one run reached at ``factor`` times the longest sequence of training, of ``n`` items."""

    task: str
    model: str
    rate: str
    seed: int
    factor: int
    n: int
    unit: str
    value: float


def evaluate_lengths(save: Path, results: Sequence[Measured]) -> list[AtLength]:
    """Evaluate the runs of tasks with a ``trained_length``; what ``lengths.jsonl`` has stays."""
    points = []
    for result in results:
        if TASKS[result.task].trained_length is None or result.model in ABLATIONS:
            continue
        file = save / result.task / FILE
        known = read_lengths(file)
        for run in result.runs:
            identity = (result.task, result.model, result.rate, run.seed)
            recorded = [p for p in known if (p.task, p.model, p.rate, p.seed) == identity]
            if not recorded and not run.checkpoint.is_file():
                continue
            for point in recorded or _evaluate(save, run, identity):
                points.append(point)
                if not recorded:
                    append(file, asdict(point))
    return points


def read_lengths(file: Path) -> list[AtLength]:
    """Return the lines of ``lengths.jsonl``; none without the file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [AtLength(**json.loads(line)) for line in lines]


def _evaluate(save: Path, run: Finished, identity: tuple[str, str, str, int]) -> list[AtLength]:
    """Evaluate the best checkpoint of a run at all lengths."""
    task = TASKS[identity[0]]
    best = run.checkpoint
    print(f"lengths: {', '.join(map(str, identity))}", flush=True)
    found = (
        _classified(save, run, task, best) if task.recipe == "lra/listops" else _read(task, best)
    )
    return [AtLength(*identity, *values) for values in found]


def _classified(
    save: Path, run: Finished, task: Task, best: Path
) -> Iterator[tuple[int, int, str, float]]:
    """Yield factor, number of items, unit and accuracy; at factor 1 that of the test split."""
    result = run.recorded.results[-1]
    yield 1, result["n"], "accuracy, %", result["value"]
    for factor in FACTORS[1:]:
        assert task.trained_length is not None, "lengths need the longest of training"
        longest = factor * task.trained_length
        data = save / "data" / f"listops-to-{longest}"
        if not is_prepared(data / "prepared"):
            words = [f"--min-length={longest // 2 + 1}", f"--max-length={longest}"]
            where = [str(data), str(data / "prepared")]
            prepare.main([task.recipe, *where, *LISTOPS.split(), *words])
        trained = checkpoint.load(
            best, data / "prepared", None, False, {"max_positions": longest + 1}
        )
        score = classifier.evaluate(trained, "test", batch_size=100)
        yield factor, score.count, "accuracy, %", float(score.statistics["accuracy"])


def _read(task: Task, best: Path) -> Iterator[tuple[int, int, str, float]]:
    """Yield factor, number of bytes, unit and bits per byte, where there are enough bytes."""
    assert task.trained_length is not None, "lengths need the longest of training"
    trained = checkpoint.load(best)
    split = read_corpus(Path(trained.cfg.task.data)).split("test")
    progress = language_model.Progress(best.with_name("lengths.progress.pt"), "lengths")
    end = trained.task.source_dictionary.eos()
    totals = language_model.evaluate(
        trained.language_model, split, split.offsets, PIECE, end, progress, task.trained_length
    )
    progress.remove()
    for band in totals.bands:
        factor = band.high // task.trained_length
        if factor in FACTORS and band.tokens >= FEW_TOKENS:
            yield factor, band.tokens, "bits per byte", band.nll / band.tokens / math.log(2)


def lengths_table(points: Sequence[AtLength]) -> list[list[str]]:
    """Return the head and a line for each model: the mean over seeds at each length."""
    lines = [["task", "model", "unit", "seeds", *(f"{factor} x" for factor in FACTORS)]]
    for task, model in dict.fromkeys((point.task, point.model) for point in points):
        series = [point for point in points if (point.task, point.model) == (task, model)]
        cells = []
        for factor in FACTORS:
            values = [point.value for point in series if point.factor == factor]
            digits = 1 if "%" in series[0].unit else 3
            cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "not measured")
        seeds = str(len({point.seed for point in series}))
        lines.append([TASKS[task].title, MODELS[model].title, series[0].unit, seeds, *cells])
    return lines
