"""Folders of text files, one document each: ``train/*.txt``, ``validation/*.txt``, ``test/*.txt``."""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data.corpus_writer import Document, ReadFrom
from megalodon_tasks.data.parallel import in_turns
from megalodon_tasks.data.tokenizers import Tokenizer

FOLDERS = {"train": ("train",), "valid": ("validation", "valid", "val"), "test": ("test",)}
WORDS_RULE = "counted between white space in the text as published"


def find_files(source: Path) -> dict[str, list[Path]]:
    """The text files of each split, in the order of the numbers in their names.

    Raises ``ValueError`` naming the folder that is missing or holds no ``.txt`` file.
    """
    if not source.is_dir():
        raise ValueError(
            f"{source} is not a folder; wanted the one with train, validation and test"
        )
    found = {}
    for split, names in FOLDERS.items():
        folder = next((source / name for name in names if (source / name).is_dir()), None)
        if folder is None:
            raise ValueError(
                f"{source / names[0]} is missing; the corpus has train, validation, test"
            )
        found[split] = sorted(folder.glob("*.txt"), key=_natural)
        if not found[split]:
            raise ValueError(f"{folder} holds no .txt file")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def identity_of(files: dict[str, list[Path]]) -> dict[str, list[int]]:
    """Per split the number of files, their size, and when one of them last changed (ns)."""
    result = {}
    for split, paths in files.items():
        status = [path.stat() for path in paths]
        newest = max(one.st_mtime_ns for one in status)
        result[split] = [len(status), sum(one.st_size for one in status), newest]
    return result


def decoded(data: bytes) -> tuple[str, str | None]:
    """The text, and what is wrong with it if something is."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}"
    return text, None if text.strip() else "is empty"


def read_document(path: Path, tokenizer: Tokenizer) -> Document:
    """The file as one item that ends in the end token."""
    data = path.read_bytes()
    text, damage = decoded(data)
    if damage is not None:
        return Document(str(path), bytes=len(data), damage=damage)
    tokens = np.append(tokenizer.encode(text), tokenizer.eos).astype(np.uint32)
    return Document(str(path), (tokens,), len(text.split()), len(text), len(data))


def reader(paths: Sequence[Path], tokenizer: Tokenizer, workers: int) -> ReadFrom:
    """The documents in ``paths``, read and tokenized by ``workers`` processes."""

    def read(first: int) -> Iterator[Document]:
        work = functools.partial(_every_so_many, [str(p) for p in paths[first:]], tokenizer)
        return in_turns(work, workers)

    return read


def _every_so_many(
    paths: Sequence[str], tokenizer: Tokenizer, first: int, step: int
) -> Iterator[Document]:
    for path in paths[first::step]:
        yield read_document(Path(path), tokenizer)
