"""Generate ListOps as Long Range Arena did, in exactly the layout of the original release.

    python -m megalodon_tasks.recipes.lra.listops.generator OUT
    python -m megalodon_tasks.recipes.lra.listops.generator OUT --train 2000 --valid 200 --test 200 \\
        --min-length 10 --max-length 60 --max-args 5 --seed 1

writes ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv`` into the folder OUT; what is drawn
is defined in ``listops_sampling``.  Distinct expressions are collected in the order in which they are
first drawn, and a random permutation says which split each goes to (the original cut a Python set, whose
order is just as arbitrary), so that the splits are alike even where short expressions recur.

The result depends on the arguments and the seed alone: expressions are drawn in units, each with a seed
of its own, and used in the order of the units, however many processes work on them.
"""

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np

from megalodon_tasks.data.parallel import in_turns, usable_cores
from megalodon_tasks.data.preparing import ending_with_messages, progress_bar
from megalodon_tasks.files import atomic_file, sole_writer
from megalodon_tasks.recipes.lra.listops.feasibility import check_feasible
from megalodon_tasks.recipes.lra.listops.grammar import CLOSE, DIGITS, OPERATORS
from megalodon_tasks.recipes.lra.listops.sampling import (
    MIN_ARGS,
    Expressions,
    Grammar,
    operator_code,
    sample_expressions,
)

FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = b"Source\tTarget\n"
RECORD = "listops_generator.json"

_KEPT_PER_UNIT = 256
_MOST_CANDIDATES = 1 << 16
# So many accepted draws in a row without a new one: what is still missing is too rare to wait for.
_PATIENCE = 200_000


@dataclass(frozen=True)
class Settings:
    """Everything that the generated files depend on."""

    train: int = 96_000
    valid: int = 2_000
    test: int = 2_000
    seed: int = 0
    grammar: Grammar = field(default_factory=Grammar)

    def validate(self) -> None:
        """Raise ``ValueError`` for an empty split or a negative seed."""
        for name in FILES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1 expression")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        self.grammar.validate()

    @property
    def total(self) -> int:
        """The number of expressions in all splits together."""
        return self.train + self.valid + self.test


def format_expression(codes: Sequence[int], max_args: int) -> bytes:
    """Write one expression (codes of ``listops_sampling``) as the text of the original files.

    The tree is printed as nested pairs, left to right: ``[MIN 3 4 ]`` as ``( ( ( [MIN 3 ) 4 ) ] )``.
    """
    pieces = _pieces(max_args)
    # Every piece closes the pair that ends with it, except for the outermost, which ends no pair.
    return b"".join([pieces[code] for code in codes])[: -len(b" ) ")]


@functools.cache
def _pieces(max_args: int) -> list[bytes]:
    """Text of each code, as an argument of some operator."""
    pieces = [f"{digit} ) ".encode() for digit in DIGITS] + [f"{CLOSE} ) ) ".encode()]
    for args in range(max_args + 1):
        for index, operator in enumerate(OPERATORS):
            assert operator_code(index, args) == len(pieces), "codes and pieces are out of step"
            pieces.append(b"( " * (args + 1) + operator.encode() + b" ")
    return pieces


def lines_of(expressions: Expressions, max_args: int) -> list[bytes]:
    """The lines of the released files for these expressions."""
    codes = expressions.codes.tolist()
    ends = [*expressions.starts[1:].tolist(), len(codes)]
    return [
        b"%b\t%d\n" % (format_expression(codes[start:end], max_args), value)
        for start, end, value in zip(
            expressions.starts.tolist(), ends, expressions.values.tolist(), strict=True
        )
    ]


