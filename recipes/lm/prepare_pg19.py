"""Prepare PG-19: a folder of books, one text file each, as the release has them.

    megalodon prepare lm/pg19 SOURCE OUT [--sentencepiece-model FILE]

SOURCE holds ``train/*.txt``, ``validation/*.txt``, ``test/*.txt`` and perhaps ``metadata.csv``.  Without
a model (given, or ``SOURCE/sentencepiece.model``) one of 32,000 SentencePiece pieces is trained on the
training books; ``--tokens bytes`` takes bytes instead.  A book is a document, and the end token its last
token.

Word-level perplexity divides by words: by the published number where a split has as many books as the
release (28,602, 50 and 100; Rae et al., arXiv 1911.05507, section 4.2), else by what is counted here.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.data import preparing
from megalodon_tasks.data.corpus import Corpus, read_corpus
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lm import prepare_text, text_files

NAME = "pg19"
MODEL = "sentencepiece.model"
BOOKS = {"train": 28_602, "valid": 50, "test": 100}
WORDS = {"train": 1_973_136_207, "valid": 3_007_061, "test": 6_966_499}
# That of the Block-Recurrent Transformer (arXiv 2203.07852), which the paper takes: spiece.model of T5.
VOCABULARY = {
    "name": "T5's SentencePiece model",
    "sha256": "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86",
}


def prepare(
    source: Path,
    out: Path,
    vocabulary: prepare_text.Vocabulary,
    workers: int = 1,
    rejects: Rejects | None = None,
    *,
    replace: bool = False,
) -> bool:
    """Prepare PG-19 in ``out``; return False if it is there already, from the same files.

    ``replace`` replaces data with another vocabulary, which is refused otherwise.  Raises ``ValueError``
    for missing or damaged books, and for books that metadata.csv does not list.
    """
    _check_metadata(source)
    return prepare_text.TextCorpus(
        name=NAME,
        source=source,
        vocabulary=vocabulary,
        workers=workers,
        rejects=Rejects() if rejects is None else rejects,
        origin="release",
        published={"counts": {"documents": BOOKS}, "vocabulary": VOCABULARY},
        published_words={split: (BOOKS[split], words) for split, words in WORDS.items()},
        replace=replace,
        published_in="Rae et al., section 4.2",
    ).prepare(out)


def _check_metadata(source: Path) -> None:
    path = source / "metadata.csv"
    if not path.is_file():
        return
    with open(path, encoding="utf-8-sig", newline="") as stream:
        listed = {row[0].strip() for row in csv.reader(stream) if row}
    files = text_files.find_files(source)
    unknown = [p for paths in files.values() for p in paths if p.stem not in listed]
    if unknown:
        raise ValueError(
            f"{path} does not list {len(unknown)} of the books, such as {unknown[0]}; "
            "remove the file if it belongs to another release"
        )


def report(corpus: Corpus) -> list[str]:
    """Return lines that say what the prepared corpus holds and where that differs from the release."""
    lines = prepare_text.report(corpus)
    for split, books in BOOKS.items():
        info = corpus.info(split)
        if info.documents != books:
            lines.append(
                f"{split}: the release has {books:,} books, this folder {info.documents:,}"
            )
        lines.append(
            f"{split}: word-level perplexity divides by {info.words:,} ({info.words_rule})"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = prepare_text.command_line(
        "lm/pg19", "Prepare the books of PG-19 for language modelling.", "sentencepiece"
    )
    options = parser.parse_args(arguments)
    beside = options.source / MODEL
    if (
        options.tokens == "sentencepiece"
        and options.sentencepiece_model is None
        and beside.is_file()
    ):
        options.sentencepiece_model = beside

    def run() -> bool:
        vocabulary = prepare_text.vocabulary_of(options)
        rejects = preparing.rejects_of(options)
        return prepare(
            options.source,
            options.out,
            vocabulary,
            options.workers,
            rejects,
            replace=options.replace,
        )

    return preparing.run(parser, options, run, report, read_corpus)
