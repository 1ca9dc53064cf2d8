"""Tokens of Text and Retrieval: the bytes of a text, or the symbols of Mega's processed files.

A byte is its own token.  UTF-8 never has the byte 0xFF, and text has no byte 0, so these two are free
for the end token and for padding, and all fits the 256 values of one byte.  Long Range Arena numbers the
same inputs otherwise (padding 0, then byte + 1: 257 tokens, no end token).

Mega's files keep the symbols of their dictionary, after padding, end and an unknown symbol.
"""

import argparse
from collections.abc import Iterator, Mapping

import numpy as np

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.preparing import Preparation, add_rejects_options, from_the_start
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.option_types import whole
from megalodon_tasks.recipes.lra.listops.grammar import OPERATORS
from megalodon_tasks.recipes.lra.mega_files import SPLITS, MegaTokens

PADDING_TOKEN, END_TOKEN = 0, 255
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
#: How many bytes of a text are read by S4 and Mega, whose numbers the paper compares with.
MAX_BYTES = 4000

_EMPTY = (b"", b"b''", b'b""', b"''", b'""')
_MEGA_SPECIAL = (PAD, END, UNKNOWN)
_MEGA_END, _MEGA_UNKNOWN = 1, 2


def _name(byte: int) -> str:
    return chr(byte) if 0x21 <= byte <= 0x7E else f"<{byte:02x}>"


VOCABULARY = (PAD, *(_name(byte) for byte in range(1, 255)), END)


def tokens_of(text: bytes, limit: int = MAX_BYTES) -> np.ndarray:
    """Return the first ``limit`` bytes of a text and an end token, uint8; a character may be cut in two.

    Raises ``ValueError`` with text that follows the name of the item, where the text is empty (only
    white space, or the quotes of an empty string), is not UTF-8, or holds a zero byte.
    """
    if text.strip() in _EMPTY:
        raise ValueError("is empty")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8 text: byte {text[error.start]:#04x} at place {error.start + 1}"
        ) from None
    zero = text.find(b"\0")
    if zero >= 0:
        raise ValueError(f"has a zero byte at place {zero + 1}, as in a damaged file")
    return np.frombuffer(text[:limit] + bytes([END_TOKEN]), dtype=np.uint8)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that Text and Retrieval have in common."""
    parser.add_argument(
        "--max-bytes",
        type=whole(1),
        default=MAX_BYTES,
        help="bytes (of Mega's files: symbols) that are read of a text (default: %(default)s)",
    )
    add_rejects_options(parser)


def mega_preparation(
    mega: MegaTokens, spec: DatasetSpec, title: str, limit: int, rejects: Rejects
) -> Preparation:
    """Prepare Mega's files with the benchmark, columns and classes of ``spec``.

    Sequences are cut at ``limit`` symbols; an item with an empty one goes to ``rejects``.  Raises
    ``ValueError`` for the dictionary of ListOps and for one of more symbols than 16 bits can number.
    """
    operators = set(OPERATORS) & set(mega.symbols)
    if operators:
        raise ValueError(
            f"{mega.dictionary_path} has the symbols {', '.join(sorted(operators))}: it is the "
            f"dictionary of ListOps, not of {title}"
        )
    vocabulary = (*_MEGA_SPECIAL, *mega.symbols)
    if len(vocabulary) > 1 << 16:
        raise ValueError(
            f"{mega.dictionary_path} has {len(mega.symbols)} symbols; those of {title} are single "
            "characters, so this is the dictionary of other data"
        )
    column = ColumnSpec("uint8" if len(vocabulary) <= 1 << 8 else "uint16")
    spec = DatasetSpec(
        benchmark=spec.benchmark,
        kind=spec.kind,
        columns=dict.fromkeys(spec.columns, column),
        classes=spec.classes,
        vocabulary=vocabulary,
        source={
            "settings": {"tokens": "symbols of Mega's dictionary", "longest": limit},
            "origin": origin_of(mega.folder, "mega"),
            "split_rule": "the splits of Mega's files",
            "published": {
                "settings": {"longest": MAX_BYTES},
                "counts": spec.source["published"]["counts"],
            },
        },
    )
    splits = {s: from_the_start(_mega_items, mega, s, spec.columns, limit, rejects) for s in SPLITS}
    return Preparation(title, spec, mega.origins(), splits, rejects)


def _mega_items(
    mega: MegaTokens,
    split: str,
    columns: Mapping[str, ColumnSpec],
    limit: int,
    rejects: Rejects,
    on_bytes: OnBytes,
) -> Iterator[Item]:
    token_of = np.zeros(mega.first_symbol + len(mega.symbols), np.int64)
    token_of[mega.unknown] = _MEGA_UNKNOWN
    token_of[mega.first_symbol :] = len(_MEGA_SPECIAL) + np.arange(len(mega.symbols))
    for index, item in enumerate(mega.items(split, on_bytes)):
        empty = [place for place, ids in enumerate(item.sequences) if not len(ids)]
        if empty:
            rejects.add(mega.where(split, index, empty[0]), "is empty")
            continue
        sequences = [np.append(token_of[ids[:limit]], _MEGA_END) for ids in item.sequences]
        yield item.label, dict(zip(columns, sequences, strict=True))
