"""Mega's processed files of the token tasks, as ``fairseq-preprocess`` wrote them.

    src-bin/{train,valid,test}.{bin,idx}, src-bin/dict.txt     the sequences
    src1-bin/{train,valid,test}.{bin,idx}                      the second of each pair, same dictionary
    label-bin/{train,valid,test}.{bin,idx}, label-bin/dict.txt     the labels

A dictionary numbers its symbols by frequency, after fairseq's special ones.  So a label's number is not
its class: the symbol in the dictionary is, and classes are brought into their own order here.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sources import Origin

SPLITS = ("train", "valid", "test")
INPUTS = ("src-bin", "src1-bin")
LABELS = "label-bin"
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


def find_folder(source: Path, name: str) -> Path | None:
    """The folder with ``src-bin`` for the task that Mega calls ``name``, in ``source`` or below it."""
    for below in ("", name, f"lra/{name}"):
        if (source / below / INPUTS[0]).is_dir():
            return source / below
    return None


class MegaFolder:
    """One task's folder: its dictionary, its files, its items.

    ``classes`` says which class each symbol of the labels stands for.  ``symbols`` are those of the
    dictionary after the special ones, in its order; the first of them has the id ``first_symbol``.

    Raises ``ValueError`` if a file is missing or unreadable, if there is a second input where ``pair``
    is false (or none where it is true), or if the dictionary of the labels has not just these classes.
    """

    def __init__(self, folder: Path, *, classes: Mapping[str, int], pair: bool) -> None:
        self.folder = folder
        self._inputs = INPUTS if pair else INPUTS[:1]
        self._check_inputs(pair)
        self.dictionary_path = folder / INPUTS[0] / DICTIONARY
        self._dictionary = _load_dictionary(self.dictionary_path)
        self.first_symbol = self._dictionary.nspecial
        self.symbols = _symbols(self._dictionary)
        self._class_of = self._classes(classes)

    @property
    def unknown(self) -> int:
        """The id of a symbol that was not in the dictionary when the files were written."""
        return self._dictionary.unk()

    def origins(self) -> dict[str, Origin]:
        """Every file that is read, by its name below the folder."""
        folders = (*self._inputs, LABELS)
        names = [f"{f}/{s}.{kind}" for f in folders for s in SPLITS for kind in ("bin", "idx")]
        names += [f"{f}/{DICTIONARY}" for f in (INPUTS[0], LABELS)]
        return {name: Origin(name, [self.folder / name]) for name in names}

    def items(self, split: str, on_bytes: OnBytes) -> Iterator[MegaItem]:
        """The items of a split; ``on_bytes`` is told how many bytes were just read.

        Raises ``ValueError`` naming the file, and the item where it is one, for a file that was cut
        short or is no index of fairseq's, for files of different counts, an id that the dictionary does
        not have, a special symbol inside a sequence, and a label that is not one class.
        """
        data = [self._open(folder, split) for folder in self._inputs]
        labels = self._open(LABELS, split)
        for folder, sequences in zip(self._inputs, data, strict=True):
            if len(sequences) != len(labels):
                raise ValueError(
                    f"{self.folder / folder / split}.idx has {len(sequences)} items, but "
                    f"{self.folder / LABELS / split}.idx has {len(labels)} labels"
                )
        told, size = 0, self._bytes_of(split)
        for index in range(len(labels)):
            reached = size * (index + 1) // len(labels)
            on_bytes(reached - told)
            told = reached
            yield MegaItem(
                self._label(labels[index].numpy(), split, index),
                [
                    self._sequence(one[index].numpy(), folder, split, index)
                    for folder, one in zip(self._inputs, data, strict=True)
                ],
            )

    def where(self, split: str, index: int, column: int = 0) -> str:
        """The name of an item for messages."""
        return f"{self.folder / self._inputs[column] / split}.bin, item {index + 1}"

    def _bytes_of(self, split: str) -> int:
        origins = self.origins()
        return sum(o.bytes for name, o in origins.items() if Path(name).stem == split)

    def _check_inputs(self, pair: bool) -> None:
        second = (self.folder / INPUTS[1]).is_dir()
        if pair and not second:
            raise ValueError(
                f"{self.folder} has no {INPUTS[1]}: its items are single sequences, those of another "
                "task; Retrieval is in the folder that Mega calls aan"
            )
        if second and not pair:
            raise ValueError(
                f"{self.folder} has {INPUTS[1]}: its items are pairs, those of Retrieval; prepare "
                "them with python -m megalodon_tasks.recipes.lra.retrieval.prepare"
            )
        for name in self.origins():
            if not (self.folder / name).is_file():
                raise ValueError(
                    f"{self.folder / name} is missing; copy Mega's folder {self.folder.name} whole"
                )

    def _classes(self, classes: Mapping[str, int]) -> dict[int, int]:
        path = self.folder / LABELS / DICTIONARY
        dictionary = _load_dictionary(path)
        names = [_class_name(symbol) for symbol in _symbols(dictionary)]
        found = {dictionary.nspecial + i: classes.get(name) for i, name in enumerate(names)}
        if set(found.values()) != set(classes.values()):
            raise ValueError(
                f"{path}: the labels are {', '.join(names[:20]) or 'none'}, wanted "
                f"{', '.join(classes)}; it belongs to another task"
            )
        return found

    def _open(self, folder: str, split: str) -> MMapIndexedDataset:
        prefix = self.folder / folder / split
        _check_index(prefix)
        return data_utils.load_indexed_dataset(str(prefix), self._dictionary)

    def _label(self, ids: np.ndarray, split: str, index: int) -> int:
        ids = self._without_end(ids)
        class_ = self._class_of.get(int(ids[0])) if len(ids) == 1 else None
        if class_ is None:
            raise ValueError(
                f"{self.folder / LABELS / split}.bin, item {index + 1}: {ids[:10].tolist()} is not "
                f"one label of {self.folder / LABELS / DICTIONARY}, whose labels have the numbers "
                f"{', '.join(map(str, self._class_of))}"
            )
        return class_

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
        end = len(ids) > 0 and ids[-1] == self._dictionary.eos()
        return ids[:-1] if end else ids


def _symbols(dictionary: Dictionary) -> list[str]:
    symbols = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if not symbol.startswith(_FILLING)]


def _class_name(symbol: str) -> str:
    """``1.0`` and ``1`` are the same label."""
    try:
        number = float(symbol)
    except ValueError:
        return symbol
    return str(int(number)) if number.is_integer() else symbol


def _load_dictionary(path: Path) -> Dictionary:
    # fairseq raises plain Exception where the file is not UTF-8
    try:
        path.read_text(encoding="utf-8")
        return Dictionary.load(str(path))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is no dictionary of fairseq: {error}") from None


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
            f"{index} begins with {magic!r}: it is no index of fairseq's kind 'mmap', which Mega's "
            "files have; copy it again"
        )
    wanted = _HEADER.size + count * _ENTRY_BYTES
    if index.stat().st_size != wanted:
        raise ValueError(
            f"{index} has {index.stat().st_size} bytes, wanted {wanted} for {count} items: it was cut "
            "short; copy it again"
        )
    if not count:
        raise ValueError(f"{index} has no items")
    described = MMapIndexedDataset.Index(str(index))
    wanted = int(described.sizes.sum(dtype=np.int64)) * np.dtype(described.dtype).itemsize
    if data.stat().st_size != wanted:
        raise ValueError(
            f"{data} has {data.stat().st_size} bytes, wanted {wanted} as its index says: it was cut "
            "short; copy it again"
        )
