"""Generate ListOps as Long Range Arena did, in exactly the layout of the original release.

    megalodon prepare lra/listops DATA OUT --generate
    megalodon prepare lra/listops DATA OUT --generate --train 2000 --valid 200 --test 200 \\
        --min-length 10 --max-length 60 --max-args 5 --seed 1

write ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv`` into the folder DATA first; what is
drawn is defined in ``sampling``.  Distinct expressions are collected in the order in which they are
first drawn, and a random permutation says which split each goes to (the original cut a Python set, whose
order is just as arbitrary), so that the splits are alike even where short expressions recur.

The result depends only on the options and the seed: expressions are drawn in units, each with a seed of
its own, and used in the order of the units, however many processes work on them.
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

from megalodon_tasks.data.parallel import in_turns
from megalodon_tasks.data.preparing import generator_options, progress_bar
from megalodon_tasks.files import atomic_file, sole_writer
from megalodon_tasks.recipes.lra.listops.feasibility import check_feasible
from megalodon_tasks.recipes.lra.listops.grammar import CLOSE, DIGITS, OPERATORS
from megalodon_tasks.recipes.lra.listops.release import FILES
from megalodon_tasks.recipes.lra.listops.sampling import (
    MIN_ARGS,
    Expressions,
    Grammar,
    operator_code,
    sample_expressions,
)

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
        """The number of expressions in all splits."""
        return self.train + self.valid + self.test


def format_expression(codes: Sequence[int], max_args: int) -> bytes:
    """Write one expression (codes of ``sampling``) as the text of the original files.

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
    codes, starts = expressions.codes.tolist(), expressions.starts.tolist()
    ends = [*starts, len(codes)][1:]
    return [
        b"%b\t%d\n" % (format_expression(codes[start:end], max_args), value)
        for start, end, value in zip(starts, ends, expressions.values.tolist(), strict=True)
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
                f"and {total} are needed; ask for fewer, or allow longer or deeper expressions"
            )


def generate(
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> bool:
    """Write the three files into the folder ``out``; return False if they were there already.

    All files get their final names together at the end, so that a killed run leaves none.  Raises
    ``ValueError`` for settings that cannot be met and for files that this would replace but that come
    from elsewhere or from other settings, unless ``overwrite``.
    """
    settings.validate()
    accepted = check_feasible(settings.grammar, settings.total)
    with sole_writer(out):
        if not overwrite and _finished(out, settings):
            return False
        _generate(out, settings, accepted, workers)
        _write_record(out, settings, complete=True)
    return True


def _generate(out: Path, settings: Settings, accepted: float, workers: int) -> None:
    candidates = min(int(_KEPT_PER_UNIT / accepted) + 1, _MOST_CANDIDATES)
    make = functools.partial(draw_units, settings.grammar, settings.seed, candidates)
    split_of = np.repeat(np.arange(len(FILES)), [getattr(settings, name) for name in FILES])
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(0,)))
    split_of = rng.permutation(split_of).tolist()
    lines = distinct_lines(in_turns(make, workers), settings.total)
    bar = progress_bar(lines, total=settings.total, label="ListOps", unit="expressions")
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
    record = read_record(out)
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


def read_record(out: Path) -> dict | None:
    """Return what was generated into ``out`` (``settings``, ``complete``); None if nothing was."""
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
        stream.write(json.dumps(record, indent=1, allow_nan=False) + "\n")


_HELP = {
    "train": "expressions of the training split",
    "valid": "expressions of the validation split",
    "test": "expressions of the test split",
    "min_length": "lengths are greater than this",
    "max_length": "lengths are less than this",
    "max_depth": "depth of the deepest digits",
    "max_args": f"arguments of an operator, {MIN_ARGS} to this",
    "seed": "seed of everything random",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--generate`` and what it can be given."""
    group = parser.add_argument_group("synthetic data")
    group.add_argument(
        "--generate",
        action="store_true",
        help="generate expressions by the rules of the benchmark into SOURCE first",
    )
    group.add_argument("--overwrite", action="store_true", help="replace what is in SOURCE")
    for name, text in _HELP.items():
        default = getattr(Grammar if hasattr(Grammar, name) else Settings, name)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=int, metavar="N", help=f"{text} (default: {default})")


def settings_of(options: argparse.Namespace) -> Settings:
    """Make the settings of parsed options; raise ``ValueError`` for some without ``--generate``."""
    given = generator_options(options, _HELP)
    grammar = {name: given.pop(name) for name in list(given) if hasattr(Grammar, name)}
    return Settings(**given, grammar=Grammar(**grammar))
