"""Writing a corpus (see ``corpus``) document by document, so that a killed writer can go on.

Everything is first written into a hidden folder inside.  There each split has a journal that says how
many documents are complete and how long the files were then; a writer that was stopped cuts the files to
that length and goes on with the next document.  The files get their names when all splits are complete,
and ``corpus.json`` comes last: a folder without it was never finished.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    best_fitting_int_dtype,
    data_file_path,
    index_file_path,
)

from megalodon_tasks.data.corpus import DESCRIPTION, DICTIONARY, FORMAT, VERSION, SplitInfo
from megalodon_tasks.data.rejects import Rejects
from megalodon_tasks.data.storage import sha256_of
from megalodon_tasks.files import atomic_file, sole_writer, sync_folder

_UNFINISHED = ".corpus.unfinished"
_IDENTITY = "identity.json"
_PUBLISHED = (".bin", ".idx", ".txt", ".model")
_JOURNAL_BYTES = 32 << 20  # at most so much work is lost


@dataclass(frozen=True)
class Document:
    """One document: its tokens as one or more items of fairseq's data, and what its text measures.

    ``damage`` says why it cannot be used, as in ``is empty``; ``items`` is empty then.
    """

    name: str
    items: tuple[np.ndarray, ...] = ()
    words: int = 0
    characters: int = 0
    bytes: int = 0
    damage: str | None = None


#: The documents of a split from number ``first`` on.
ReadFrom = Callable[[int], Iterator[Document]]


@dataclass
class _Journal:
    """How far a split is: documents read, and lengths of the files at that point."""

    read: int = 0
    tokens: int = 0
    first_items: list[int] = field(default_factory=list)
    items: int = 0
    words: int = 0
    characters: int = 0
    bytes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    finished: bool = False


class _SplitWriter:
    """Appends documents to one split, from where its journal ends."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, rejects: Rejects) -> None:
        self._path, self._dtype, self._rejects = folder / name, np.dtype(dtype), rejects
        self._journal_path = folder / f"{name}.journal.json"
        self.journal = _Journal()
        if self._journal_path.is_file():
            self.journal = _Journal(**json.loads(self._journal_path.read_text()))
        for item, reason in self.journal.skipped.items():
            rejects.add(item, reason)
        self._sizes_path = folder / f"{name}.sizes"
        self._unsaved = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the files at the length that the journal knows."""
        with (
            _opened_at(data_file_path(str(self._path)), self._token_bytes) as self._tokens,
            _opened_at(str(self._sizes_path), 8 * self.journal.items) as self._sizes,
        ):
            yield

    @property
    def _token_bytes(self) -> int:
        return self.journal.tokens * self._dtype.itemsize

    def add(self, document: Document) -> None:
        """Append ``document``, or note why it is left out."""
        journal = self.journal
        journal.read += 1
        if document.damage is not None:
            self._rejects.add(document.name, document.damage)
            journal.skipped[document.name] = document.damage
            return
        journal.first_items.append(journal.items)
        for item in document.items:
            self._tokens.write(item.astype(self._dtype).tobytes())
            self._sizes.write(np.int64(len(item)).tobytes())
            journal.tokens += len(item)
            self._unsaved += item.nbytes
        journal.items += len(document.items)
        journal.words += document.words
        journal.characters += document.characters
        journal.bytes += document.bytes
        if self._unsaved > _JOURNAL_BYTES:
            self.save()

    def save(self) -> None:
        """Make what was added so far survive a kill."""
        for stream in (self._tokens, self._sizes):
            stream.flush()
            os.fsync(stream.fileno())
        with atomic_file(self._journal_path, "w") as stream:
            json.dump(asdict(self.journal), stream)
        self._unsaved = 0

    def finish(self) -> None:
        """Write the index and mark the split as complete."""
        sizes = np.fromfile(self._sizes_path, np.int64)
        write_index(self._path, self._dtype, sizes)
        self.journal.finished = True
        self.save()


@contextmanager
def _opened_at(path: str, length: int) -> Iterator[Any]:
    with open(path, "ab") as stream:
        stream.truncate(length)
        yield stream


def write_index(prefix: Path, dtype: np.dtype, sizes: np.ndarray) -> None:
    """Write fairseq's ``.idx`` for items of ``sizes`` tokens."""
    with MMapIndexedDataset.Index.writer(index_file_path(str(prefix)), dtype.type) as index:
        index.write(sizes)


