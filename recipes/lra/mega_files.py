"""Read the processed files of Mega's authors.

Token tasks, as ``fairseq-preprocess`` wrote them:

    src-bin/{train,valid,test}.{bin,idx}, src-bin/dict.txt     the sequences
    src1-bin/{train,valid,test}.{bin,idx}                      the second of each pair, same dictionary
    label-bin/{train,valid,test}.{bin,idx}, label-bin/dict.txt     the labels

A dictionary numbers its symbols by frequency, after fairseq's special ones, so the number of a label is
not its class: its symbol is.  :class:`MegaTokens` brings classes into their own order.

Image tasks, as text:

    input/{train,valid,test}.src      one image per line: pixels from 0 to 255, separated by spaces
    label/{train,valid,test}.label    one class per line
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset

from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.finding import find_files, folders_named
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import Item
from megalodon_tasks.data.sources import Origin, Rejects

SPLITS = ("train", "valid", "test")
INPUTS, SECOND_INPUTS, LABELS = "src-bin", "src1-bin", "label-bin"
DICTIONARY = "dict.txt"

# fairseq fills dictionaries up to a multiple of 8 symbols with these.
_FILLING = "madeupword"
# An index: magic, version, code of the dtype, number of items; then int32 sizes and int64 places.
_HEADER = struct.Struct("<9sQBQ")
_ENTRY_BYTES = 4 + 8


class MegaItem(NamedTuple):
    """The class of one item, and ids of the dictionary for each of its sequences (no end token)."""

    label: int
    sequences: list[np.ndarray]


class MegaTokens:
    """One token task: its dictionary, its files, its items.

    ``classes`` says which class each symbol of the labels stands for.  ``symbols`` are those of the
    dictionary after the special ones, in its order; the first of them has the id ``first_symbol``, and
    ``unknown`` is the id of a symbol that was not in the dictionary when the files were written.

    Raises ``ValueError`` if a file is missing or unreadable, if there is a second input where ``pair``
    is false (or none where it is true), or if the dictionary of the labels has not just these classes.
    """

    def __init__(self, folder: Path, *, classes: Mapping[str, int], pair: bool) -> None:
        self.folder = folder
        self._inputs = (INPUTS, SECOND_INPUTS) if pair else (INPUTS,)
        self._check_files(pair)
        self.dictionary_path = folder / INPUTS / DICTIONARY
        self._dictionary = read_dictionary(self.dictionary_path)
        self.first_symbol, self.unknown = self._dictionary.nspecial, self._dictionary.unk()
        self.symbols = _symbols(self._dictionary)
        self._class_of = self._classes(classes)

    @classmethod
    def find(
        cls, source: Path, name: str, *, classes: Mapping[str, int], pair: bool = False
    ) -> "MegaTokens | None":
        """Open the task that Mega calls ``name`` in ``source`` or below it; None if it is not there."""
        for folder in folders_named(source, (name,)):
            if (folder / INPUTS).is_dir():
                return cls(folder, classes=classes, pair=pair)
        return None

    def origins(self) -> dict[str, Origin]:
        """Return every file that is read, by its name below the folder."""
        folders = (*self._inputs, LABELS)
        names = [f"{f}/{s}.{kind}" for f in folders for s in SPLITS for kind in ("bin", "idx")]
        names += [f"{f}/{DICTIONARY}" for f in (INPUTS, LABELS)]
        return {name: Origin(name, [self.folder / name]) for name in names}

    def items(self, split: str, on_bytes: OnBytes) -> Iterator[MegaItem]:
        """Yield the items of a split; ``on_bytes`` is called with the number of bytes just read.

        Raises ``ValueError`` naming the file, and the item where it is one, for a file that was cut
        short or is no index of fairseq, for files of different counts, an id that the dictionary does
        not have, a special symbol inside a sequence, and a label that is not one class.
        """
        data = {folder: self._open(folder, split) for folder in self._inputs}
        labels = self._open(LABELS, split)
        for folder, sequences in data.items():
            if len(sequences) != len(labels):
                raise ValueError(
                    f"{self.folder / folder / split}.idx has {len(sequences)} items, but "
                    f"{self.folder / LABELS / split}.idx has {len(labels)} labels"
                )
        origins = self.origins().items()
        size = sum(origin.bytes for name, origin in origins if Path(name).stem == split)
        for index in range(len(labels)):
            on_bytes(size * (index + 1) // len(labels) - size * index // len(labels))
            sequences = [self._sequence(d[index].numpy(), f, split, index) for f, d in data.items()]
            yield MegaItem(self._label(labels[index].numpy(), split, index), sequences)

    def where(self, split: str, index: int, column: int = 0) -> str:
        """Return the name of an item for messages."""
        return f"{self.folder / self._inputs[column] / split}.bin, item {index + 1}"

    def _check_files(self, pair: bool) -> None:
        second = (self.folder / SECOND_INPUTS).is_dir()
        if pair and not second:
            raise ValueError(
                f"{self.folder} has no {SECOND_INPUTS}: its items are single sequences, those of "
                "another task; Retrieval is in the folder that Mega calls aan"
            )
        if second and not pair:
            raise ValueError(
                f"{self.folder} has {SECOND_INPUTS}: its items are pairs, those of Retrieval; prepare "
                "them with megalodon prepare lra/retrieval"
            )
        for name in self.origins():
            if not (self.folder / name).is_file():
                raise ValueError(
                    f"{self.folder / name} is missing; copy Mega's folder {self.folder.name} whole"
                )

    def _classes(self, classes: Mapping[str, int]) -> dict[int, int]:
        path = self.folder / LABELS / DICTIONARY
        dictionary = read_dictionary(path)
        names = [_class_name(symbol) for symbol in _symbols(dictionary)]
        class_of = {dictionary.nspecial + i: classes.get(name) for i, name in enumerate(names)}
        if set(class_of.values()) != set(classes.values()):
            raise ValueError(
                f"{path}: the labels are {', '.join(names[:20]) or 'none'}, expected "
                f"{', '.join(classes)}; it belongs to another task"
            )
        return class_of

    def _open(self, folder: str, split: str) -> MMapIndexedDataset:
        prefix = self.folder / folder / split
        _check_index(prefix)
        return data_utils.load_indexed_dataset(str(prefix), self._dictionary)

    def _label(self, ids: np.ndarray, split: str, index: int) -> int:
        ids = self._without_end(ids)
        label = self._class_of.get(int(ids[0])) if len(ids) == 1 else None
        if label is None:
            raise ValueError(
                f"{self.folder / LABELS / split}.bin, item {index + 1}: {ids[:10].tolist()} is not "
                f"one label of {self.folder / LABELS / DICTIONARY}, whose labels have the numbers "
                f"{', '.join(map(str, self._class_of))}"
            )
        return label

    def _sequence(self, ids: np.ndarray, folder: str, split: str, index: int) -> np.ndarray:
        ids = self._without_end(ids)
        last = self.first_symbol + len(self.symbols)
        wrong = ids[(ids >= last) | ((ids < self.first_symbol) & (ids != self.unknown))]
        if len(wrong):
            raise ValueError(
                f"{self.folder / folder / split}.bin, item {index + 1}: the number {wrong[0]} is no "
                f"symbol of {self.dictionary_path}, which numbers {len(self.symbols)} symbols from "
                f"{self.first_symbol}; the dictionary is that of other data, or the file is damaged"
            )
        return ids

    def _without_end(self, ids: np.ndarray) -> np.ndarray:
        return ids[:-1] if len(ids) and ids[-1] == self._dictionary.eos() else ids


def _symbols(dictionary: Dictionary) -> list[str]:
    symbols = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if not symbol.startswith(_FILLING)]


def _class_name(symbol: str) -> str:
    """Write ``1.0`` as ``1``, which is the same label."""
    try:
        number = float(symbol)
    except ValueError:
        return symbol
    return str(int(number)) if number.is_integer() else symbol


def _check_index(prefix: Path) -> None:
    """Raise ``ValueError`` unless fairseq can read all of ``prefix``.idx and .bin.

    fairseq itself fails later, item by item or in the destructor of what it could not open.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    with open(index, "rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError(f"{index} has {len(header)} bytes: it was cut short; copy it again")
    magic, version, _, count = _HEADER.unpack(header)
    if magic != MMapIndexedDataset.Index._HDR_MAGIC or version != 1:
        raise ValueError(
            f"{index} begins with {magic!r}: it is not an index of fairseq's kind 'mmap', which Mega's "
            "files have; copy it again"
        )
    if not count:
        raise ValueError(f"{index} has no items")
    _check_size(index, _HEADER.size + count * _ENTRY_BYTES, f"for {count} items")
    described = MMapIndexedDataset.Index(str(index))
    tokens = int(described.sizes.sum(dtype=np.int64))
    _check_size(data, tokens * np.dtype(described.dtype).itemsize, "as its index says")


def _check_size(path: Path, expected: int, why: str) -> None:
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, expected {expected} {why}: it was cut short; copy it again"
        )


