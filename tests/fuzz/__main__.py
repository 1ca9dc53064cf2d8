"""Run cases and count how they ended: ``python -m tests.fuzz settings files prepared --share 0.1``.

A process of its own, which only imports: each case is a copy of it.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from megalodon_tasks.recipes.lra.text import release
from tests.fuzz import damage, files, options, prepared, settings
from tests.fuzz.outcomes import FAULTS, OK, Case, Result, run
from tests.fuzz.runs import DATA, RUNS
from tests.recipes.test_text import PER_FOLDER

SECONDS = 30.0  # a case uses less than one
SEED = 17
# Benches whose prepared data and options are changed too.
PREPARED = ("classifier", "language model", "translator")


def settings_cases(folder: Path, only: str) -> Iterator[Case]:
    """Yield the cases of all settings of some recipes; data is written into ``folder``."""
    data, seen, draw = {}, set(), random.Random(SEED)
    for recipe in (recipe for recipe in RUNS if only in str(recipe)):
        if recipe.data not in data:
            data[recipe.data] = DATA[recipe.data](folder / recipe.data)
        yield from settings.cases(recipe, folder / "work", data[recipe.data], seen, draw)


def bench_cases(kind: str, folder: Path, only: str) -> Iterator[Case]:
    """Yield the cases of some benches: of all for ``files``, else of those with such data."""
    for bench in (b for b in (files.BENCHES if kind == "files" else PREPARED) if only in b):
        template = folder / bench.replace("/", " ") / "template"
        template.mkdir(parents=True)
        made = Case(
            f"writing {bench}", lambda b=bench, t=template: files.BENCHES[b].write(t), False
        )
        if (result := run(made, template.parent, 10 * SECONDS)).outcome != OK:
            raise RuntimeError(str(result))
        if kind == "files":
            yield from files.cases(bench, template)
        elif kind == "options":
            yield from options.cases(bench, template)
        else:
            words = next(iter(files.BENCHES[bench].commands))
            yield from prepared.cases(bench, words, template)


def run_all(cases: Iterable[Case], folder: Path, share: float, only: str) -> Iterator[Result]:
    """Run a share of the cases whose names hold ``only``, each in a new folder ``folder/work``."""
    draw, work = random.Random(SEED), folder / "work"
    for case in cases:
        if only in case.name and draw.random() < share:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            result = run(case, work, SECONDS)
            print(f"{result.outcome:9} {case.name}", file=sys.stderr, flush=True)
            if result.outcome in FAULTS:
                print(result, flush=True)
            yield result


def main() -> int:
    """Run what is asked for; return 1 if a case ended in anything but success or a message."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("kinds", nargs="+", choices=("settings", "files", "prepared", "options"))
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, drawn by a seed")
    parser.add_argument("--only", default="", help="cases so named, as in 'classifier: evaluate'")
    given = parser.parse_args()
    release.RELEASED_PER_FOLDER = PER_FOLDER  # a few reviews are a whole release
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        damage.BOMB = Path(name) / "bomb.zip"
        damage.write_bomb(damage.BOMB)
        for kind in given.kinds:
            folder = Path(name) / kind
            folder.mkdir()
            of_what = given.only.partition(":")[0]
            if kind == "settings":
                cases = settings_cases(folder, of_what)
            else:
                cases = bench_cases(kind, folder, of_what)
            counts = Counter(r.outcome for r in run_all(cases, folder, given.share, given.only))
            ended = ", ".join(f"{counts[outcome]} {outcome}" for outcome in counts)
            print(f"{kind}: {counts.total()} cases: {ended}", flush=True)
            faults += sum(counts[fault] for fault in FAULTS)
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
