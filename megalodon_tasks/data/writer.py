"""Writing prepared data: atomic, and continued where it was stopped.

Everything grows in a hidden folder inside the data folder.  There each split has a journal that says how
many records are complete and how long the files were then; a writer that was stopped cuts the files to
that length and continues with the next record.  When all splits are complete, the files get their names
and ``manifest.json`` comes last: a folder without it is not complete.
"""

import hashlib
import itertools
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from megalodon_tasks.data.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    OnBytes,
    is_prepared,
    sha256_of,
)
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.files import atomic_file, sole_writer, sync_folder

_IDENTITY = "identity.json"
_REPLACED = "replaced.json"
DIGESTS, DIGEST_DTYPE = "digests", np.dtype("<u8")  # hidden file of each split
JOURNAL_BYTES = 32 << 20  # a kill loses at most this much work

#: Yields the records of a split from number ``first`` on, None for one that was left out; calls
#: ``on_bytes`` with the number of bytes just read.
Read = Callable[[int, OnBytes], Iterator[Any]]


class Form(ABC):
    """How the data of one kind is stored, and what its manifest says; a subclass is a dataclass.

    stored_as: the manifest's ``kind``.  parts: endings of the files to which records of a split are
    appended, content: those that two items share if they are equal but for their labels.  benchmark,
    classes, vocabulary, source: see ``Manifest``.
    """

    stored_as: ClassVar[str]
    parts: tuple[str, ...]
    content: tuple[str, ...] = ()
    benchmark: str
    source: dict[str, Any]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Return the manifest's ``form``; None stands for what is not known before reading."""

    @abstractmethod
    def counts(self, known: Mapping[str, Any]) -> Any:
        """Return the counts of a split, a dataclass: empty, or as ``known`` from the journal."""

    @abstractmethod
    def encode(self, record: Any, counts: Any, split: str) -> dict[str, bytes]:
        """Add a record to ``counts``; return what to append to each part.

        Raises ``ValueError``, and leaves ``counts`` as they are, for a record that cannot be stored.
        """

    @abstractmethod
    def finish(self, folder: Path, split: str, counts: Any) -> None:
        """Complete the files of a split in ``folder``; raise ``ValueError`` if there is too little."""

    def files(self, splits: Sequence[str]) -> list[str]:
        """Return the names of all files in the hidden folder that are to be published."""
        return [f"{split}.{part}" for split in splits for part in self.parts]


class SplitWriter:
    """Appends records to the files of one split, from where its journal ends."""

    def __init__(self, folder: Path, split: str, form: Form, rejects: Rejects) -> None:
        self._folder, self._split, self._form, self._rejects = folder, split, form, rejects
        self._path = folder / f"{split}.journal.json"
        journal = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else {}
        self.read: int = journal.get("read", 0)
        self.finished: bool = journal.get("finished", False)
        self.counts = form.counts(journal.get("counts", {}))
        self._lengths = journal.get("lengths") or dict.fromkeys((*form.parts, DIGESTS), 0)
        self._streams: dict[str, BinaryIO] = {}
        self._unsaved, self._between_records = 0, True
        for item, reason in journal.get("left_out", {}).items():
            rejects.add(item, reason)

    def write(self, read: Read, on_bytes: OnBytes) -> None:
        """Append what ``read`` yields; what it raises is raised here."""
        with ExitStack() as streams:
            for part, length in self._lengths.items():
                path = self._folder / f"{self._split}.{part}"
                self._streams[part] = streams.enter_context(open(path, "ab", buffering=1 << 20))
                self._streams[part].truncate(length)
            try:
                for record in read(self.read, on_bytes):
                    self._add(record)
            except KeyboardInterrupt:
                if self._between_records:
                    self._save()
                raise
            self._save()
        try:
            self._form.finish(self._folder, self._split, self.counts)
        except ValueError as error:
            raise self._rejects.explain(error) from None
        self.finished = True
        self._save_journal()

    def _add(self, record: Any) -> None:
        self._between_records = False
        if record is not None:
            parts = self._form.encode(record, self.counts, self._split)
            if self._form.content:
                parts |= {DIGESTS: digest_of(*(parts[name] for name in self._form.content))}
            for part, data in parts.items():
                self._streams[part].write(data)
                self._lengths[part] += len(data)
                self._unsaved += len(data)
        self.read += 1
        self._between_records = True
        if self._unsaved > JOURNAL_BYTES:
            self._save()

    def _save(self) -> None:
        """Make what was added so far survive a kill."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        self._save_journal()
        self._unsaved = 0

    def _save_journal(self) -> None:
        journal = {
            "read": self.read,
            "finished": self.finished,
            "lengths": self._lengths,
            "counts": asdict(self.counts),
            "left_out": self._rejects.reasons,
        }
        with atomic_file(self._path, "w") as stream:
            json.dump(journal, stream, allow_nan=False)


@contextmanager
def unfinished_folder(folder: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Open the hidden folder in which the data grows: that of a stopped run of the same ``identity``.

    ``folder`` is locked meanwhile.  Raises ``ValueError`` if another process writes there.  A
    ``ValueError`` in the block means that the source is bad, so what was written of it is removed.
    """
    with sole_writer(folder):
        inside, text = folder / UNFINISHED, json.dumps(identity, sort_keys=True)
        known = inside / _IDENTITY
        if not known.is_file() or known.read_text("utf-8") != text:
            shutil.rmtree(inside, ignore_errors=True)
            inside.mkdir()
            known.write_text(text, "utf-8")
        try:
            yield inside
        except ValueError:
            shutil.rmtree(inside)
            raise