@dataclass
class CorpusPlan:
    """How to write a corpus: its tokenizer's description and dictionary, and its documents.

    ``words_rule`` says how the words were counted; ``one_item_each`` that each document is one item.
    ``extra_files`` (name -> file) are copied beside the data; ``rejects`` decides about damage;
    ``amend`` may change what is said of a split once it is complete.
    """

    tokenizer: dict[str, Any]
    dictionary: Dictionary
    splits: Mapping[str, ReadFrom]
    words_rule: str
    one_item_each: bool = True
    extra_files: Mapping[str, Path] = field(default_factory=dict)
    rejects: Rejects = field(default_factory=Rejects)
    amend: Callable[[str, SplitInfo], None] = lambda split, info: None


def is_current(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds the finished corpus of a plan with this identity."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return {key: found.get(key) for key in identity} == json.loads(json.dumps(identity))


@contextmanager
def unfinished_folder(folder: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The hidden folder in which the corpus grows: that of an interrupted run with the same identity.

    ``folder`` is locked meanwhile; raises ``ValueError`` if another process writes there.
    """
    with sole_writer(folder):
        inside = folder / _UNFINISHED
        wanted = json.dumps(identity, sort_keys=True)
        known = inside / _IDENTITY
        if not known.is_file() or known.read_text() != wanted:
            shutil.rmtree(inside, ignore_errors=True)
            inside.mkdir()
            known.write_text(wanted)
        yield inside


def write_corpus(
    folder: Path,
    identity: Mapping[str, Any],
    make_plan: Callable[[Path], CorpusPlan],
    on_bytes: Callable[[int], None],
) -> None:
    """Write a corpus into ``folder``.

    ``identity``: ``name`` and ``settings``, all that the result depends on.  ``make_plan`` is given the
    hidden folder and may keep files there that an interrupted run need not make again.  ``on_bytes`` is
    told the size of each text when it is done.  What reading raises is raised here, and ``folder`` then
    holds what it held before.
    """
    with unfinished_folder(folder, identity) as inside:
        plan = make_plan(inside)
        dtype = np.dtype(best_fitting_int_dtype(len(plan.dictionary)))
        infos = {}
        for name, read in plan.splits.items():
            writer = _SplitWriter(inside, name, dtype, plan.rejects)
            on_bytes(writer.journal.bytes)
            if not writer.journal.finished:
                _write_split(writer, read, on_bytes)
            infos[name] = _info(name, writer.journal, plan)
            plan.amend(name, infos[name])
        for name, path in plan.extra_files.items():
            if path != inside / name:
                shutil.copyfile(path, inside / name)
        publish(folder, inside, {**identity, "tokenizer": plan.tokenizer}, plan.dictionary, infos)


def _write_split(writer: _SplitWriter, read: ReadFrom, on_bytes: Callable[[int], None]) -> None:
    with writer.opened():
        try:
            for document in read(writer.journal.read):
                writer.add(document)
                on_bytes(document.bytes)
        except KeyboardInterrupt:
            writer.save()
            raise
        writer.save()
        writer.finish()


def _info(name: str, journal: _Journal, plan: CorpusPlan) -> SplitInfo:
    if not journal.items:
        raise ValueError(
            f"split {name!r} has no document with text "
            f"({len(journal.skipped)} were left out as damaged); nothing was written"
        )
    return SplitInfo(
        items=journal.items,
        tokens=journal.tokens,
        documents=len(journal.first_items),
        first_items=None if plan.one_item_each else journal.first_items,
        words=journal.words,
        words_rule=plan.words_rule,
        characters=journal.characters,
        bytes=journal.bytes,
        skipped=journal.skipped,
    )


def publish(
    folder: Path,
    inside: Path,
    about: Mapping[str, Any],
    dictionary: Dictionary,
    infos: Mapping[str, SplitInfo],
) -> None:
    """Give the finished files in ``inside`` their names in ``folder``, the description last.

    ``about``: name, settings and tokenizer.  Started again after a kill, goes on where it was.
    """
    dictionary.save(str(inside / DICTIONARY))
    for split, info in infos.items():
        files = [f"{split}.bin", f"{split}.idx"]
        paths = {f: inside / f if (inside / f).exists() else folder / f for f in files}
        info.files = {
            f: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for f, p in paths.items()
        }
    description = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "vocabulary": len(dictionary),
        "splits": {split: asdict(info) for split, info in infos.items()},
    }
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for path in inside.iterdir():
        if path.suffix in _PUBLISHED:
            os.replace(path, folder / path.name)
    with atomic_file(folder / DESCRIPTION, "w") as stream:
        json.dump(description, stream, indent=1, ensure_ascii=False)
    sync_folder(folder)
    shutil.rmtree(inside)
