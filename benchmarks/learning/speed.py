"""Measure the time of an update of each model, in turn in one process.

Runs that share the cores with each other or with other programs say little about speed.  Here all models
of a task take the same batches one after another, and what counts is the CPU time of the process, on
one thread: forward and backward, without the optimizer.
"""

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import utils

from benchmarks.learning.reading import Measured
from megalodon_tasks.evaluation import checkpoint
from megalodon_tasks.files import atomic_file

FILE = "speed.json"
BATCHES, REPEATS = 4, 5


@dataclass(frozen=True)
class Speed:
    """CPU time of a model: ``seconds`` of an update, the median, and ``tokens`` a second."""

    model: str
    seconds: float
    tokens: float


def measure_speed(save: Path, results: Sequence[Measured]) -> dict[tuple[str, str], Speed]:
    """Return the speed of each model by task and name; ``speed.json`` of a task is taken if complete.

    Models whose checkpoints were removed have none.
    """
    found = {}
    for task, group in itertools.groupby(results, key=lambda result: result.task):
        file = save / task / FILE
        models = [result for result in group if result.runs[0].checkpoint.is_file()]
        names = [result.model for result in models]
        speeds = _read(file)
        if [speed.model for speed in speeds] != names:
            print(f"speed: {task}", flush=True)
            measured = _measure([result.runs[0].checkpoint for result in models])
            speeds = [Speed(name, *values) for name, values in zip(names, measured, strict=True)]
            with atomic_file(file, "w") as stream:
                json.dump([asdict(speed) for speed in speeds], stream, indent=1)
        found |= {(task, speed.model): speed for speed in speeds}
    return found


def _read(file: Path) -> list[Speed]:
    lines = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return [Speed(**line) for line in lines]


def _measure(checkpoints: Sequence[Path]) -> list[tuple[float, float]]:
    """Return seconds of an update and tokens a second for each model, all on the same batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = [checkpoint.load(path, device=torch.device("cpu")) for path in checkpoints]
    batches = _batches(models[0])
    times: list[list[float]] = [[] for _ in models]
    for _, batch in itertools.product(range(REPEATS), batches):
        for seconds, trained in zip(times, models, strict=True):
            seconds.append(_step(trained, batch))
    torch.set_num_threads(threads)
    tokens = statistics.fmean(int(batch["ntokens"]) for batch in batches)
    # the first turn has what is built once
    medians = [statistics.median(seconds[len(batches) :]) for seconds in times]
    return [(seconds, tokens / seconds) for seconds in medians]


def _batches(trained: checkpoint.Trained) -> list[dict[str, Any]]:
    task, settings = trained.task, trained.cfg.dataset
    task.load_dataset("train", combine=False, epoch=1)
    iterator = task.get_batch_iterator(
        dataset=task.dataset("train"),
        max_tokens=settings.max_tokens,
        max_sentences=settings.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), trained.model.max_positions()
        ),
        seed=1,
    ).next_epoch_itr(shuffle=True, set_dataset_epoch=False)
    return list(itertools.islice(iterator, BATCHES))


def _step(trained: checkpoint.Trained, batch: dict[str, Any]) -> float:
    trained.model.train()
    trained.model.zero_grad()
    start = time.process_time()
    loss, _, _ = trained.criterion(trained.model, batch)
    loss.backward()
    return time.process_time() - start
