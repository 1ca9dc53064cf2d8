"""Folders of text files, one document each: ``train/*.txt``, ``validation/*.txt``, ``test/*.txt``."""

import re
from pathlib import Path

import numpy as np

from megalodon_tasks.data.corpus import Document
from megalodon_tasks.data.sources import listing
from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.files import read_bytes

FOLDERS = {"train": ("train",), "valid": ("validation", "valid", "val"), "test": ("test",)}
WORDS_RULE = "counted between white space in the text as published"


def find_files(source: Path) -> dict[str, list[Path]]:
    """Find the text files of each split, in the order of the numbers in their names.

    Raises ``ValueError`` naming the folder that is missing or holds no ``.txt`` file.
    """
    if not source.is_dir():
        raise ValueError(
            f"{source} is not a folder; expected the one with train, validation and test"
        )
    found = {}
    for split, names in FOLDERS.items():
        folder = next((source / name for name in names if (source / name).is_dir()), None)
        if folder is None:
            raise ValueError(
                f"{source / names[0]} is missing; the corpus has train, validation, test"
            )
        found[split] = sorted(
            (path for path in listing(folder) if path.suffix == ".txt"), key=_natural
        )
        if not found[split]:
            raise ValueError(f"{folder} holds no .txt file")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def decoded(data: bytes) -> tuple[str, str | None]:
    """Return the text, and what is wrong with it or None."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}"
    return text, None if text.strip() else "is empty"


def read_document(tokenizer: Tokenizer, path: Path) -> Document:
    """Read the file as one item that ends in the end token."""
    data = read_bytes(path)
    text, damage = decoded(data)
    if damage is not None:
        return Document(str(path), bytes=len(data), damage=damage)
    tokens = np.append(tokenizer.encode(text), tokenizer.eos).astype(np.uint32)
    return Document(str(path), (tokens,), len(text.split()), len(text), len(data))
