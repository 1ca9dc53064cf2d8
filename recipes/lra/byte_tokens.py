"""Text as bytes, one token each, for the tasks Text and Retrieval.

A byte is its own token.  UTF-8 never has the byte 0xFF, and text has no byte 0, so these two are free
for the end token and for padding, and all fits the 256 values of one byte.  Long Range Arena numbers
otherwise (padding 0, then byte + 1: 257 tokens, no end token), which tells the same inputs apart.
"""

import argparse

import numpy as np

from megalodon_tasks.data.preparing import add_strict_option

PADDING_TOKEN, END_TOKEN = 0, 255
PAD, END = "<pad>", "</s>"
#: How many bytes of a text are read by S4 and Mega, whose numbers the paper compares with.
MAX_BYTES = 4000

_EMPTY = (b"", b"b''", b'b""', b"''", b'""')


def _name(byte: int) -> str:
    return chr(byte) if 0x21 <= byte <= 0x7E else f"<{byte:02x}>"


VOCABULARY = (PAD, *(_name(byte) for byte in range(1, 255)), END)


def text_of(tokens: np.ndarray) -> bytes:
    """The bytes that the tokens (uint8, with their end token) stand for."""
    return tokens[:-1].tobytes()


def tokens_of(text: bytes, limit: int = MAX_BYTES) -> np.ndarray:
    """The first ``limit`` bytes of a text and an end token, uint8; a character may be cut in two.

    Raises ``ValueError`` that goes on after the name of the text, where it is empty (white space alone,
    or the quotes of an empty string), is not UTF-8, or holds a zero byte.
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
    """The options that Text and Retrieval have in common."""
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=MAX_BYTES,
        help="bytes (of Mega's files: symbols) that are read of a text (default: %(default)s)",
    )
    add_strict_option(parser)
