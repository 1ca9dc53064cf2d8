"""Prepare Retrieval: the released pairs of papers, or Mega's files, become arrays of tokens.

    megalodon prepare lra/retrieval SOURCE OUT

SOURCE is the folder with ``new_aan_pairs.{train,eval,test}.tsv``, Mega's ``aan``, or a folder above one
of them, OUT the data folder of the task ``lra_text``.  The first 4,000 bytes of each text of a pair and
an end token; ``text_tokens`` has the details.

The released texts are printed as Python prints bytes, ``b'...'`` with ``\\n`` as two characters (so says
the code of public loaders).  They are read as they stand, as Long Range Arena and S4 do.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megalodon_tasks.data import preparing
from megalodon_tasks.data.finding import not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item, PreparedDataset
from megalodon_tasks.data.sources import Origin, Rejects, check_source
from megalodon_tasks.recipes.lra.mega_files import MegaTokens
from megalodon_tasks.recipes.lra.retrieval.release import (
    CLASSES,
    EXPECTED_COUNTS,
    FILES,
    find_pairs,
    read_pairs,
)
from megalodon_tasks.recipes.lra.text_tokens import (
    MAX_BYTES,
    VOCABULARY,
    add_text_options,
    mega_preparation,
    tokens_of,
)

BENCHMARK = "retrieval"
MEGA_NAME = "aan"

_TITLE = "Retrieval"
_COLUMNS = ("inputs", "inputs2")
_MEGA_CLASSES = {"0": 0, "1": 1}


def prepare(source: Path, out: Path, rejects: Rejects, *, max_bytes: int = MAX_BYTES) -> bool:
    """Check and prepare Retrieval; return False if ``out`` already holds it, made from the same files.

    Damaged pairs go to ``rejects``.  Raises ``ValueError`` for bad files (see ``release`` and
    ``mega_files``) and leaves ``out`` as it was then.
    """
    spec = DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns=dict.fromkeys(_COLUMNS, ColumnSpec("uint8")),
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={
            "settings": {"tokens": "bytes", "longest": max_bytes},
            "origin": origin_of(source, "release"),
            "split_rule": "the splits of the release",
            "published": {
                "settings": {"longest": MAX_BYTES},
                "counts": {"items": EXPECTED_COUNTS},
            },
        },
    )
    check_source(source, f"the folder tsv_data of the LRA release, or Mega's {MEGA_NAME}")
    files = find_pairs(source)
    if files is not None:
        origins = {split: Origin.of_file(path) for split, path in files.items()}
        splits = {
            split: preparing.from_the_start(_read, origin, max_bytes, rejects)
            for split, origin in origins.items()
        }
        return preparing.Preparation(_TITLE, spec, origins, splits, rejects).write(out)
    mega = MegaTokens.find(source, MEGA_NAME, classes=_MEGA_CLASSES, pair=True)
    if mega is None:
        raise not_recognised(
            source,
            f"{', '.join(FILES.values())} and Mega's src-bin",
            "get lra_release.gz of Long Range Arena and unpack it (the files are in "
            f"lra_release/tsv_data), or take the folder {MEGA_NAME} of Mega's processed files",
        )
    return mega_preparation(mega, spec, _TITLE, max_bytes, rejects).write(out)


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


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run ``megalodon prepare lra/retrieval``; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lra/retrieval",
        "Check the pairs of papers and bring them into the form that the task lra_text reads.",
        f"folder with {FILES['train']} and the others, the LRA release, or Mega's aan",
    )
    add_text_options(parser)
    options = parser.parse_args(arguments)

    def run() -> bool:
        rejects = preparing.rejects_of(options)
        return prepare(options.source, options.out, rejects, max_bytes=options.max_bytes)

    def report(dataset: PreparedDataset) -> list[str]:
        note = " with the end token"
        return preparing.describe_splits(dataset, "pairs", EXPECTED_COUNTS, note)

    return preparing.run(parser, options, run, report)
