"""Text to the tokens of a corpus and back: bytes, SentencePiece pieces, or words.

All three give fairseq's numbering: 0 to 3 are ``<s> <pad> </s> <unk>``, then the dictionary in its
order.  Bytes are named by fairseq's own byte alphabet and pieces by their own text, so that fairseq's
tools work on the same data with ``--bpe bytes`` and ``--bpe sentencepiece``.
"""

import codecs
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.encoders.byte_utils import BYTE_TO_BCHAR, SPACE, SPACE_ESCAPE

from megalodon_tasks.data.corpus import DICTIONARY, Corpus, CorpusForm
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.manifest import sha256_of
from megalodon_tasks.files import atomic_file

SPECIALS = 4
# Words that fairseq's dictionary takes for its own symbols; <unk> in a text means what it says.
RESERVED = frozenset({"<s>", "<pad>", "</s>"})
FILLER = "madeupword"  # how fairseq names the symbols that fill a dictionary up
MODEL_FILE = "sentencepiece.model"
# 32,000 pieces become the 32,128 rows of T5's vocabulary, which PG-19's baselines use.
PIECES_MULTIPLE = 128


class Tokenizer(Protocol):
    """Turns text into tokens and back.

    ``eos``: fairseq's end token.  ``ends_document``: it ends a document, and not a line.
    """

    eos: int
    ends_document: bool

    def description(self) -> dict[str, Any]:
        """Return what the manifest stores of it."""
        ...

    def dictionary(self) -> Dictionary:
        """Return fairseq's dictionary."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, (tokens,) int64, without an end token."""
        ...

    def text_tokens(self) -> range:
        """Return the range of the tokens that stand for text."""
        ...

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of ``tokens`` in parts, each as soon as it is certain."""
        ...


class ByteTokenizer:
    """Each byte of the UTF-8 text is a token: 4 + its value."""

    eos, ends_document = 2, True

    def description(self) -> dict[str, Any]:
        """Return what the manifest stores of it."""
        return {"kind": "bytes"}

    def dictionary(self) -> Dictionary:
        """Return the same 260 symbols for every corpus."""
        result = Dictionary()
        for byte in range(256):
            result.add_symbol(BYTE_TO_BCHAR[byte].replace(SPACE, SPACE_ESCAPE))
        return result

    def encode(self, text: str) -> np.ndarray:
        """Return the bytes of a text as tokens, (bytes,) int64."""
        return self.encode_bytes(text.encode("utf-8"))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Return any bytes as tokens, (bytes,) int64."""
        return np.frombuffer(data, np.uint8).astype(np.int64) + SPECIALS

    def text_tokens(self) -> range:
        """Return all tokens but the special ones."""
        return range(SPECIALS, SPECIALS + 256)

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield a character when its last byte is there; what is not UTF-8 becomes U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if token >= SPECIALS:
                yield decoder.decode(bytes([token - SPECIALS]))
        yield decoder.decode(b"", final=True)


