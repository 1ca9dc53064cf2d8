"""One page about any set of runs: ``megalodon-report SAVE... [--output FOLDER]``.

Collects ``results.jsonl``, training logs and configurations of all runs in the given folders and below
(a sweep's folder too) into ``report.html``, which needs no other file, and ``report.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks import fairseq_compat
from megalodon_tasks.errors import user_errors
from megalodon_tasks.reports import page, runs


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="megalodon-report", description="One page about any set of runs."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="SAVE")
    parser.add_argument("--output", type=Path, help="folder of the page (default: the first SAVE)")
    parser.add_argument("--title", default="Runs", help="its heading")
    return parser


@user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    found = runs.find(options.folders)
    sweeps = [sweep for folder in options.folders if (sweep := page.sweep_in(folder.resolve()))]
    for path in page.write(options.output or options.folders[0], options.title, found, sweeps):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