def find_mega_images(source: Path, names: tuple[str, ...]) -> dict[str, Origin] | None:
    """Find the files of an image task below ``source``: ``train.src``, ``train.label`` ...; or None.

    ``names`` are those that Mega's archive gives to the folder.  Raises ``ValueError`` if only some of
    the files are there.
    """
    files = {f"{split}.src": f"input/{split}.src" for split in SPLITS}
    files |= {f"{split}.label": f"label/{split}.label" for split in SPLITS}
    found = find_files(folders_named(source, names), files, "copy the folder of the task once more")
    return found and {key: Origin.of_file(path) for key, path in found.items()}


def read_mega_images(
    origins: Mapping[str, Origin],
    split: str,
    pixels: int,
    classes: int,
    rejects: Rejects,
    on_bytes: OnBytes,
) -> Iterator[Item]:
    """Yield the class and the ``pixels`` numbers (uint8) of each image of ``split``, line by line.

    A line that is no such image, or whose class is none, goes to ``rejects``.  Raises ``ValueError`` if
    the two files differ in their number of lines.
    """
    images, labels = origins[f"{split}.src"], origins[f"{split}.label"]
    (path,), (label_path,) = images.paths, labels.paths
    answers = labels.lines(on_bytes)
    for number, line in enumerate(images.lines(on_bytes), start=1):
        answer = next(answers, None)
        if answer is None:
            raise ValueError(
                f"{label_path} ends after line {number - 1}, {path} has more lines: one of them was "
                "cut short"
            )
        values, reason = _pixels(line, pixels)
        answer = answer.strip()
        if values is None:
            rejects.add(f"{path}, line {number}", reason)
        elif not (answer.isdigit() and int(answer) < classes):
            reason = (
                f"has the label {answer.decode(errors='replace')!r}, expected 0 to {classes - 1}"
            )
            rejects.add(f"{label_path}, line {number}", reason)
        else:
            yield int(answer), {"inputs": values}
    if next(answers, None) is not None:
        raise ValueError(f"{path} ends before {label_path} does: one of them was cut short")


def _pixels(line: bytes, pixels: int) -> tuple[np.ndarray | None, str]:
    """Return the numbers of a line, or None and what is wrong with them."""
    try:
        values = np.array(line.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return None, "holds something else than whole numbers"
    if len(values) != pixels:
        return None, f"has {len(values)} pixels, expected {pixels}"
    if values.min() < 0 or values.max() > 255:
        return None, f"has pixels from {values.min()} to {values.max()}, expected 0 to 255"
    return values.astype(np.uint8), ""
