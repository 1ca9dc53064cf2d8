"""Prepared labelled sequences in arrays on disk.

Beside ``manifest.json`` a folder holds for each split

    train.labels.bin           int64 label of each item
    train.inputs.bin           the sequences of one column, one after the other
    train.inputs.offsets.bin   int64, items + 1: where each begins; absent at a fixed length

An item has one sequence per column: ``inputs``, and ``inputs2`` for tasks on pairs.  All numbers are
little-endian.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from megalodon_tasks.data.manifest import MANIFEST, Manifest, damaged
from megalodon_tasks.data.typed import typed
from megalodon_tasks.data.writer import Form

DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
LABEL_DTYPE = OFFSET_DTYPE = np.dtype("<i8")

#: A label and one sequence per column.
Item = tuple[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class ColumnSpec:
    """One sequence of every item: its dtype (of ``DTYPES``), and its length where that is fixed."""

    dtype: str
    length: int | None = None

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype on disk."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class ValueScale:
    """How stored numbers become the model's input: ``(stored / divisor - mean) / std``."""

    divisor: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (self.divisor > 0 and self.std > 0):
            raise ValueError(
                f"divisor={self.divisor} and std={self.std} of a value scale must be positive"
            )

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Scale values to float32 of the same shape."""
        factor, shift = 1 / (self.divisor * self.std), self.mean / self.std
        return stored.astype(np.float32) * np.float32(factor) - np.float32(shift)


@dataclass
class SplitCounts:
    """Numbers of one split: items, labels of each class, shortest and longest sequence per column."""

    items: int
    class_counts: list[int]
    min_length: dict[str, int]
    max_length: dict[str, int]
    ends: dict[str, int]


@dataclass(frozen=True)
class DatasetSpec(Form):
    """What holds for all splits of labelled sequences; the form in which they are written.

    benchmark: name of the data (``listops``).  kind: of the input, as in ``ClassifierInputs``.
    vocabulary: symbol of each token (empty where values are not symbols).  classes: name of each label.
    source: see ``Manifest``.  scale: present where values are samples of a signal (pixels, audio).
    """

    benchmark: str
    kind: str
    columns: dict[str, ColumnSpec]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    scale: ValueScale | None = None

    stored_as: ClassVar[str] = "sequences"

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if column.dtype not in DTYPES:
                raise ValueError(f"column {name!r}: dtype {column.dtype!r} is none of {DTYPES}")
        if not self.columns or not self.classes:
            raise ValueError(f"data set {self.benchmark!r} needs at least one column and one class")
        if self.scale is not None and self.vocabulary:
            raise ValueError(
                f"data set {self.benchmark!r} has a vocabulary and a value scale: values are either "
                "symbols or samples of a signal"
            )

    @classmethod
    def of(cls, manifest: Manifest) -> "DatasetSpec":
        """Return what ``manifest`` says."""
        form = manifest.form
        return cls(
            benchmark=manifest.benchmark,
            kind=form["input"],
            columns={name: typed(ColumnSpec, column) for name, column in form["columns"].items()},
            classes=manifest.classes,
            vocabulary=manifest.vocabulary,
            source=manifest.source,
            scale=None if form["scale"] is None else typed(ValueScale, form["scale"]),
        )

    def details(self) -> dict[str, Any]:
        """Return the manifest's ``form``."""
        return {
            "input": self.kind,
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "scale": self.scale and asdict(self.scale),
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """Endings of the files of a split."""
        growing = (f"{n}.offsets.bin" for n, c in self.columns.items() if c.length is None)
        return ("labels.bin", *(f"{name}.bin" for name in self.columns), *growing)

    @property
    def content(self) -> tuple[str, ...]:
        """Endings of the files that hold the sequences."""
        return tuple(f"{name}.bin" for name in self.columns)

    def counts(self, known: Mapping[str, Any]) -> SplitCounts:
        """Return the counts of a split, empty or as ``known``."""
        if known:
            return SplitCounts(**known)
        return SplitCounts(0, [0] * len(self.classes), {}, {}, dict.fromkeys(self.columns, 0))

    def encode(self, record: Item, counts: SplitCounts, split: str) -> dict[str, bytes]:
        """Add an item to ``counts``; return what to append to each part.

        Raises ``ValueError`` naming split, item and column for a label that is no class, an empty
        sequence, one of another than the fixed length, and a value that the dtype cannot hold or that is
        not in the vocabulary.
        """
        label, sequences = record
        where = f"split {split!r}, item {counts.items}"
        if sequences.keys() != self.columns.keys():
            raise ValueError(
                f"{where}: got the columns {sorted(sequences)}, expected {sorted(self.columns)}"
            )
        if not 0 <= label < len(self.classes):
            raise ValueError(
                f"{where}: label {label} is none of the classes 0-{len(self.classes) - 1}"
            )
        checked = {
            name: self._checked(values, self.columns[name], f"{where}, {name}")
            for name, values in sequences.items()
        }
        parts = {"labels.bin": np.asarray([label], LABEL_DTYPE).tobytes()}
        for name, values in checked.items():
            parts[f"{name}.bin"] = values.tobytes()
            start = [counts.ends[name]] if counts.items == 0 else []
            counts.ends[name] += len(values)
            if self.columns[name].length is None:
                offsets = np.asarray([*start, counts.ends[name]], OFFSET_DTYPE)
                parts[f"{name}.offsets.bin"] = offsets.tobytes()
            counts.min_length[name] = min(len(values), counts.min_length.get(name, len(values)))
            counts.max_length[name] = max(len(values), counts.max_length.get(name, 0))
        counts.class_counts[label] += 1
        counts.items += 1
        return parts

    def _checked(self, values: np.ndarray, column: ColumnSpec, where: str) -> np.ndarray:
        values = np.asarray(values)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"{where}: shape {values.shape}, expected a sequence of at least 1")
        if column.length is not None and len(values) != column.length:
            raise ValueError(f"{where}: {len(values)} values, expected {column.length}")
        limit = len(self.vocabulary)
        if limit and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(
                f"{where}: tokens from {values.min()} to {values.max()}, expected 0 to {limit - 1}, "
                "the size of the vocabulary"
            )
        cast = values.astype(column.numpy_dtype, copy=False)
        if cast.dtype.kind != "f" and cast is not values and not np.array_equal(cast, values):
            raise ValueError(
                f"{where}: values from {values.min()} to {values.max()} do not fit dtype "
                f"{column.dtype}"
            )
        return cast

    def finish(self, folder: Path, split: str, counts: SplitCounts) -> None:
        """Raise ``ValueError`` for a split without items."""
        if not counts.items:
            raise ValueError(f"split {split!r} has no items")


