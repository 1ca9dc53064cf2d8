"""A corpus of text as fairseq's binarised data, with a manifest.

Beside ``manifest.json`` a folder holds what ``fairseq-preprocess --only-source`` writes (``dict.txt``,
``train.bin``, ``train.idx`` and the same for ``valid`` and ``test``), so that fairseq's own tools read
it, and ``sentencepiece.model`` where the tokenizer is SentencePiece.

A document is a run of consecutive items of fairseq's data: usually one, or the lines of an article.  Its
tokens lie together in the ``.bin`` file, so any piece of it is read without the rest.  A folder without
a manifest is read as one document per split.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    best_fitting_int_dtype,
    data_file_path,
    index_file_path,
)

from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.manifest import (
    MANIFEST,
    Manifest,
    damaged,
    refuse_incomplete,
    sha256_of,
)
from megalodon_tasks.data.typed import typed
from megalodon_tasks.data.writer import Form

DICTIONARY = "dict.txt"
TOKENIZERS = ("words", "bytes", "sentencepiece")  # kinds
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Document:
    """One document: its tokens as one or more items of fairseq's data, and the size of its text.

    ``damage`` says why it cannot be used, as in ``is empty``; ``items`` is empty then.
    """

    name: str
    items: tuple[np.ndarray, ...] = ()
    words: int = 0
    characters: int = 0
    bytes: int = 0
    damage: str | None = None


@dataclass
class SplitInfo:
    """What the manifest says of a split.

    first_items: the first item of each document, or None where each item is one.  words: the divisor of
    word-level perplexity, found as ``words_rule`` says.  characters and bytes: of the text as published.
    These three are None where they are unknown.
    """

    items: int = 0
    tokens: int = 0
    documents: int = 0
    first_items: list[int] | None = None
    words: int | None = None
    words_rule: str = ""
    characters: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class CorpusForm(Form):
    """How a corpus is written.

    tokenizer and symbols: its description and the size of its dictionary, None and 0 before they are
    known.  words_rule: how words are counted.  one_item_each: whether each document is one item.
    published_words: split -> (documents, words); words to state where a split has so many documents.
    extra_files: names of files in the hidden folder that belong to the corpus.
    """

    benchmark: str
    source: dict[str, Any]
    words_rule: str
    tokenizer: dict[str, Any] | None = None
    symbols: int = 0
    one_item_each: bool = True
    published_words: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    published_in: str = ""
    extra_files: tuple[str, ...] = (DICTIONARY,)

    stored_as: ClassVar[str] = "corpus"
    classes: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ("bin", "sizes")
    content: ClassVar[tuple[str, ...]] = ("bin",)

    def details(self) -> dict[str, Any]:
        """Return the manifest's ``form``."""
        return {"tokenizer": self.tokenizer, "symbols": self.symbols or None}

    @property
    def dtype(self) -> np.dtype:
        """That of the tokens on disk."""
        return np.dtype(best_fitting_int_dtype(self.symbols))

    def files(self, splits: Sequence[str]) -> list[str]:
        """Return the names of all files."""
        return [*(f"{s}.{end}" for s in splits for end in ("bin", "idx")), *self.extra_files]

    def counts(self, known: Mapping[str, Any]) -> SplitInfo:
        """Return the counts of a split, empty or as ``known``."""
        first_items = None if self.one_item_each else []
        empty = {"words": 0, "characters": 0, "bytes": 0, "first_items": first_items}
        return SplitInfo(**(known or {**empty, "words_rule": self.words_rule}))

    def encode(self, record: Document, counts: SplitInfo, split: str) -> dict[str, bytes]:
        """Add a document to ``counts``; return what to append to the tokens and to their sizes."""
        if counts.first_items is not None:
            counts.first_items.append(counts.items)
        counts.documents += 1
        counts.items += len(record.items)
        counts.tokens += sum(len(item) for item in record.items)
        counts.words += record.words
        counts.characters += record.characters
        counts.bytes += record.bytes
        sizes = np.asarray([len(item) for item in record.items], np.int64)
        tokens = b"".join(item.astype(self.dtype).tobytes() for item in record.items)
        return {"bin": tokens, "sizes": sizes.tobytes()}

    def finish(self, folder: Path, split: str, counts: SplitInfo) -> None:
        """Write fairseq's index, and take the published number of words where it applies.

        Raises ``ValueError`` for a split without documents.
        """
        if not counts.items:
            raise ValueError(f"split {split!r} has no document with text; nothing was written")
        write_index(folder / split, self.dtype, np.fromfile(folder / f"{split}.sizes", np.int64))
        documents, words = self.published_words.get(split, (None, None))
        if counts.documents == documents:
            counted = f"{counts.words:,} {self.words_rule}"
            counts.words_rule = f"published by {self.published_in}; {counted}"
            counts.words = words


def write_index(prefix: Path, dtype: np.dtype, sizes: np.ndarray) -> None:
    """Write fairseq's ``.idx`` for items of ``sizes`` tokens."""
    with MMapIndexedDataset.Index.writer(index_file_path(str(prefix)), dtype.type) as index:
        index.write(sizes)


