"""Read ListOps as released by Long Range Arena: ``basic_{train,val,test}.tsv``.

Each file has the header ``Source<TAB>Target`` and one expression with its value per line (96,000, 2,000
and 2,000 of them).  Every row is checked; the first that is wrong ends the reading with its file, line,
field and value.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from megalodon_tasks.recipes.lra.listops.grammar import evaluate, tokenize

FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
RELEASED_COUNTS = {"train": 96_000, "valid": 2_000, "test": 2_000}
SOURCE, TARGET = "Source", "Target"
CLASSES = tuple(str(value) for value in range(10))


class Row(NamedTuple):
    """One expression: tokens of ``grammar.VOCABULARY`` without an end token, and its value."""

    tokens: list[int]
    label: int


def read_rows(lines: Iterable[bytes], path: Path) -> Iterator[Row]:
    """Yield the rows of one file, given its lines as bytes; ``path`` is for the messages.

    Raises ``ValueError`` naming file and line for anything that is not as released: a missing column, a
    symbol that is not of the language, an unbalanced expression, a target that is not its value, text
    that is not UTF-8; also for a file without rows.
    """
    numbered = enumerate(lines, start=1)
    columns = Columns.of_header(path, next(numbered, (1, b""))[1])
    empty = True
    for number, line in numbered:
        yield parse_row(path, number, line, columns)
        empty = False
    if empty:
        raise ValueError(f"{path} has no rows after its header; it may have been cut short")


class Columns(NamedTuple):
    """The number of columns of a file, and the places of the two that are read."""

    count: int
    source: int
    target: int

    @classmethod
    def of_header(cls, path: Path, line: bytes) -> "Columns":
        """Read the header; raises ``ValueError`` if it is missing or lacks a column."""
        if not line:
            raise ValueError(f"{path} is empty; expected the header {SOURCE}<TAB>{TARGET} and rows")
        names = _decode(path, 1, line).split("\t")
        for name in (SOURCE, TARGET):
            if name not in names:
                raise ValueError(
                    f"{path}, line 1: the header is {_short(names)} and has no column {name!r}; "
                    f"expected {SOURCE}<TAB>{TARGET}"
                )
        return cls(len(names), names.index(SOURCE), names.index(TARGET))


def parse_row(path: Path, number: int, line: bytes, columns: Columns) -> Row:
    """Read line ``number`` of a file; raises as ``read_rows`` does."""
    fields = _decode(path, number, line).split("\t")
    if len(fields) != columns.count:
        raise ValueError(
            f"{path}, line {number}: {len(fields)} columns separated by tabs, expected {columns.count} "
            f"as in the header; the line begins with {_short(fields[0])}"
        )
    source, target = fields[columns.source], fields[columns.target].strip()
    if target not in CLASSES:
        raise ValueError(
            f"{path}, line {number}, field {TARGET}: {_short(target)} is not a label from 0 to 9; "
            "correct or remove the row"
        )
    try:
        tokens = tokenize(source)
        value = evaluate(tokens)
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}, field {SOURCE}: the expression {_short(source)} {error}; "
            "correct or remove the row"
        ) from None
    if value != int(target):
        raise ValueError(
            f"{path}, line {number}, field {TARGET}: the label is {target}, but the expression "
            f"{_short(source)} has the value {value}; correct or remove the row"
        )
    return Row(tokens, value)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: byte {line[error.start]:#04x} at place {error.start + 1} is not "
            "UTF-8 text; the file is damaged or compressed, unpack or copy it again"
        ) from None


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
