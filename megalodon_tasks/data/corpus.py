"""A corpus of text as fairseq's binarised data, and what describes it.

A folder holds what ``fairseq-preprocess --only-source`` writes (``dict.txt``, ``train.bin``,
``train.idx`` and the same for ``valid`` and ``test``), so that fairseq's own tools read it, and beside

    corpus.json           tokenizer, documents, words, characters, bytes, checksums; written last
    sentencepiece.model   where the tokenizer is SentencePiece

A document is a run of consecutive items of fairseq's data: usually one, or the lines of an article.  Its
tokens lie together in the ``.bin`` file, so any piece of it is read without the rest.
``corpus_writer`` writes this format; a folder without ``corpus.json`` is read as one document per split.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path, index_file_path

from megalodon_tasks.data.storage import sha256_of

DESCRIPTION = "corpus.json"
DICTIONARY = "dict.txt"
FORMAT, VERSION = "megalodon-corpus", 1
SPLITS = ("train", "valid", "test")


@dataclass
class SplitInfo:
    """What ``corpus.json`` says of a split.

    first_items: the first item of each document, or None where each item is one.  words: the divisor of
    word-level perplexity, found as ``words_rule`` says.  characters and bytes: of the text as published
    (None where that is unknown).  skipped: documents left out, with the reason.
    """

    items: int
    tokens: int
    documents: int
    first_items: list[int] | None = None
    words: int | None = None
    words_rule: str = ""
    characters: int | None = None
    bytes: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class CorpusSplit:
    """The documents of one split, read piece by piece.  Raises ``ValueError`` for damaged files."""

    def __init__(self, folder: Path, name: str, info: SplitInfo | None) -> None:
        self.folder, self.name = folder, name
        prefix = str(folder / name)
        self._file = Path(data_file_path(prefix))
        for path in (self._file, Path(index_file_path(prefix))):
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: the data folder {folder} has no complete split {name!r}"
                )
        self._index = self._read_index(prefix)
        self._check_size()
        if not self._sizes.sum():
            raise ValueError(f"{self._file} is empty: the split {name!r} has no tokens")
        self.info = info or SplitInfo(len(self._sizes), int(self._sizes.sum()), 1, [0])
        if (self.info.items, self.info.tokens) != (len(self._sizes), int(self._sizes.sum())):
            raise ValueError(
                f"{index_file_path(prefix)} has {len(self._sizes)} items of {int(self._sizes.sum())} "
                f"tokens, but {DESCRIPTION} says {self.info.items} of {self.info.tokens}; "
                "prepare the data again"
            )

    @staticmethod
    def _read_index(prefix: str) -> MMapIndexedDataset.Index:
        path, magic = index_file_path(prefix), MMapIndexedDataset.Index._HDR_MAGIC
        with open(path, "rb") as stream:  # fairseq's reader fails twice on anything else
            found = stream.read(len(magic))
        if found != magic:
            raise ValueError(
                f"{path} is not an index of fairseq's mmap format: it starts with {found}"
            )
        return MMapIndexedDataset.Index(path)

    def _check_size(self) -> None:
        wanted = int(self._sizes.sum()) * self.dtype.itemsize
        found = self._file.stat().st_size
        if found != wanted:
            raise ValueError(
                f"{self._file} has {found} bytes, its index wants {wanted}: the copy was cut short; "
                "copy it again or prepare the data again"
            )

    @property
    def _sizes(self) -> np.ndarray:
        return np.asarray(self._index.sizes, np.int64)

    @property
    def dtype(self) -> np.dtype:
        """That of the tokens on disk."""
        return np.dtype(self._index.dtype)

    @functools.cached_property
    def first_items(self) -> np.ndarray:
        """(documents,) int64: the item that each document begins with."""
        if self.info.first_items is None:
            return np.arange(self.info.items)
        return np.asarray(self.info.first_items, np.int64)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(documents + 1,) int64: where each document begins, in tokens; then the number of tokens."""
        starts = np.concatenate(([0], np.cumsum(self._sizes)))
        return np.append(starts[self.first_items], starts[-1])

    def __len__(self) -> int:
        return len(self.first_items)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64: tokens of the split by their position in it, read from disk."""
        count = max(0, min(stop, int(self.offsets[-1])) - start)
        found = np.fromfile(self._file, self.dtype, count, offset=start * self.dtype.itemsize)
        return found.astype(np.int64)

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Compare checksums with those in ``corpus.json``; raises ``ValueError`` naming the file."""
        for name, expected in self.info.files.items():
            if sha256_of(self.folder / name, on_bytes) != expected["sha256"]:
                raise ValueError(
                    f"{self.folder / name} is damaged: its checksum differs from that in "
                    f"{DESCRIPTION}; prepare the data again"
                )


@dataclass
class Corpus:
    """A folder of prepared text.  ``description`` is None where it has no ``corpus.json``."""

    folder: Path
    description: dict[str, Any] | None

    @property
    def name(self) -> str:
        """What the corpus is called."""
        return self.description["name"] if self.description else self.folder.resolve().name

    @property
    def tokenizer(self) -> dict[str, Any]:
        """How text became tokens; plain data of ``fairseq-preprocess`` is of words."""
        return self.description["tokenizer"] if self.description else {"kind": "words"}

    def info(self, split: str) -> SplitInfo | None:
        """What is known of ``split``.  Raises ``ValueError`` if the corpus has no such split."""
        if self.description is None:
            return None
        splits = self.description["splits"]
        if split not in splits:
            raise ValueError(f"{self.folder} has no split {split!r}; it has {', '.join(splits)}")
        return SplitInfo(**splits[split])

    def split(self, name: str) -> CorpusSplit:
        """Open a split.  Raises ``ValueError`` if it is missing or damaged."""
        return CorpusSplit(self.folder, name, self.info(name))

    @property
    def identity(self) -> str:
        """A text that differs where the data differs."""
        if self.description is not None:
            files = {s: i["files"] for s, i in self.description["splits"].items()}
            return json.dumps([self.name, self.tokenizer, files], sort_keys=True)
        sizes = {p.name: p.stat().st_size for p in sorted(self.folder.glob("*.bin"))}
        return json.dumps([self.name, sha256_of(self.folder / DICTIONARY), sizes], sort_keys=True)


def read_corpus(folder: Path) -> Corpus:
    """Open a folder of prepared text.  Raises ``ValueError`` if it is missing, empty or damaged."""
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist")
    path = folder / DESCRIPTION
    if not path.is_file():
        if not (folder / DICTIONARY).is_file():
            raise ValueError(
                f"the data folder {folder} holds neither {DESCRIPTION} nor {DICTIONARY}"
            )
        return Corpus(folder, None)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); prepare the data again") from None
    found = description.get("format"), description.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} has format {found}, this version reads {(FORMAT, VERSION)}; prepare the data again"
        )
    return Corpus(folder, description)