def draw_units(
    grammar: Grammar, seed: int, candidates: int, first: int, step: int
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Draw units ``first``, ``first + step``, ... for ever: lists of (digest, line) of one unit."""
    for unit in count(first, step):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, unit)))
        expressions = sample_expressions(rng, candidates, grammar)
        yield [
            (blake2b(line, digest_size=16).digest(), line)
            for line in lines_of(expressions, grammar.max_args)
        ]


def distinct_lines(units: Iterator[list[tuple[bytes, bytes]]], total: int) -> Iterator[bytes]:
    """Yield ``total`` distinct lines in order of first appearance.

    Raises ``ValueError`` when no new one appears for a very long time.
    """
    seen: set[bytes] = set()
    repeated = 0
    for unit in units:
        for digest, line in unit:
            if digest in seen:
                repeated += 1
                continue
            repeated = 0
            seen.add(digest)
            yield line
            if len(seen) == total:
                return
        if repeated > _PATIENCE:
            raise ValueError(
                f"after {len(seen)} distinct expressions the last {repeated} drawn were all known, "
                f"and {total} are wanted; ask for fewer, or allow longer or deeper expressions"
            )


def generate(
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    hidden: bool = False,
) -> bool:
    """Write the three files into the folder ``out``; return False if they were there already.

    ``hidden`` hides the progress bar.
    All files get their final names together at the end, so that a killed run leaves none.
    Raises ``ValueError`` for settings that cannot be met and for files that this would replace but that
    come from elsewhere or from other settings, unless ``overwrite``.
    """
    settings.validate()
    accepted = check_feasible(settings.grammar, settings.total)
    with sole_writer(out):
        if not overwrite and _finished(out, settings):
            return False
        _generate(out, settings, accepted, workers, hidden)
        _write_record(out, settings, complete=True)
    return True


def _generate(out: Path, settings: Settings, accepted: float, workers: int, hidden: bool) -> None:
    candidates = min(int(_KEPT_PER_UNIT / accepted) + 1, _MOST_CANDIDATES)
    make = functools.partial(draw_units, settings.grammar, settings.seed, candidates)
    split_of = np.repeat(np.arange(len(FILES)), [getattr(settings, name) for name in FILES])
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(0,)))
    split_of = rng.permutation(split_of).tolist()
    lines = distinct_lines(in_turns(make, workers), settings.total)
    bar = progress_bar(
        lines, total=settings.total, label="ListOps", unit="expressions", hidden=hidden
    )
    with ExitStack() as stack:
        streams = [stack.enter_context(atomic_file(out / name)) for name in FILES.values()]
        for stream in streams:
            stream.write(HEADER)
        for split, line in zip(split_of, bar, strict=True):
            streams[split].write(line)
        # From here to the last rename the folder may hold files of two runs, and says so.
        _write_record(out, settings, complete=False)


def _finished(out: Path, settings: Settings) -> bool:
    """Whether ``out`` holds these files already; raise ``ValueError`` if it holds others."""
    present = [out / name for name in FILES.values() if (out / name).exists()]
    record = _read_record(out)
    if record is None:
        if present:
            raise ValueError(
                f"{present[0]} exists and was not written by this generator; choose another "
                "folder, or pass --overwrite to replace it"
            )
        return False
    if not record.get("complete") or not present:
        return False
    if record.get("settings") != asdict(settings):
        raise ValueError(
            f"{out} holds expressions generated with {json.dumps(record.get('settings'))}; choose "
            "another folder, or pass --overwrite to replace them"
        )
    sizes = {name: (out / name).stat().st_size for name in FILES.values() if (out / name).exists()}
    return sizes == record.get("bytes")


def _read_record(out: Path) -> dict | None:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write_record(out: Path, settings: Settings, *, complete: bool) -> None:
    record: dict = {"settings": asdict(settings), "complete": complete}
    if complete:
        record["bytes"] = {name: (out / name).stat().st_size for name in FILES.values()}
    with atomic_file(out / RECORD, "w") as stream:
        stream.write(json.dumps(record, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lra.listops.generator",
        description="Generate the ListOps benchmark in the layout of the original release.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder for basic_{train,val,test}.tsv")
    for name in FILES:
        parser.add_argument(
            f"--{name}", type=int, default=getattr(Settings, name), help="expressions"
        )
    parser.add_argument(
        "--min-length", type=int, default=Grammar.min_length, help="lengths are greater than this"
    )
    parser.add_argument(
        "--max-length", type=int, default=Grammar.max_length, help="lengths are less than this"
    )
    parser.add_argument(
        "--max-depth", type=int, default=Grammar.max_depth, help="depth of the deepest digits"
    )
    parser.add_argument(
        "--max-args",
        type=int,
        default=Grammar.max_args,
        help=f"arguments of an operator, {MIN_ARGS} to this",
    )
    parser.add_argument("--seed", type=int, default=Settings.seed, help="seed of everything random")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    args = parser.parse_args(arguments)
    grammar = Grammar(args.min_length, args.max_length, args.max_depth, args.max_args)
    settings = Settings(args.train, args.valid, args.test, args.seed, grammar)
    with ending_with_messages(parser, "nothing was written, start the same command again"):
        written = generate(args.out, settings, workers=args.workers, overwrite=args.overwrite)
    state = "written" if written else "there already, nothing to do"
    for name, file in FILES.items():
        size = (args.out / file).stat().st_size / 1e6
        print(f"{args.out / file}: {getattr(settings, name)} expressions, {size:.1f} MB, {state}")


if __name__ == "__main__":
    main()