class SentencePieceTokenizer:
    """The pieces of a SentencePiece model; fairseq's special symbols replace its own."""

    eos, ends_document = 2, True

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise ValueError(f"there is no SentencePiece model {model}")
        self.model = model
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model} is not a SentencePiece model: {error}") from None
        special = (self.processor.is_unknown, self.processor.is_control, self.processor.is_unused)
        pieces = range(self.processor.get_piece_size())
        self._pieces = [i for i in pieces if not any(test(i) for test in special)]
        self._ids = np.full(len(pieces), Dictionary().unk())
        self._ids[self._pieces] = np.arange(len(self._pieces)) + SPECIALS

    def __getstate__(self) -> Path:
        return self.model

    def __setstate__(self, model: Path) -> None:
        self.__init__(model)

    def description(self) -> dict[str, Any]:
        """Return what the manifest stores of it."""
        return {"kind": "sentencepiece", "model": MODEL_FILE, "sha256": sha256_of(self.model)}

    def dictionary(self) -> Dictionary:
        """Return the pieces in the model's order, padded to a multiple of 128.

        Raises ``ValueError`` for a piece that fairseq's ``dict.txt`` cannot hold.
        """
        result = Dictionary()
        for i in self._pieces:
            piece = self.processor.id_to_piece(i)
            if piece in result or set(piece) & set(" \n\r"):
                raise ValueError(
                    f"{self.model}: piece {i}, {piece!r}, is special or has a space or line break in "
                    "it, which fairseq's dict.txt cannot hold; train the model on lines of text"
                )
            result.add_symbol(piece)
        result.pad_to_multiple_(PIECES_MULTIPLE)
        return result

    def encode(self, text: str) -> np.ndarray:
        """Return the pieces of a text, (pieces,) int64."""
        return self._ids[np.asarray(self.processor.encode(text), np.int64)]

    def text_tokens(self) -> range:
        """Return all tokens but the special ones and those that pad the vocabulary."""
        return range(SPECIALS, SPECIALS + len(self._pieces))

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield what each piece adds; a character of several byte pieces comes with its last."""
        pieces: list[int] = []
        shown = ""
        for token in tokens:
            if token not in self.text_tokens():
                continue
            pieces.append(self._pieces[token - SPECIALS])
            text = self.processor.decode(pieces)
            if text.endswith("\ufffd"):
                continue
            yield text[len(shown) :]
            shown = text
            if len(pieces) > 64:  # keep two, so that spaces at the seam stay as they are
                pieces = pieces[-2:]
                shown = self.processor.decode(pieces)


def refuse_reserved(line: str, where: str) -> None:
    """Raise ``ValueError`` if a word of ``line``, which is at ``where``, is a special symbol."""
    found = RESERVED.intersection(line.split())
    if found:
        word = min(found)
        raise ValueError(
            f"{where} has the word {word!r}, which is a special symbol of fairseq's dictionary; write "
            f"it otherwise, such as {word.replace('<', '< ').replace('>', ' >')!r}"
        )


class WordTokenizer:
    """Words between spaces and an end token at each line, as ``fairseq-preprocess`` writes."""

    eos, ends_document = 2, False

    def __init__(self, dictionary: Dictionary) -> None:
        self._dictionary = dictionary

    def description(self) -> dict[str, Any]:
        """Return what the manifest stores of it."""
        return {"kind": "words"}

    def dictionary(self) -> Dictionary:
        """Return the words by frequency."""
        return self._dictionary

    def encode(self, text: str) -> np.ndarray:
        """Return words, (words,) int64: a line break is the end token, an unknown word ``<unk>``.

        Raises ``ValueError`` for a word that is a special symbol.
        """
        lines = text.split("\n")
        for number, line in enumerate(lines, start=1):
            refuse_reserved(line, f"line {number} of the text")
        ids = [
            self._dictionary.encode_line(
                line, add_if_not_exist=False, append_eos=i < len(lines) - 1
            )
            for i, line in enumerate(lines)
        ]
        return np.concatenate([part.numpy() for part in ids]).astype(np.int64)

    def text_tokens(self) -> range:
        """Return all words, the unknown one among them, without those that pad the dictionary."""
        end = len(self._dictionary)
        while self._dictionary.count[end - 1] == 0 and self._dictionary[end - 1].startswith(FILLER):
            end -= 1
        return range(self._dictionary.unk(), end)

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield words with a space after each, and line breaks."""
        for token in tokens:
            yield "\n" if token == self.eos else f"{self._dictionary[token]} "


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> tuple[str, ...]:
    """Write the dictionary, and the model of SentencePiece, into ``folder``; return their names."""
    if not (folder / DICTIONARY).is_file():
        with atomic_file(folder / DICTIONARY, "w") as stream:
            tokenizer.dictionary().save(stream)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return (DICTIONARY,)
    if tokenizer.model != folder / MODEL_FILE:
        shutil.copyfile(tokenizer.model, folder / MODEL_FILE)
    return DICTIONARY, MODEL_FILE


def with_tokenizer(form: CorpusForm, tokenizer: Tokenizer, inside: Path) -> CorpusForm:
    """Add ``tokenizer`` to ``form``, and its files to the folder ``inside``."""
    return replace(
        form,
        tokenizer=tokenizer.description(),
        symbols=len(tokenizer.dictionary()),
        extra_files=save_tokenizer(tokenizer, inside),
    )


def tokenizer_of(folder: Path, description: dict[str, Any], dictionary: Dictionary) -> Tokenizer:
    """Return the tokenizer that the manifest of ``folder`` describes.

    Raises ``ValueError`` if its kind is unknown, a file is missing, or ``dictionary`` does not fit.
    """
    kind = description.get("kind")
    if kind == "words":
        return WordTokenizer(dictionary)
    if kind == "bytes":
        result: Tokenizer = ByteTokenizer()
    elif kind == "sentencepiece":
        result = SentencePieceTokenizer(folder / description["model"])
    else:
        raise ValueError(f"{folder}: tokenizer kind {kind!r} is unknown; prepare the data again")
    if result.dictionary() != dictionary:
        raise ValueError(
            f"{folder / DICTIONARY} is not the dictionary of the corpus's {kind} tokenizer; "
            "prepare the data again"
        )
    return result


def corpus_tokenizer(corpus: Corpus) -> Tokenizer:
    """Return the tokenizer of a corpus; raise what :func:`tokenizer_of` raises."""
    dictionary = read_dictionary(corpus.folder / DICTIONARY)
    return tokenizer_of(corpus.folder, corpus.tokenizer, dictionary)
