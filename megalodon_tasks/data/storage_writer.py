"""Writing prepared data sets (see ``storage``) item by item, so that a killed writer leaves no trace.

The arrays are written into a hidden folder and get a name of their own only when complete and on disk;
the description that refers to them is replaced as the last step, in one rename.  Until then readers see
what was there before.  Leftovers of a killed writer are removed by the next one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megalodon_tasks.data.storage import (
    DESCRIPTION,
    FORMAT,
    LABEL_DTYPE,
    OFFSET_DTYPE,
    VERSION,
    ColumnSpec,
    DatasetSpec,
    SplitInfo,
)
from megalodon_tasks.files import atomic_file, sole_writer, sync_folder

_UNFINISHED = ".arrays.unfinished"
_ARRAYS = "arrays-"


class _ArrayFile:
    """A growing binary file that knows its size and checksum."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self._digest = path, 0, hashlib.sha256()
        self._stream: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        data = values.tobytes()
        self._stream.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def close(self) -> None:
        """Close the file; what was appended is then on disk."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    @property
    def description(self) -> dict[str, int | str]:
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}


class SplitWriter:
    """Appends the items of one split."""

    def __init__(self, folder: Path, name: str, spec: DatasetSpec) -> None:
        self._name, self._spec = name, spec
        self._counts = [0] * len(spec.classes)
        self._items = 0
        self._shortest: dict[str, int] = {}
        self._longest: dict[str, int] = {}
        self._ends = dict.fromkeys(spec.columns, 0)
        self._labels = _ArrayFile(folder / f"{name}.labels.bin")
        self._values = {c: _ArrayFile(folder / f"{name}.{c}.bin") for c in spec.columns}
        self._offsets = {
            c: _ArrayFile(folder / f"{name}.{c}.offsets.bin")
            for c, column in spec.columns.items()
            if column.length is None
        }
        for offsets in self._offsets.values():
            offsets.append(np.zeros(1, OFFSET_DTYPE))

    def add(self, label: int, **sequences: np.ndarray) -> None:
        """Append one item: its label and one 1-D sequence per column.

        Raises ``ValueError`` naming split, item and column for a label that is no class, an empty
        sequence, one of another than the fixed length, a value that the dtype cannot hold or that is
        not in the vocabulary.
        """
        if sequences.keys() != self._spec.columns.keys():
            raise ValueError(
                f"{self._where()}: got the columns {sorted(sequences)}, "
                f"wanted {sorted(self._spec.columns)}"
            )
        if not 0 <= label < len(self._counts):
            raise ValueError(
                f"{self._where()}: label {label} is none of the classes 0-{len(self._counts) - 1}"
            )
        checked = {name: self._checked(name, values) for name, values in sequences.items()}
        for name, values in checked.items():
            self._append(name, values)
        self._labels.append(np.asarray([label], LABEL_DTYPE))
        self._counts[label] += 1
        self._items += 1

    def _append(self, name: str, values: np.ndarray) -> None:
        length = len(values)
        self._values[name].append(values)
        self._ends[name] += length
        if name in self._offsets:
            self._offsets[name].append(np.asarray([self._ends[name]], OFFSET_DTYPE))
        self._shortest[name] = min(length, self._shortest.get(name, length))
        self._longest[name] = max(length, self._longest.get(name, 0))

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        column = self._spec.columns[name]
        values = np.asarray(values)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(
                f"{self._where()}, {name}: shape {values.shape}, wanted a sequence of at least 1"
            )
        if column.length is not None and len(values) != column.length:
            raise ValueError(
                f"{self._where()}, {name}: {len(values)} values, wanted {column.length}"
            )
        limit = len(self._spec.vocabulary)
        if limit and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(
                f"{self._where()}, {name}: tokens from {values.min()} to {values.max()}, "
                f"wanted 0 to {limit - 1}, the size of the vocabulary"
            )
        return _cast(values, column, f"{self._where()}, {name}")

    def _where(self) -> str:
        return f"split {self._name!r}, item {self._items}"

    def info(self) -> SplitInfo:
        """What was written; raises ``ValueError`` if there is no item."""
        if not self._items:
            raise ValueError(f"split {self._name!r} has no items")
        return SplitInfo(
            items=self._items,
            class_counts=self._counts,
            min_length=self._shortest,
            max_length=self._longest,
            files={file.path.name: file.description for file in self._files},
        )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    @property
    def _files(self) -> list[_ArrayFile]:
        return [self._labels, *self._values.values(), *self._offsets.values()]


class DatasetWriter:
    """Writes the splits of one data set; made by ``write_dataset``."""

    def __init__(self, folder: Path, spec: DatasetSpec) -> None:
        self._folder, self._spec = folder, spec
        self.infos: dict[str, SplitInfo] = {}

    @contextmanager
    def split(self, name: str) -> Iterator[SplitWriter]:
        """A writer of the split ``name``, finished at the end of the block."""
        writer = SplitWriter(self._folder, name, self._spec)
        try:
            yield writer
        finally:
            writer.close()
        self.infos[name] = writer.info()


@contextmanager
def write_dataset(folder: Path, spec: DatasetSpec) -> Iterator[DatasetWriter]:
    """Write a prepared data set into ``folder``, replacing one that is there when the block ends.

    Other files in the folder are left alone.  If the block raises, so are the prepared data there, and
    nothing remains of the new.  Raises ``ValueError`` if another process is writing to the folder, or if
    no split was written.
    """
    folder = Path(folder)
    with sole_writer(folder):
        unfinished = folder / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            writer = DatasetWriter(unfinished, spec)
            yield writer
            if not writer.infos:
                raise ValueError(f"nothing was written to {folder}: no splits")
            sync_folder(unfinished)
            arrays = unfinished.rename(_free_name(folder))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _describe(folder, arrays.name, spec, writer.infos)
        for old in folder.glob(f"{_ARRAYS}*"):
            if old != arrays:
                shutil.rmtree(old, ignore_errors=True)


def _describe(folder: Path, arrays: str, spec: DatasetSpec, infos: dict[str, SplitInfo]) -> None:
    sync_folder(folder)
    description = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(spec),
        "arrays": arrays,
        "splits": {name: asdict(info) for name, info in infos.items()},
    }
    with atomic_file(folder / DESCRIPTION, "w") as stream:
        json.dump(description, stream, indent=1)
        stream.write("\n")


def _free_name(folder: Path) -> Path:
    number = 1
    while (folder / f"{_ARRAYS}{number}").exists():
        number += 1
    return folder / f"{_ARRAYS}{number}"


def _cast(values: np.ndarray, column: ColumnSpec, where: str) -> np.ndarray:
    """Bring values to the dtype on disk; raise ``ValueError`` if that would change one."""
    dtype = column.numpy_dtype
    if values.dtype == dtype:
        return values
    cast = values.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, values):
        raise ValueError(
            f"{where}: values from {values.min()} to {values.max()} do not fit dtype {column.dtype}"
        )
    return cast
