"""Read the pairs of AAN papers (task Retrieval of Long Range Arena) as released.

    new_aan_pairs.{train,eval,test}.tsv

No header; five fields separated by tabs: label (``0.0`` or ``1.0``: whether one paper cites the other),
number of the first paper, number of the second, text of the first, text of the second.  Quotation marks
are part of the text.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from megalodon_tasks.data.finding import find_files, folders_in
from megalodon_tasks.data.sources import Rejects

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "valid": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
# As two public loaders of these files state them; nothing published with the benchmark does.
EXPECTED_COUNTS = {"train": 147_086, "valid": 18_090, "test": 17_437}
CLASSES = ("0", "1")

_FIELDS = 5
_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}


class Pair(NamedTuple):
    """Line number, class, and the two texts."""

    number: int
    label: int
    texts: tuple[bytes, bytes]


def find_pairs(source: Path) -> dict[str, Path] | None:
    """Find the three files in ``source`` or below it; None if there is none.

    Raises ``ValueError`` if one is missing beside the others.
    """
    return find_files(folders_in(source), FILES, "copy it there, or unpack the release again")


def read_pairs(lines: Iterable[bytes], path: Path, rejects: Rejects) -> Iterator[Pair]:
    """Yield the pairs of one file, given its lines; ``path`` is for the messages.

    A line with another number of fields or another label goes to ``rejects``.  Raises ``ValueError`` for
    a file without lines, and for one whose last line breaks off before its fifth field.
    """
    number = 0
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip(b"\r\n").split(b"\t")
        if len(fields) < _FIELDS and not line.endswith(b"\n"):
            raise ValueError(
                f"{path}, line {number}: the file breaks off here, after {len(fields)} of {_FIELDS} "
                "fields; copy or unpack it again"
            )
        if len(fields) != _FIELDS:
            what = f"has {len(fields)} fields separated by tabs, expected {_FIELDS}"
            rejects.add(f"{path}, line {number}", what)
            continue
        label = _LABELS.get(fields[0].strip())
        if label is None:
            shown = fields[0][:20].decode("utf-8", "backslashreplace")
            rejects.add(
                f"{path}, line {number}", f"has the label {shown!r}, which is neither 0 nor 1"
            )
            continue
        yield Pair(number, label, (fields[3], fields[4]))
    if not number:
        raise ValueError(f"{path} has no lines; copy or unpack it again")
