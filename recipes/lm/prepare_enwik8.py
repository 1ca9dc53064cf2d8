"""Prepare enwik8: the first 100,000,000 bytes of a Wikipedia dump, split 90 / 5 / 5 million.

    python -m megalodon_tasks.recipes.lm.prepare_enwik8 SOURCE OUT

SOURCE is the file ``enwik8``, ``enwik8.zip``, or a folder with one of them.  Tokens are bytes, and a
split is one document without end tokens, kept as items of a mebibyte.  The published "bits per
character" are bits per byte.
"""

import argparse
import functools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data.corpus_writer import CorpusPlan, Document, is_current, write_corpus
from megalodon_tasks.data.progress import progress_bar
from megalodon_tasks.data.tokenizers import ByteTokenizer
from megalodon_tasks.recipes.lm import prepare_text, text_files

NAME = "enwik8"
SIZE = 100_000_000
SHARES = {"train": (0, 90), "valid": (90, 95), "test": (95, 100)}  # percent
ITEM = 1 << 20


def find_file(source: Path) -> Path:
    """The file or archive.  Raises ``ValueError`` if there is none."""
    if source.is_file():
        return source
    for name in ("enwik8", "enwik8.zip"):
        if (source / name).is_file():
            return source / name
    raise ValueError(f"{source} holds neither enwik8 nor enwik8.zip; pass that file or its folder")


def read_file(path: Path, size: int = SIZE) -> bytes:
    """All of enwik8.  Raises ``ValueError`` if it is truncated, too long, or in a damaged archive."""
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                data = archive.read("enwik8")
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ValueError(f"{path} is no archive that holds enwik8: {error}") from None
    else:
        data = path.read_bytes()
    if len(data) != size:
        raise ValueError(
            f"{path} holds {len(data):,} bytes, enwik8 has {size:,}; the copy was cut short or is of "
            "another file: fetch it again"
        )
    return data


def prepare(source: Path, out: Path, size: int = SIZE, *, hidden: bool = False) -> bool:
    """Prepare enwik8 in ``out``; return False if it is there already, from the same file.

    Raises ``ValueError`` as :func:`find_file` and :func:`read_file` do.
    """
    path = find_file(source)
    status = path.stat()
    settings = {"file": [path.name, status.st_size, status.st_mtime_ns], "item": ITEM}
    identity = {"name": NAME, "settings": settings}
    if is_current(out, identity):
        return False
    data = read_file(path, size)
    parts = {
        split: data[size * first // 100 : size * last // 100]
        for split, (first, last) in SHARES.items()
    }
    tokenizer = ByteTokenizer()

    def plan(inside: Path) -> CorpusPlan:
        return CorpusPlan(
            tokenizer=tokenizer.description(),
            dictionary=tokenizer.dictionary(),
            splits={
                split: functools.partial(_one_document, split, part)
                for split, part in parts.items()
            },
            words_rule=text_files.WORDS_RULE,
            one_item_each=False,
        )

    with progress_bar(
        total=size, label="preparing enwik8", unit="B", scale=True, hidden=hidden
    ) as bar:
        write_corpus(out, identity, plan, bar.update)
    return True


def _one_document(split: str, data: bytes, first: int) -> Iterator[Document]:
    if first:
        return
    tokens = ByteTokenizer().encode_bytes(data)
    # of a character that takes several bytes, all but the first are 10xxxxxx
    characters = int(np.count_nonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80))
    items = tuple(tokens[i : i + ITEM] for i in range(0, len(tokens), ITEM))
    yield Document(split, items, len(data.split()), characters, len(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lm.prepare_enwik8",
        description="Prepare enwik8 for language modelling.",
    )
    parser.add_argument("source", type=Path, help="enwik8, enwik8.zip, or their folder")
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    options = parser.parse_args(arguments)
    prepare_text.run(parser, options.out, lambda: prepare(options.source, options.out))


if __name__ == "__main__":
    main()