class ArrayFile:
    """An array on disk, read in stretches.

    It is not a memory map: a map ends the process (SIGBUS) where its file was cut short while in use.
    Raises ``ValueError`` naming the file there.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the values ``start`` to ``stop``, read-only."""
        size = self.dtype.itemsize
        content = os.pread(self._file.fileno(), (stop - start) * size, start * size)
        if len(content) != (stop - start) * size:
            raise ValueError(
                f"{self.path} ends at byte {start * size + len(content)}, expected {stop * size}: it "
                "was cut short while it was read; copy or prepare the data again"
            )
        return np.frombuffer(content, self.dtype)


class PreparedSplit:
    """One split, whose files are opened when first used.

    Pickling (to a data worker) carries the paths, not the data.
    """

    def __init__(self, folder: Path, name: str, spec: DatasetSpec, info: SplitCounts) -> None:
        self.folder, self.name, self.spec, self.info = folder, name, spec, info

    def __len__(self) -> int:
        return self.info.items

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("folder", "name", "spec", "info")}

    @cached_property
    def labels(self) -> np.ndarray:
        """Label of each item, (items,) int64."""
        labels = self._open("labels", LABEL_DTYPE).read(0, len(self))
        classes = len(self.spec.classes)
        outside = ((labels < 0) | (labels >= classes)).any()
        if outside or np.bincount(labels, minlength=classes).tolist() != self.info.class_counts:
            raise ValueError(
                f"{self.folder}: the labels of the split {self.name!r} are not those that {MANIFEST} "
                "counts; prepare the data again"
            )
        return labels

    def sequence(self, column: str, index: int) -> np.ndarray:
        """Return the values of item ``index``, 1-D and read-only; ``ValueError`` if they are missing."""
        values, offsets = self._arrays[column]
        if offsets is None:
            length = self.spec.columns[column].length
            return values.read(index * length, (index + 1) * length)
        found = values.read(int(offsets[index]), int(offsets[index + 1]))
        limit = len(self.spec.vocabulary)
        if limit and found.max() >= limit:
            raise ValueError(
                f"{values.path}: item {index} has the token {found.max()}, and the vocabulary has "
                f"{limit}; prepare the data again"
            )
        return found

    def lengths(self, column: str) -> np.ndarray:
        """Return the length of each item's sequence, (items,) int64."""
        offsets = self._arrays[column][1]
        if offsets is None:
            return np.full(len(self), self.spec.columns[column].length, dtype=np.int64)
        return np.diff(offsets)

    @cached_property
    def _arrays(self) -> dict[str, tuple[ArrayFile, np.ndarray | None]]:
        return {
            name: (
                self._open(name, column.numpy_dtype),
                None if column.length else self._offsets(name),
            )
            for name, column in self.spec.columns.items()
        }

    def _offsets(self, column: str) -> np.ndarray:
        file = self._open(f"{column}.offsets", OFFSET_DTYPE)
        offsets = file.read(0, len(self) + 1)
        if offsets[0] or offsets[-1] != self.info.ends[column] or (np.diff(offsets) < 1).any():
            raise ValueError(
                f"{file.path}: its numbers do not rise to the end of the sequences; prepare the data "
                "again"
            )
        return offsets

    def _open(self, part: str, dtype: np.dtype) -> ArrayFile:
        return ArrayFile(self.folder / f"{self.name}.{part}.bin", dtype)


