"""Prepare any corpus of text files: one document per file, as bytes or SentencePiece pieces.

    megalodon prepare lm/text SOURCE OUT [--tokens bytes|sentencepiece]

SOURCE holds ``train/*.txt``, ``validation/*.txt`` and ``test/*.txt``; OUT becomes the data folder of the
task ``megalodon_language_modeling``.  Each document ends in the end token and nothing is joined, so that
document boundaries are kept.  Stopped and started again, it continues where it was.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalodon_tasks.data import preparing
from megalodon_tasks.data.corpus import Corpus, CorpusForm, Document, read_corpus
from megalodon_tasks.data.manifest import OnBytes, sha256_of
from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sources import Origin, Rejects
from megalodon_tasks.data.tokenizers import (
    MODEL_FILE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    with_tokenizer,
)
from megalodon_tasks.option_types import whole
from megalodon_tasks.recipes.lm import text_files
from megalodon_tasks.recipes.lm.sentencepiece_training import train_model

PIECES = 32_000


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens: ``bytes``, or ``sentencepiece`` of a given model or a new one of ``pieces``."""

    tokens: str = "bytes"
    model: Path | None = None
    pieces: int = PIECES

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on."""
        if self.tokens == "bytes":
            return {"tokens": "bytes"}
        if self.model is not None:
            if not self.model.is_file():
                raise ValueError(f"there is no SentencePiece model {self.model}")
            return {"tokens": "sentencepiece", "model": sha256_of(self.model)}
        return {"tokens": "sentencepiece", "pieces": self.pieces}

    def tokenizer(self, training_files: Sequence[Path], inside: Path) -> Tokenizer:
        """Make the tokenizer; a model that is trained for it stays in the folder ``inside``."""
        if self.tokens == "bytes":
            return ByteTokenizer()
        model = self.model or inside / MODEL_FILE
        if not model.is_file():
            train_model(training_files, model, self.pieces)
        return SentencePieceTokenizer(model)


@dataclass
class TextCorpus:
    """A corpus of text files.

    source: where they are, see ``text_files``.  origin: see ``Manifest``.  published: see
    ``data.provenance``.  published_words: see ``CorpusForm``.  replace: data that was prepared with
    another vocabulary, instead of refusing to.
    """

    name: str
    source: Path
    vocabulary: Vocabulary = Vocabulary()
    workers: int = 1
    rejects: Rejects = field(default_factory=Rejects)
    origin: str = "text"
    published: dict[str, Any] | None = None
    published_words: dict[str, tuple[int, int]] = field(default_factory=dict)
    published_in: str = ""
    replace: bool = False

    def prepare(self, out: Path) -> bool:
        """Prepare the corpus in ``out``; return False if it is there already, from the same files.

        Raises ``ValueError`` for missing and damaged files.
        """
        self._files = text_files.find_files(self.source)
        form = CorpusForm(
            benchmark=self.name,
            source={
                "origin": origin_of(self.source, self.origin),
                "split_rule": "the folders",
                "settings": self.vocabulary.settings,
                "published": self.published,
            },
            words_rule=text_files.WORDS_RULE,
            published_words=self.published_words,
            published_in=self.published_in,
        )
        return preparing.Preparation(
            title=self.name,
            form=form,
            origins={split: Origin(split, paths) for split, paths in self._files.items()},
            splits={split: functools.partial(self._read, split) for split in self._files},
            rejects=self.rejects,
            complete=self._with_tokenizer,
            replaces=self.replace,
        ).write(out)

    def _with_tokenizer(self, form: CorpusForm, inside: Path) -> CorpusForm:
        self._tokenizer = self.vocabulary.tokenizer(self._files["train"], inside)
        return with_tokenizer(form, self._tokenizer, inside)

    def _read(self, split: str, first: int, on_bytes: OnBytes) -> Iterator[Document | None]:
        paths = self._files[split]
        on_bytes(sum(path.stat().st_size for path in paths[:first]))
        read = functools.partial(text_files.read_document, self._tokenizer)
        for document in map_in_order(read, paths[first:], self.workers):
            on_bytes(document.bytes)
            if document.damage is not None:
                self.rejects.add(document.name, document.damage)
            yield document if document.damage is None else None


def report(corpus: Corpus) -> list[str]:
    """Return lines that say what a prepared corpus holds."""
    symbols, kind = corpus.manifest.form["symbols"], corpus.tokenizer["kind"]
    lines = [f"{corpus.name}: {symbols:,} symbols ({kind})"]
    for split in corpus.manifest.splits:
        info = corpus.info(split)
        lines.append(
            f"{split}: {info.documents:,} documents, {info.tokens:,} tokens, {info.words:,} words, "
            f"{info.characters:,} characters, {info.bytes:,} bytes"
        )
    return lines


def command_line(recipe: str, description: str, tokens: str) -> argparse.ArgumentParser:
    """Build the parser that preparations of text files share; ``tokens`` is the default of --tokens."""
    parser = preparing.command_line(recipe, description, "folder with train, validation and test")
    parser.add_argument("--tokens", choices=("bytes", "sentencepiece"), default=tokens)
    parser.add_argument(
        "--sentencepiece-model", type=Path, help="a model to use (default: train one)"
    )
    parser.add_argument(
        "--pieces",
        type=whole(1),
        default=PIECES,
        help="pieces of a new model (default: %(default)s)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace data in OUT that has another vocabulary"
    )
    preparing.add_workers_option(parser)
    preparing.add_rejects_options(parser)
    return parser


def vocabulary_of(options: argparse.Namespace) -> Vocabulary:
    """Return what the options ask for; raise ``ValueError`` for a model given for bytes."""
    if options.tokens == "bytes" and options.sentencepiece_model is not None:
        raise ValueError(
            f"--sentencepiece-model {options.sentencepiece_model} is given, but --tokens is bytes"
        )
    return Vocabulary(options.tokens, options.sentencepiece_model, options.pieces)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = command_line(
        "lm/text", "Prepare text files, one document each, for language modelling.", "bytes"
    )
    parser.add_argument("--name", help="what the corpus is called (default: the source folder)")
    options = parser.parse_args(arguments)

    def prepare() -> bool:
        name = options.name or options.source.resolve().name
        rejects = preparing.rejects_of(options)
        corpus = TextCorpus(
            name,
            options.source,
            vocabulary_of(options),
            options.workers,
            rejects,
            replace=options.replace,
        )
        return corpus.prepare(options.out)

    return preparing.run(parser, options, prepare, report, read_corpus)
