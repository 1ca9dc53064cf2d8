"""Prepared data sets on disk: labelled sequences in memory-mapped arrays, and what describes them.

A folder of prepared data holds

    dataset.json                    what it is: written last, so its presence means that all is complete
    arrays-1/train.labels.bin       int64 label of each item
    arrays-1/train.inputs.bin       the sequences of one column, one after the other
    arrays-1/train.inputs.offsets.bin    int64, items + 1: where each begins; absent at a fixed length

and the same for the other splits.  An item has one sequence per column: ``inputs``, and ``inputs2`` for
tasks on pairs.  All numbers are little-endian.  ``storage_writer`` writes this format.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTION = "dataset.json"
FORMAT, VERSION = "megalodon-sequences", 1
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
LABEL_DTYPE = OFFSET_DTYPE = np.dtype("<i8")


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
        """float32 of the same shape."""
        factor, shift = 1 / (self.divisor * self.std), self.mean / self.std
        return stored.astype(np.float32) * np.float32(factor) - np.float32(shift)


@dataclass(frozen=True)
class DatasetSpec:
    """What holds for all splits.

    ``benchmark`` names the data (``listops``), ``kind`` the input as in ``ClassifierInputs``,
    ``vocabulary`` the symbol of each token (empty where values are not symbols), ``classes`` the name of
    each label, and ``source`` is any JSON that says what the data was prepared from, and how.  ``scale``
    is there where values are samples of a signal (pixels, audio) and not symbols.
    """

    benchmark: str
    kind: str
    columns: dict[str, ColumnSpec]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    scale: ValueScale | None = None

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


@dataclass(frozen=True)
class SplitInfo:
    """What ``dataset.json`` says about one split: label counts, extremes of length, and its files."""

    items: int
    class_counts: list[int]
    min_length: dict[str, int]
    max_length: dict[str, int]
    files: dict[str, dict[str, Any]]


class PreparedSplit:
    """One split, read through memory maps that are opened when first used.

    Pickling (to a data worker) carries the paths, not the data.
    """

    def __init__(self, folder: Path, name: str, spec: DatasetSpec, info: SplitInfo) -> None:
        self.folder, self.name, self.spec, self.info = folder, name, spec, info

    def __len__(self) -> int:
        return self.info.items

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("folder", "name", "spec", "info")}

    @cached_property
    def labels(self) -> np.ndarray:
        """(items,) int64."""
        return self._map("labels", LABEL_DTYPE)

    def sequence(self, column: str, index: int) -> np.ndarray:
        """The values of item ``index``: a read-only view of the file, 1-D, dtype of the column."""
        values, offsets = self._arrays[column]
        if offsets is None:
            length = self.spec.columns[column].length
            return values[index * length : (index + 1) * length]
        return values[offsets[index] : offsets[index + 1]]

    def lengths(self, column: str) -> np.ndarray:
        """(items,) int64."""
        offsets = self._arrays[column][1]
        if offsets is None:
            return np.full(len(self), self.spec.columns[column].length, dtype=np.int64)
        return np.diff(offsets)

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        return {
            name: (
                self._map(name, column.numpy_dtype),
                None if column.length else self._map(f"{name}.offsets", OFFSET_DTYPE),
            )
            for name, column in self.spec.columns.items()
        }

    def _map(self, part: str, dtype: np.dtype) -> np.ndarray:
        # A plain array over the map: slicing numpy.memmap itself costs several times as much.
        return np.asarray(np.memmap(self.folder / f"{self.name}.{part}.bin", dtype, mode="r"))


class PreparedDataset:
    """A folder of prepared data; opening it checks that every file has the size it should have.

    Raises ``ValueError``, naming the file, if the folder holds no prepared data, the description is not
    of this format, or a file is missing or of another size.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        description = _read_description(self.folder)
        try:
            self.spec = DatasetSpec(
                benchmark=description["benchmark"],
                kind=description["kind"],
                columns={k: ColumnSpec(**v) for k, v in description["columns"].items()},
                classes=tuple(description["classes"]),
                vocabulary=tuple(description["vocabulary"]),
                source=description["source"],
                scale=_scale(description.get("scale")),
            )
            self.arrays = self.folder / description["arrays"]
            infos = {k: SplitInfo(**v) for k, v in description["splits"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.folder / DESCRIPTION} is damaged ({type(error).__name__}: {error}); "
                "prepare the data again"
            ) from None
        for info in infos.values():
            self._check_sizes(info)
        self.splits = {k: PreparedSplit(self.arrays, k, self.spec, v) for k, v in infos.items()}

    def split(self, name: str) -> PreparedSplit:
        """The split of this name; raises ``ValueError`` listing those there are."""
        if name not in self.splits:
            raise ValueError(
                f"{self.folder} has no split {name!r}; it has {', '.join(self.splits)}"
            )
        return self.splits[name]

    @property
    def max_length(self) -> int:
        """The length of the longest sequence in any split and column."""
        return max(max(split.info.max_length.values()) for split in self.splits.values())

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Compare the checksum of every file; calls ``on_bytes`` with the number of bytes just read.

        Raises ``ValueError`` naming the first file that differs.
        """
        for split in self.splits.values():
            for name, expected in split.info.files.items():
                found = sha256_of(self.arrays / name, on_bytes)
                if found != expected["sha256"]:
                    raise ValueError(
                        f"{self.arrays / name} is damaged: its sha256 is {found}, but "
                        f"{DESCRIPTION} has {expected['sha256']}; prepare the data again"
                    )

    @property
    def total_bytes(self) -> int:
        """The size of all arrays."""
        return sum(f["bytes"] for s in self.splits.values() for f in s.info.files.values())

    def _check_sizes(self, info: SplitInfo) -> None:
        for name, expected in info.files.items():
            path = self.arrays / name
            size = path.stat().st_size if path.is_file() else None
            if size != expected["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes"
                raise ValueError(
                    f"{path} {state}, wanted {expected['bytes']} bytes: the copy was cut short or "
                    "changed; copy it again or prepare the data again"
                )


def _scale(description: dict[str, float] | None) -> ValueScale | None:
    return None if description is None else ValueScale(**description)


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether the folder holds a description of prepared data."""
    return (Path(folder) / DESCRIPTION).is_file()


def sha256_of(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Checksum of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist")
    if not path.is_file():
        state = "is empty" if not any(folder.iterdir()) else "holds no prepared data"
        raise ValueError(f"the data folder {folder} {state}: {DESCRIPTION} is missing")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); prepare the data again") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}, wanted {FORMAT!r}; prepare the data again")
    if description.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {description.get('version')!r} of the format and this program "
            f"reads version {VERSION}; prepare the data again"
        )
    return description
