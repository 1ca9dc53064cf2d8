"""Prepare Retrieval: from the released pairs of papers, or from Mega's files, to memory-mapped tokens.

    python -m megalodon_tasks.recipes.lra.retrieval.prepare SOURCE OUT

SOURCE is the folder with ``new_aan_pairs.{train,eval,test}.tsv``, Mega's ``aan``, or a folder above one
of them, OUT the data folder of the task ``lra_text``.  Of both texts of a pair the first 4,000 bytes and
an end token; ``byte_tokens`` has the rest.

The released texts are printed as Python prints bytes, ``b'...'`` with ``\\n`` as two characters (so says
the code of public loaders).  They are read as they stand, as Long Range Arena and S4 do.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megalodon_tasks.data import preparing
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item, PreparedDataset
from megalodon_tasks.data.sources import Origin, Rejects
from megalodon_tasks.recipes.lra.byte_tokens import (
    MAX_BYTES,
    VOCABULARY,
    add_text_options,
    tokens_of,
)
from megalodon_tasks.recipes.lra.mega_text import mega_preparation
from megalodon_tasks.recipes.lra.mega_tokens import MegaFolder, find_folder
from megalodon_tasks.recipes.lra.retrieval.release import (
    CLASSES,
    EXPECTED_COUNTS,
    FILES,
    find_pairs,
    how_to_get,
    read_pairs,
)

BENCHMARK = "retrieval"
MEGA_NAME = "aan"

_TITLE = "Retrieval"
_COLUMNS = ("inputs", "inputs2")
_MEGA_CLASSES = {"0": 0, "1": 1}


def prepare(
    source: Path,
    out: Path,
    rejects: Rejects,
    *,
    max_bytes: int = MAX_BYTES,
    hidden: bool = False,
) -> bool:
    """Check and prepare Retrieval; return False if ``out`` already holds it, made from the same files.

    Damaged pairs go to ``rejects``; ``hidden`` hides the progress bar.  Raises ``ValueError`` for bad
    files (see ``retrieval`` and ``mega_tokens``) and leaves ``out`` as it was then.
    """
    return _preparation(source, rejects, max_bytes).write(out, hidden=hidden)


def _preparation(source: Path, rejects: Rejects, max_bytes: int) -> preparing.Preparation:
    spec = DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns=dict.fromkeys(_COLUMNS, ColumnSpec("uint8")),
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={"settings": {"tokens": "bytes", "longest": max_bytes}},
    )
    files = find_pairs(source)
    if files is not None:
        origins = {split: Origin.of_file(path) for split, path in files.items()}
        splits = {
            split: preparing.from_the_start(_read, origin, max_bytes, rejects)
            for split, origin in origins.items()
        }
        return preparing.Preparation(_TITLE, spec, origins, splits, rejects)
    folder = find_folder(source, MEGA_NAME)
    if folder is None:
        raise ValueError(
            f"{source} holds no pairs: neither it nor a folder inside has {', '.join(FILES.values())}, "
            f"or src-bin; {how_to_get(source)}"
        )
    mega = MegaFolder(folder, classes=_MEGA_CLASSES, pair=True)
    return mega_preparation(mega, spec, _TITLE, max_bytes, rejects)


def _read(origin: Origin, max_bytes: int, rejects: Rejects, on_bytes: OnBytes) -> Iterator[Item]:
    path = origin.paths[0]
    for pair in read_pairs(origin.lines(on_bytes), path, rejects):
        sequences = {}
        for side, (column, text) in enumerate(zip(_COLUMNS, pair.texts, strict=True), start=1):
            try:
                sequences[column] = tokens_of(text, max_bytes)
            except ValueError as error:
                rejects.add(f"{path}, line {pair.number}, text {side}", str(error))
                break
        else:
            yield pair.label, sequences


def report(dataset: PreparedDataset) -> list[str]:
    """Lines that say what a prepared Retrieval holds, and how that differs from what is expected."""
    return preparing.describe_splits(dataset, "pairs", EXPECTED_COUNTS, note=" with the end token")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = preparing.command_line(
        "lra/retrieval",
        "Check the pairs of papers and bring them into the form that the task lra_text reads.",
        f"folder with {FILES['train']} and the others, the LRA release, or Mega's aan",
    )
    add_text_options(parser)
    options = parser.parse_args(arguments)

    def prepare_as_told() -> bool:
        rejects = Rejects(strict=options.strict)
        return prepare(options.source, options.out, rejects, max_bytes=options.max_bytes)

    preparing.run(parser, options, prepare_as_told, report)


if __name__ == "__main__":
    main()
