"""Train every model of the comparison through ``megalodon sweep``.

SAVE/data/RECIPE or SAVE/data/TASK   data
SAVE/TASK/MODEL/                     a sweep over learning rates and seeds, and ``sweep.log``

The first seed is trained at every rate of the grid.  The others are trained at the rate whose best
validation is the best.  An ablation has the rate of the model that it changes.
"""

import itertools
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.learning.reading import RATE, chosen_rate, formatted
from benchmarks.learning.tasks import ABLATIONS, TASKS
from megalodon_tasks.data.manifest import is_prepared
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.sweep import DONE, FILE, read_sweep

POLL_SECONDS = 2.0
BASE = "megalodon"  # the model that ablations change


@dataclass
class Plan:
    """What is trained.

    rates: shares of the largest rate of a task.  scale: share of the updates of a task.  ablations: the
    tasks on which Megalodon is trained without each idea.  workers: single-threaded runs at a time.
    """

    save: Path
    tasks: Sequence[str]
    models: Sequence[str]
    seeds: Sequence[int]
    rates: Sequence[float]
    scale: float
    ablations: Sequence[str]
    workers: int
    processes: list[subprocess.Popen] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def models_of(self, task: str) -> list[str]:
        """Return the models of this comparison that are trained on ``task``."""
        return [name for name in TASKS[task].models if name in self.models]

    def data(self, task: str) -> Path:
        """Return DATA_DIR of a task; tasks with the same demo share it."""
        own = TASKS[task].preparation
        return self.save / "data" / (task if own else TASKS[task].recipe.replace("/", "-"))

    def count(self) -> int:
        """Return the number of runs."""
        for_rates = len(self.rates) - 1
        models = sum(len(self.models_of(task)) for task in self.tasks)
        ablations = len(self.ablations) * len(ABLATIONS)
        return models * (for_rates + len(self.seeds)) + ablations * len(self.seeds)


def run(plan: Plan) -> list[str]:
    """Train what is not trained yet, with progress; return a text about each failure."""
    for task in dict.fromkeys([*plan.tasks, *plan.ablations]):
        prepare(plan, task)
    models = [(task, name) for task in plan.tasks for name in plan.models_of(task)]
    ablations = [(task, name) for task in plan.ablations for name in ABLATIONS]
    with tqdm(total=plan.count(), unit="run", miniters=1, smoothing=0) as bar:
        return _run_all(plan, models, bar) or _run_all(plan, ablations, bar)


def prepare(plan: Plan, task: str) -> None:
    """Make the data of a task, where its recipe looks for that of its demo, before sweeps share it."""
    options, folder = TASKS[task].preparation, plan.data(task) / "demo"
    if is_prepared(folder / "prepared"):
        return
    source = plan.data(task) / "generated" if options else folder
    words = ["prepare", TASKS[task].recipe, str(source), str(folder / "prepared")]
    words += shlex.split(options) or ["--demo"]
    if subprocess.run(_megalodon(*words)).returncode:
        raise UserError(f"the data of {task} could not be made; see the message above")


def _megalodon(*words: str) -> list[str]:
    return [sys.executable, "-m", "megalodon_tasks", *words]


def _run_all(plan: Plan, jobs: Sequence[tuple[str, str]], bar: tqdm) -> list[str]:
    """Run the sweeps of all jobs, which divide the workers among them."""
    if not jobs:
        return []
    at_a_time = min(len(jobs), plan.workers)
    workers = plan.workers // at_a_time
    with ThreadPoolExecutor(at_a_time) as pool:
        futures = [pool.submit(_run_model, plan, task, name, workers) for task, name in jobs]
        try:
            _follow(plan, futures, bar)
        except BaseException:
            # the sweeps save and stop, and the pool waits for them; a repetition resumes them
            plan.stopped.set()
            for process in plan.processes:
                process.terminate()
            raise
        return [error for future in futures if (error := future.result())]


def _follow(plan: Plan, futures: Sequence[Future], bar: tqdm) -> None:
    """Show how many runs are done, and about how long the others take, until all have ended."""
    first = True
    while True:
        ended = all(future.done() for future in futures)
        done = sum(_done(plan.save / task / name) for task, name in _folders(plan))
        if first:  # of an earlier call, which the time left does not follow from
            bar.initial, bar.n, first = done, done, False
        bar.update(done - bar.n)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _folders(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from ((task, name) for task in plan.tasks for name in plan.models_of(task))
    yield from ((task, name) for task in plan.ablations for name in ABLATIONS)


def _done(folder: Path) -> int:
    return read_sweep(folder).states()[DONE] if (folder / FILE).is_file() else 0


def _run_model(plan: Plan, task: str, name: str, workers: int) -> str | None:
    """Train a model at the rates of the grid, then at the best of them with all seeds."""
    folder = plan.save / task / name
    first, largest = str(plan.seeds[0]), TASKS[task].rate
    seeds = list(map(str, plan.seeds))
    if name in ABLATIONS:
        base = chosen_rate(plan.save / task / BASE)
        if base is None:
            return f"{task}, {name}: {BASE} is not trained on it; add it to --models and --tasks"
        return _sweep(plan, task, name, [base], seeds, workers)
    grid = [formatted(largest * share) for share in plan.rates]
    if error := _sweep(plan, task, name, grid, [first], workers):
        return error
    best = chosen_rate(folder)
    if best is None:  # stopped
        return None
    return _sweep(plan, task, name, [best], seeds, workers)


def _sweep(
    plan: Plan, task: str, name: str, rates: Sequence[str], seeds: Sequence[str], workers: int
) -> str | None:
    """Run ``megalodon sweep``; return what to tell the user if it failed."""
    folder, log = plan.save / task / name, plan.save / task / f"{name}.log"
    overrides = TASKS[task].overrides(name, plan.scale)
    if plan.stopped.is_set() or _is_done(folder, overrides, rates, seeds):
        return None
    words = ["sweep", TASKS[task].recipe, str(plan.data(task)), str(folder), "--demo"]
    words += ["--workers", str(max(1, workers)), "--threads", "1", "--seeds", *seeds]
    words += ["--sweep", f"{RATE}={','.join(rates)}"]
    words += [f"{key}={value}" for key, value in overrides.items()]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            _megalodon(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        plan.processes.append(process)
        if plan.stopped.is_set():  # while this one was started
            process.terminate()
        status = process.wait()
    return f"{task}, {name}: megalodon sweep ended with {status}; see {log}" if status else None


def _is_done(
    folder: Path, overrides: dict[str, str], rates: Sequence[str], seeds: Sequence[str]
) -> bool:
    """Whether the sweep has these runs with these settings, all done."""
    if not (folder / FILE).is_file():
        return False
    sweep = read_sweep(folder)
    done = {tuple(run.settings.values()) for run in sweep.runs if run.state == DONE}
    return sweep.fixed == overrides and done.issuperset(itertools.product(rates, seeds))
