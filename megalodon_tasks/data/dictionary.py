"""Read fairseq's ``dict.txt``: a symbol and its count on each line."""

from collections.abc import Callable
from pathlib import Path

from fairseq.data import Dictionary

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import read_text


def read_dictionary(path: Path) -> Dictionary:
    """Read the dictionary in ``path``; raise ``ValueError`` naming the first line that is wrong."""
    result = Dictionary()
    explained(path, lambda: result.add_from_file(str(path)))
    return result


def explained(path: Path, read: Callable[[], None]) -> None:
    """Call ``read``, which reads a dictionary from ``path``; raise as :func:`read_dictionary` does."""
    try:
        lines = read_text(path).split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): copy it again, or prepare the data again"
        ) from None
    try:
        read()
    except UserError:  # explained already
        raise
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}, {_first_fault(lines) or error}") from None


def _first_fault(lines: list[str]) -> str | None:
    seen = dict.fromkeys(Dictionary().symbols, 0)
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not line.strip():
            return f"line {number} is blank: remove it, or prepare the data again"
        if not count.lstrip("-").isdigit():
            return f"line {number} is not a symbol and its count: {line!r}; prepare the data again"
        if symbol in seen and "#fairseq:overwrite" not in line:
            first = f"of line {seen[symbol]}" if seen[symbol] else "that every dictionary has"
            return (
                f"line {number} repeats the symbol {symbol!r} {first}: remove the line if the data was "
                "prepared without it, or prepare the data again"
            )
        seen[symbol] = number
    return None
