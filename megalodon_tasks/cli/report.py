"""Write one page about any set of runs, or draw the training curve of one.

    megalodon report SWEEP OTHER_RUN --output PAGE
    megalodon report RUN --training-curve

The page, ``report.html``, needs no other file; ``report.md`` holds the same.  Runs and sweeps are found
in the given folders and below them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import report
from megalodon_tasks.runs.figures import draw_training_curve
from megalodon_tasks.runs.record import find_runs, read_run


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "report",
        "Write one page about any set of runs, or draw the training curve of one.",
        "SWEEP OTHER_RUN --output PAGE",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP")
    parser.add_argument("--output", type=Path, help="folder of the page (default: the first one)")
    parser.add_argument("--title", default="Runs", help="heading of the page")
    parser.add_argument(
        "--training-curve",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="PNG",
        help="draw only the training curve of RUN (default: RUN/training_curve.png)",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Write the page or draw the curve."""
    given = build_parser().parse_args(arguments)
    first = given.folders[0]
    if given.training_curve is None:
        problems: list[str] = []
        runs = find_runs(given.folders, problems)
        folders = [path.resolve() for path in given.folders]
        sweeps = [sweep for path in folders if (sweep := report.sweep_in(path, problems))]
        problems = list(dict.fromkeys(problems))
        written = report.write(given.output or first, given.title, runs, sweeps, problems)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
    elif len(given.folders) > 1 or given.output is not None:
        raise UserError(
            f"--training-curve draws one run and takes no --output; got {len(given.folders)} "
            f"folders and --output {given.output}"
        )
    else:
        default = given.training_curve == Path()
        written = [first / "training_curve.png" if default else given.training_curve]
        draw_training_curve(read_run(first), written[0])
    for path in written:
        print(f"wrote {path}")
