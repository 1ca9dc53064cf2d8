"""Prepare enwik8: the first 100,000,000 bytes of a Wikipedia dump, split 90 / 5 / 5 million.

    megalodon prepare lm/enwik8 SOURCE OUT

SOURCE is the file ``enwik8``, ``enwik8.zip``, or a folder with one of them.  Tokens are bytes, and a
split is one document without end tokens, stored as items of a mebibyte.  The published "bits per
character" are bits per byte.
"""

import functools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.corpus import CorpusForm, Document, read_corpus
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sources import Origin
from megalodon_tasks.data.tokenizers import ByteTokenizer, with_tokenizer
from megalodon_tasks.files import read_bytes
from megalodon_tasks.recipes.lm import prepare_text, text_files

NAME = "enwik8"
SIZE = 100_000_000
SHARES = {"train": (0, 90), "valid": (90, 95), "test": (95, 100)}  # percent
ITEM = 1 << 20


def find_file(source: Path) -> Path:
    """Find the file or archive; raise ``ValueError`` if there is none."""
    if source.is_file():
        return source
    for name in ("enwik8", "enwik8.zip"):
        if (source / name).is_file():
            return source / name
    raise ValueError(f"{source} holds neither enwik8 nor enwik8.zip; pass that file or its folder")


def read_file(path: Path, size: int = SIZE) -> bytes:
    """Read all of enwik8; raise ``ValueError`` if it is truncated, too long, or not in the archive."""
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                found = archive.getinfo("enwik8").file_size
                data = archive.read("enwik8") if found == size else b""
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise ValueError(f"{path} is no archive that holds enwik8: {error}") from None
    else:
        data = read_bytes(path)
        found = len(data)
    if found != size:
        raise ValueError(
            f"{path} holds {found:,} bytes, enwik8 has {size:,}; the copy was cut short or is of "
            "another file: fetch it again"
        )
    return data


def prepare(source: Path, out: Path, size: int = SIZE) -> bool:
    """Prepare enwik8 in ``out``; return False if it is there already, from the same file.

    Raises ``ValueError`` as :func:`find_file` and :func:`read_file` do.
    """
    path = find_file(source)
    form = CorpusForm(
        benchmark=NAME,
        source={
            "origin": "release",
            "split_rule": "90, 5 and 5 % of the bytes in their order",
            "settings": {"item": ITEM},
            "published": {
                "counts": {"bytes": {s: SIZE * (b - a) // 100 for s, (a, b) in SHARES.items()}}
            },
        },
        words_rule=text_files.WORDS_RULE,
        one_item_each=False,
    )
    return preparing.Preparation(
        title=NAME,
        form=form,
        origins={"enwik8": Origin.of_file(path)},
        splits={split: functools.partial(_read, path, size, split) for split in SHARES},
        complete=lambda form, inside: with_tokenizer(form, ByteTokenizer(), inside),
        total=size,
    ).write(out)


def _read(path: Path, size: int, split: str, first: int, on_bytes: OnBytes) -> Iterator[Document]:
    begin, end = (size * share // 100 for share in SHARES[split])
    data = read_file(path, size)[begin:end]
    on_bytes(len(data))
    if first:
        return
    tokens = ByteTokenizer().encode_bytes(data)
    # of a character that takes several bytes, all but the first are 10xxxxxx
    characters = int(np.count_nonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80))
    items = tuple(tokens[i : i + ITEM] for i in range(0, len(tokens), ITEM))
    yield Document(split, items, len(data.split()), characters, len(data))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lm/enwik8",
        "Prepare enwik8 for language modelling.",
        "enwik8, enwik8.zip, or their folder",
    )
    options = parser.parse_args(arguments)
    return preparing.run(
        parser,
        options,
        lambda: prepare(options.source, options.out),
        prepare_text.report,
        read_corpus,
    )
