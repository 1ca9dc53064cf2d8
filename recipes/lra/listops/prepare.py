"""Prepare ListOps: from the released text files, or from Mega's, to memory-mapped tokens.

    python -m megalodon_tasks.recipes.lra.listops.prepare SOURCE OUT

SOURCE is the folder with ``basic_{train,val,test}.tsv`` (or one above it, as the LRA release has it) or
Mega's ``listops``, OUT the data folder of the task ``lra_text``; it may be the same folder.

Tokenisation is that of the official code and of S4: parentheses dropped, one symbol per operator, digit
and closing bracket (15 in all).  As in S4 and Mega an end token follows every expression, so that
lengths are 502 to 2000; with padding the vocabulary has 17 tokens (S4 also reserves one for unknown
symbols, which here are an error).  Mega's numbers of symbols and labels are translated to these.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item, PreparedDataset
from megalodon_tasks.data.sources import Origin
from megalodon_tasks.recipes.lra.listops.expressions import (
    CLASSES,
    FILES,
    RELEASED_COUNTS,
    Row,
    find_files,
    how_to_get,
    read_rows,
)
from megalodon_tasks.recipes.lra.listops.grammar import END_TOKEN, VOCABULARY
from megalodon_tasks.recipes.lra.mega_listops import LABELS, MegaListOps
from megalodon_tasks.recipes.lra.mega_tokens import SPLITS, MegaFolder, find_folder

BENCHMARK = "listops"
MEGA_NAME = "listops"
# What the prepared form depends on beside the files; a change makes older ones be prepared again.
_SETTINGS = {"end_token": True, "parentheses": False}


def prepare(source: Path, out: Path, *, hidden: bool = False) -> bool:
    """Check and prepare ListOps; return False if ``out`` already holds it, made from the same files.

    ``hidden`` hides the progress bar.  Raises ``ValueError`` for bad files (see ``listops.read_rows``
    and ``mega_listops``), and leaves ``out`` as it was then.
    """
    return _preparation(source).write(out, hidden=hidden)


def _preparation(source: Path) -> preparing.Preparation:
    spec = DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns={"inputs": ColumnSpec("uint8")},
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={"settings": _SETTINGS},
    )
    files = find_files(source)
    if files is not None:
        origins = {split: Origin.of_file(path) for split, path in files.items()}
        splits = {
            split: preparing.from_the_start(_read_file, one) for split, one in origins.items()
        }
        return preparing.Preparation("ListOps", spec, origins, splits)
    folder = find_folder(source, MEGA_NAME)
    if folder is None:
        raise ValueError(
            f"{source} holds no {', '.join(FILES.values())}, neither itself nor deeper down, and no "
            f"src-bin; {how_to_get(source)}"
        )
    mega = MegaFolder(folder, classes=LABELS, pair=False)
    rows = MegaListOps(mega)
    splits = {split: preparing.from_the_start(_read_mega, rows, split) for split in SPLITS}
    return preparing.Preparation("ListOps", spec, mega.origins(), splits)


def _read_file(origin: Origin, on_bytes: OnBytes) -> Iterator[Item]:
    return map(_item, read_rows(origin.lines(on_bytes), origin.paths[0]))


def _read_mega(rows: MegaListOps, split: str, on_bytes: OnBytes) -> Iterator[Item]:
    return map(_item, rows.rows(split, on_bytes))


def _item(row: Row) -> Item:
    return row.label, {"inputs": np.asarray([*row.tokens, END_TOKEN], np.uint8)}


def report(dataset: PreparedDataset) -> list[str]:
    """Lines that say what a prepared ListOps holds, and how that differs from the release."""
    return preparing.describe_splits(
        dataset, "expressions", RELEASED_COUNTS, note=" with the end token"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = preparing.command_line(
        "lra/listops",
        "Check ListOps and bring it into the form that the task lra_text reads.",
        "folder with basic_{train,val,test}.tsv, the LRA release, or Mega's listops",
    )
    options = parser.parse_args(arguments)
    preparing.run(parser, options, lambda: prepare(options.source, options.out), report)


if __name__ == "__main__":
    main()