class PreparedDataset:
    """A folder of prepared sequences; raises ``ValueError`` as ``Manifest.read`` does."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(folder, DatasetSpec.stored_as)
        try:
            self.spec = DatasetSpec.of(self.manifest)
            self.splits = {
                name: PreparedSplit(self.folder, name, self.spec, typed(SplitCounts, counts))
                for name, counts in self.manifest.splits.items()
            }
            for split in self.splits.values():
                self._check_counts(split)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(self.folder, error) from None

    def _check_counts(self, split: PreparedSplit) -> None:
        """Raise ``ValueError`` where the counts of a split contradict each other or its files."""
        spec, info = self.spec, split.info
        expected = {"labels": info.items * LABEL_DTYPE.itemsize}
        for name, column in spec.columns.items():
            expected[name] = info.ends[name] * column.numpy_dtype.itemsize
            if column.length is None:
                expected[f"{name}.offsets"] = (info.items + 1) * OFFSET_DTYPE.itemsize
        files = self.manifest.files
        wrong = [
            part for part, size in expected.items()
            if files[f"{split.name}.{part}.bin"]["bytes"] != size
        ]  # fmt: skip
        if (
            wrong
            or (len(info.class_counts), sum(info.class_counts)) != (len(spec.classes), info.items)
            or info.max_length.keys() != spec.columns.keys()
            or any((c.length or 0) * info.items > info.ends[n] for n, c in spec.columns.items())
        ):
            raise ValueError(
                f"{self.folder}: what {MANIFEST} says of the split {split.name!r} contradicts itself"
                f"{' or the size of ' + ', '.join(wrong) if wrong else ''}; prepare the data again"
            )

    def split(self, name: str) -> PreparedSplit:
        """Return the split of this name; raise ``ValueError`` listing those there are."""
        self.manifest.split_counts(name)
        return self.splits[name]

    @property
    def max_length(self) -> int:
        """The length of the longest sequence in any split and column."""
        return max(max(split.info.max_length.values()) for split in self.splits.values())
