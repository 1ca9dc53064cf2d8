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

from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.runs import report
from megalodon_tasks.runs.figures import draw_training_curve
from megalodon_tasks.runs.record import find_runs, read_run


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="megalodon report",
        description="Write one page about any set of runs, or draw the training curve of one.",
        epilog="example: megalodon report SWEEP OTHER_RUN --output PAGE",
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


@user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = build_parser().parse_args(arguments)
    first = options.folders[0]
    if options.training_curve is None:
        sweeps = [sweep for path in options.folders if (sweep := report.sweep_in(path.resolve()))]
        runs = find_runs(options.folders)
        written = report.write(options.output or first, options.title, runs, sweeps)
    elif len(options.folders) > 1 or options.output is not None:
        raise UserError(
            f"--training-curve draws one run and takes no --output; got {len(options.folders)} "
            f"folders and --output {options.output}"
        )
    else:
        default = options.training_curve == Path()
        written = [first / "training_curve.png" if default else options.training_curve]
        draw_training_curve(read_run(first), written[0])
    for path in written:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
