"""Prepare any corpus of text files: one document per file, as bytes or SentencePiece pieces.

    python -m megalodon_tasks.recipes.lm.prepare_text SOURCE OUT [--tokens bytes|sentencepiece]

SOURCE holds ``train/*.txt``, ``validation/*.txt`` and ``test/*.txt``; OUT becomes the data folder of the
task ``megalodon_language_modeling``.  Each document ends in the end token and nothing is joined, so that
document boundaries are kept.  Stopped and started again, it goes on where it was.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalodon_tasks.data.corpus import Corpus, SplitInfo, read_corpus
from megalodon_tasks.data.corpus_writer import CorpusPlan, is_current, write_corpus
from megalodon_tasks.data.messages import ending_with_messages
from megalodon_tasks.data.preparing import add_workers_option
from megalodon_tasks.data.progress import progress_bar
from megalodon_tasks.data.rejects import Rejects, describe
from megalodon_tasks.data.storage import sha256_of
from megalodon_tasks.data.tokenizers import (
    MODEL_FILE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
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
        """The tokenizer; a model that is trained for it is kept in the folder ``inside``."""
        if self.tokens == "bytes":
            return ByteTokenizer()
        model = self.model or inside / MODEL_FILE
        if not model.is_file():
            train_model(training_files, model, self.pieces)
        return SentencePieceTokenizer(model)


@dataclass
class TextPreparation:
    """A corpus of text files: its name, where they are, the vocabulary and the policy for damage.

    ``amend`` may change what is said of a split once it is complete.
    """

    name: str
    source: Path
    vocabulary: Vocabulary = Vocabulary()
    workers: int = 1
    rejects: Rejects = field(default_factory=Rejects)
    amend: Callable[[str, SplitInfo], None] = lambda split, info: None

    def write(self, out: Path, *, hidden: bool = False) -> bool:
        """Prepare the corpus in ``out``; return False if it is there already, from the same files.

        ``hidden`` hides the progress bar.  Raises ``ValueError`` for missing and damaged files.
        """
        files = text_files.find_files(self.source)
        settings = {**self.vocabulary.settings, "files": text_files.identity_of(files)}
        identity = {"name": self.name, "settings": settings}
        if is_current(out, identity):
            return False

        def plan(inside: Path) -> CorpusPlan:
            return self._plan(files, self.vocabulary.tokenizer(files["train"], inside))

        total = sum(size for _, size, _ in settings["files"].values())
        label = f"preparing {self.name}"
        with progress_bar(total=total, label=label, unit="B", scale=True, hidden=hidden) as bar:
            write_corpus(out, identity, plan, bar.update)
        return True

    def _plan(self, files: dict[str, list[Path]], tokenizer: Tokenizer) -> CorpusPlan:
        model = {MODEL_FILE: tokenizer.model} if hasattr(tokenizer, "model") else {}
        return CorpusPlan(
            tokenizer=tokenizer.description(),
            dictionary=tokenizer.dictionary(),
            splits={s: text_files.reader(p, tokenizer, self.workers) for s, p in files.items()},
            words_rule=text_files.WORDS_RULE,
            extra_files=model,
            rejects=self.rejects,
            amend=self.amend,
        )


def report(corpus: Corpus) -> list[str]:
    """Lines that say what a prepared corpus holds."""
    description = corpus.description
    lines = [
        f"{description['name']}: {description['vocabulary']:,} symbols ({corpus.tokenizer['kind']})"
    ]
    for split in description["splits"]:
        info = corpus.info(split)
        lines.append(
            f"{split}: {info.documents:,} documents, {info.tokens:,} tokens, {info.words:,} words, "
            f"{info.characters:,} characters, {info.bytes:,} bytes"
        )
        lines += describe(info.skipped)
    return lines


def add_arguments(parser: argparse.ArgumentParser, tokens: str) -> None:
    """The options that all preparations of text files have; ``tokens`` is the default of --tokens."""
    parser.add_argument("source", type=Path, help="folder with train, validation and test")
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    parser.add_argument("--tokens", choices=("bytes", "sentencepiece"), default=tokens)
    parser.add_argument(
        "--sentencepiece-model", type=Path, help="a model to use (default: train one)"
    )
    parser.add_argument(
        "--pieces", type=int, default=PIECES, help="pieces of a new model (default: %(default)s)"
    )
    add_workers_option(parser)
    parser.add_argument(
        "--strict", action="store_true", help="refuse damaged or empty documents instead of leaving "
        "them out (more than 100 are refused in any case)"
    )  # fmt: skip


def vocabulary_of(options: argparse.Namespace) -> Vocabulary:
    """What the options ask for.  Raises ``ValueError`` for a model given for bytes."""
    if options.tokens == "bytes" and options.sentencepiece_model is not None:
        raise ValueError(
            f"--sentencepiece-model {options.sentencepiece_model} is given, but --tokens is bytes"
        )
    return Vocabulary(options.tokens, options.sentencepiece_model, options.pieces)


def run(
    parser: argparse.ArgumentParser,
    out: Path,
    prepare: Callable[[], bool],
    describe_corpus: Callable[[Corpus], list[str]] = report,
) -> None:
    """Prepare and print the report; an error ends the process with one line."""
    with ending_with_messages(parser, "the same command goes on where it was stopped"):
        prepared = prepare()
        lines = describe_corpus(read_corpus(out))
    state = "prepared" if prepared else "prepared already from the same files, nothing to do"
    print("\n".join([f"{out}: {state}", *lines]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lm.prepare_text",
        description="Prepare text files, one document each, for language modelling.",
    )
    add_arguments(parser, "bytes")
    parser.add_argument("--name", help="what the corpus is called (default: the source folder)")
    options = parser.parse_args(arguments)

    def prepare() -> bool:
        return TextPreparation(
            options.name or options.source.resolve().name,
            options.source,
            vocabulary_of(options),
            options.workers,
            Rejects(strict=options.strict),
        ).write(options.out)

    run(parser, options.out, prepare)


if __name__ == "__main__":
    main()
