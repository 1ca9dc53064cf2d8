"""Compare Megalodon, Mega and a Transformer at equal data, updates and size.

    python -m benchmarks.learning SAVE
    python -m benchmarks.learning SAVE --tasks pathfinder digits --models megalodon transformer
    python -m benchmarks.learning SAVE --ablations pathfinder --seeds 1 2 3
    python -m benchmarks.learning SAVE --report-only --output benchmarks/learning/results

Trains each model on each task through ``megalodon sweep``, one single-threaded run for each core: the
first seed at every rate of the grid, all seeds at the rate whose validation is best.  Then evaluates at
lengths that were not trained on, and writes tables and pictures.  The same command resumes.  What was
not run is "not measured" in the tables.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import pictures, reading, runner, tables
from benchmarks.learning.lengths import evaluate_lengths, lengths_table
from benchmarks.learning.speed import measure_speed
from benchmarks.learning.tasks import MODELS, TASKS
from megalodon_tasks.errors import UserError
from megalodon_tasks.option_types import PROCESSES, whole

RATES = (0.25, 0.5, 1.0)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("save", type=Path, help="folder of data, sweeps and results")
    add("--tasks", nargs="+", choices=TASKS, help="default: all that this machine can make")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    add("--rates", nargs="+", type=float, default=list(RATES),
        help="learning rates, as shares of the largest of a task (default: 0.25 0.5 1)")  # fmt: skip
    add("--updates-scale", type=float, default=1.0, help="share of the updates of the demos")
    add("--ablations", nargs="+", choices=TASKS, default=[], metavar="TASK",
        help="tasks on which Megalodon is also trained without each of its ideas")  # fmt: skip
    add("--workers", type=whole(1, PROCESSES), default=os.cpu_count() or 1,
        help="runs at a time (default: the number of cores)")  # fmt: skip
    add("--output", type=Path, help="folder of tables and pictures (default: SAVE/results)")
    add("--report-only", action="store_true", help="train nothing, write what there is")
    return parser


def possible_tasks() -> list[str]:
    """Return all tasks whose data can be made here; say which one cannot and why."""
    if shutil.which("espeak-ng"):
        return list(TASKS)
    print("words is left out: espeak-ng, which speaks them, is not installed", file=sys.stderr)
    return [name for name in TASKS if name != "words"]


def report(save: Path, output: Path) -> None:
    """Evaluate at other lengths, and write tables and pictures of all that is done in ``save``."""
    results = list(reading.measured(save))
    if not results:
        raise UserError(f"{save}: no run is done; leave out --report-only")
    output.mkdir(parents=True, exist_ok=True)
    speeds = measure_speed(save, results)
    points = evaluate_lengths(save, results)
    tables.write_runs(results, output)
    tables.write_curves(results, output)
    tables.write_tables(results, speeds, lengths_table(points), output)
    pictures.draw_curves(results, speeds, output)
    pictures.draw_lengths(points, output)
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"written to {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 if a run failed."""
    given = build_parser().parse_args(arguments)
    save = given.save.absolute()
    errors = []
    if not given.report_only:
        plan = runner.Plan(
            save=save,
            tasks=given.tasks or possible_tasks(),
            models=given.models,
            seeds=given.seeds,
            rates=given.rates,
            scale=given.updates_scale,
            ablations=given.ablations,
            workers=given.workers,
        )
        # a scheduler's signal ends the sweeps as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        errors = runner.run(plan)
    report(save, given.output or save / "results")
    for error in errors:
        print(f"failed: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