class CorpusSplit:
    """The documents of one split, read piece by piece from disk.

    sizes: (items,) int64, tokens in each item.  ``info`` None stands for plain data of fairseq, read as
    one document.  Raises ``ValueError`` for files that are missing, empty or damaged.
    """

    def __init__(self, folder: Path, name: str, info: SplitInfo | None) -> None:
        self.folder, self.name = folder, name
        prefix = str(folder / name)
        self._file, index = Path(data_file_path(prefix)), Path(index_file_path(prefix))
        for path in (self._file, index):
            if not path.is_file():
                found = ", ".join(sorted(path.stem for path in folder.glob("*.idx"))) or "none"
                raise ValueError(
                    f"{path} is missing: {folder} has no complete split {name!r}; it has {found}"
                )
        self.sizes, self.dtype = _read_index(index)
        total = int(self.sizes.sum())
        expected, found = total * self.dtype.itemsize, self._file.stat().st_size
        if found != expected:
            raise ValueError(
                f"{self._file} has {found} bytes, its index expects {expected}: the copy was cut short; "
                "copy it again or prepare the data again"
            )
        if not total:
            raise ValueError(
                f"{self._file} is empty: the split {name!r} has no tokens; prepare it again from a file "
                "that has text"
            )
        self.info = info or SplitInfo(len(self.sizes), total, 1, [0])
        self._check_info()

    def _check_info(self) -> None:
        """Raise ``ValueError`` unless the manifest says what the index says."""
        described = (self.info.items, self.info.tokens, self.info.documents)
        found = (len(self.sizes), int(self.sizes.sum()), len(self.first_items))
        bounds = np.concatenate(([0], self.first_items, [len(self.sizes)]))
        if described != found or (np.diff(bounds) < 0).any():
            raise ValueError(
                f"{self.folder}: the manifest says that the split {self.name!r} has {described} items, "
                f"tokens and documents, its files have {found}; prepare the data again"
            )

    @functools.cached_property
    def first_items(self) -> np.ndarray:
        """(documents,) int64: the item that each document begins with."""
        if self.info.first_items is None:
            return np.arange(self.info.items)
        return np.asarray(self.info.first_items, np.int64)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(documents + 1,) int64: where each document begins, in tokens; then the number of tokens."""
        starts = np.concatenate(([0], np.cumsum(self.sizes)))
        return np.append(starts[self.first_items], starts[-1])

    def __len__(self) -> int:
        return len(self.first_items)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Read tokens by their position in the split, (stop - start,) int64; fewer at its end."""
        count = max(0, min(stop, self.info.tokens) - start)
        found = np.fromfile(self._file, self.dtype, count, offset=start * self.dtype.itemsize)
        if len(found) < count:
            raise ValueError(
                f"{self._file} has no token {start + len(found)}, of {self.info.tokens}: it was cut "
                "short while it was read; copy or prepare the data again"
            )
        return found.astype(np.int64)


def _read_index(path: Path) -> tuple[np.ndarray, np.dtype]:
    """Read the tokens in each item, and the dtype of the tokens, from fairseq's index."""
    magic = MMapIndexedDataset.Index._HDR_MAGIC
    with open(path, "rb") as stream:  # fairseq's reader fails twice on anything else
        found = stream.read(len(magic))
    if found != magic:
        raise ValueError(
            f"{path} is not an index of fairseq's mmap format: it starts with {found}; binarise the "
            "text with --dataset-impl mmap"
        )
    index = MMapIndexedDataset.Index(str(path))  # its arrays end with it
    return np.array(index.sizes, np.int64), np.dtype(index.dtype)


@dataclass
class Corpus:
    """A folder of prepared text.  ``manifest`` is None where ``fairseq-preprocess`` wrote it."""

    folder: Path
    manifest: Manifest | None

    @property
    def name(self) -> str:
        """What the corpus is called."""
        return self.manifest.benchmark if self.manifest else self.folder.resolve().name

    @property
    def tokenizer(self) -> dict[str, Any]:
        """How text became tokens; plain data of ``fairseq-preprocess`` is of words."""
        return self.manifest.form["tokenizer"] if self.manifest else {"kind": "words"}

    def info(self, split: str) -> SplitInfo | None:
        """Return what is known of ``split``; raise ``ValueError`` if the corpus has no such split."""
        return typed(SplitInfo, self.manifest.split_counts(split)) if self.manifest else None

    def split(self, name: str) -> CorpusSplit:
        """Open a split; raise ``ValueError`` if it is missing or damaged."""
        return CorpusSplit(self.folder, name, self.info(name))

    @property
    def identity(self) -> str:
        """A text that differs where the data differs."""
        if self.manifest is not None:
            files = self.manifest.files
            return json.dumps([self.name, self.tokenizer, files], sort_keys=True)
        sizes = {p.name: p.stat().st_size for p in sorted(self.folder.glob("*.bin"))}
        return json.dumps([self.name, sha256_of(self.folder / DICTIONARY), sizes], sort_keys=True)


def read_corpus(folder: Path) -> Corpus:
    """Open a folder of prepared text; raise ``ValueError`` as ``Manifest.read`` does.

    A folder with a dictionary and without a manifest is one of ``fairseq-preprocess``.
    """
    if (folder / DICTIONARY).is_file() and not os.path.lexists(folder / MANIFEST):
        refuse_incomplete(folder)
        return Corpus(folder, None)
    manifest = Manifest.read(folder, CorpusForm.stored_as)
    try:
        corpus = Corpus(folder, manifest)
        kind, symbols = corpus.tokenizer["kind"], manifest.form["symbols"]
        for split in manifest.splits:
            corpus.info(split)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, error) from None
    if kind not in TOKENIZERS:
        raise ValueError(f"{folder}: tokenizer kind {kind!r} is unknown; prepare the data again")
    if symbols != (found := len(read_dictionary(folder / DICTIONARY))):
        raise ValueError(
            f"{folder}: {DICTIONARY} has {found} symbols, {MANIFEST} says {symbols}; prepare the data "
            "again"
        )
    return corpus
