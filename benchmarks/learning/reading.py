"""Read the sweeps of the comparison: which rate was chosen, and what its runs reached."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.tasks import ABLATIONS, MODELS, TASKS
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.record import Run, read_run
from megalodon_tasks.runs.sweep import DONE, FILE, SEED, Sweep, SweepRun, read_sweep
from megalodon_tasks.runs.sweep_table import Row, collect

RATE = "optimization.lr"


def formatted(rate: float) -> str:
    """Return a learning rate as hydra's override grammar has it, a list for fairseq."""
    return f"[{rate:.6g}]"


@dataclass(frozen=True)
class Finished:
    """One run that is done: what was set, and what it recorded."""

    point: SweepRun
    recorded: Run

    @property
    def checkpoint(self) -> Path:
        """The file of the best checkpoint, which may have been removed."""
        return self.point.folder / "checkpoint_best.pt"

    @property
    def rate(self) -> str:
        """The learning rate."""
        return self.point.settings[RATE].strip("[]")

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.point.settings[SEED])

    @property
    def maximizes(self) -> bool:
        """Whether a larger value of the metric is better."""
        checkpoint = self.recorded.start.get("config", {}).get("checkpoint", {})
        return bool(checkpoint.get("maximize_best_checkpoint_metric"))

    @property
    def best_validation(self) -> float:
        """The best value of the metric by which checkpoints are chosen, in validation."""
        name = self.recorded.start["config"]["checkpoint"]["best_checkpoint_metric"]
        values = [line[name] for line in self.recorded.validation.values() if name in line]
        if not values:
            raise UserError(f"{self.recorded.folder}: no validation recorded {name}")
        return max(values) if self.maximizes else min(values)


def finished(sweep: Sweep) -> list[Finished]:
    """Return the runs of a sweep that are done and left a record."""
    runs = [run for run in sweep.runs if run.state == DONE]
    return [Finished(run, read_run(run.folder)) for run in runs]


def chosen_rate(folder: Path) -> str | None:
    """Return the rate at which the first seed's best validation is the best; None without a run.

    Equal values choose the smaller rate.
    """
    if not (folder / FILE).is_file():
        return None
    runs = finished(read_sweep(folder))
    first = [run for run in runs if run.seed == runs[0].seed]
    if not first:
        return None

    def merit(run: Finished) -> tuple[float, float]:
        value = run.best_validation
        return (value if run.maximizes else -value), -float(run.rate)

    return max(first, key=merit).point.settings[RATE]


@dataclass(frozen=True)
class Measured:
    """A model on a task: the runs at its rate, and how they compare.

    row: means and deviations over seeds.  all_runs: those at the other rates too.
    """

    task: str
    model: str
    rate: str
    row: Row
    runs: list[Finished]
    all_runs: list[Finished]

    @property
    def title(self) -> str:
        """The model, or what it lacks, as tables and pictures show it."""
        if self.model in ABLATIONS:
            return f"Megalodon, {self.model}"
        return MODELS[self.model].title


def measured(save: Path, tasks: Sequence[str] = tuple(TASKS)) -> Iterator[Measured]:
    """Yield each model and ablation that was trained, in the order of the tables of tasks.py."""
    for task in tasks:
        for name in (*TASKS[task].models, *ABLATIONS):
            folder = save / task / name
            rate = chosen_rate(folder)
            if rate is None:
                continue
            sweep = read_sweep(folder)
            (row,) = (row for row in collect(sweep) if row.settings[RATE] == rate)
            every = finished(sweep)
            runs = [run for run in every if run.point.settings[RATE] == rate]
            yield Measured(task, name, rate.strip("[]"), row, runs, every)