def write_unpublished(
    inside: Path,
    form: Form,
    splits: Mapping[str, Read],
    rejects: Rejects,
    describe_source: Callable[[], dict[str, Any]],
    on_bytes: OnBytes,
) -> None:
    """Write all splits and the manifest into the hidden folder ``inside``.

    ``describe_source`` is called when all is read and returns what the manifest says of the source.
    Raises what reading raises, and ``ValueError`` for records that cannot be stored and for no splits.
    """
    if not splits:
        raise ValueError(f"nothing was written to {inside.parent}: no splits")
    counts = {}
    for split, read in splits.items():
        writer = SplitWriter(inside, split, form, rejects)
        if not writer.finished:
            writer.write(read, on_bytes)
        counts[split] = asdict(writer.counts)
    digests = {s: np.fromfile(inside / f"{s}.{DIGESTS}", DIGEST_DTYPE) for s in splits}
    source = describe_source() | {"duplicates": duplicates(digests)}
    Manifest(
        folder=inside,
        kind=form.stored_as,
        benchmark=form.benchmark,
        source=source,
        splits=counts,
        files={name: _describe(inside / name) for name in form.files([*splits])},
        classes=form.classes,
        vocabulary=form.vocabulary,
        form=form.details(),
    ).write(inside)


def digest_of(*contents: bytes) -> bytes:
    """Return the digest of an item, one number of ``DIGEST_DTYPE``."""
    digest = hashlib.blake2b(digest_size=DIGEST_DTYPE.itemsize)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def duplicates(digests: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count surplus copies in each split, and items that two splits share, by (items,) digests.

    Keys are ``train`` or ``train, test``; those without duplicates are left out.
    """
    found = {split: len(one) - len(np.unique(one)) for split, one in digests.items()}
    for (split, one), (other, more) in itertools.combinations(digests.items(), 2):
        found[f"{split}, {other}"] = len(np.intersect1d(one, more))
    return {names: count for names, count in found.items() if count}


def publish(folder: Path, inside: Path) -> None:
    """Move the finished files to ``folder``, the manifest last; continue a move that was stopped.

    Files of the data that was there before, and are not in the new manifest, are removed.
    """
    if is_prepared(folder):
        os.replace(folder / MANIFEST, inside / _REPLACED)
        sync_folder(folder)
    names = json.loads((inside / MANIFEST).read_text("utf-8"))["files"].keys()
    for name in names:
        if (inside / name).is_file():
            os.replace(inside / name, folder / name)
    if (inside / _REPLACED).is_file():
        replaced = json.loads((inside / _REPLACED).read_text("utf-8"))
        for name in replaced["files"].keys() - names:
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    (inside / _IDENTITY).unlink()  # from here on nothing can be continued
    os.replace(inside / MANIFEST, folder / MANIFEST)
    sync_folder(folder)
    shutil.rmtree(inside)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
