"""The tokens of one split of a corpus, end to end, readable from any place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary

from megalodon_tasks.data.conversations import is_answer, template_of
from megalodon_tasks.data.corpus import CorpusSplit, read_corpus
from megalodon_tasks.data.manifest import MANIFEST

# What separates documents: nothing, each line is one, lines without words divide them, or as the
# manifest says.
DOCUMENTS = ("none", "line", "blank", "corpus")


class TokenStream:
    """All lines of a split as one sequence of N tokens, each line with the EOS that ends it.

    ``parts``: the split, or its parts one after the other.  ``name``: the split in messages.
    ``line_ends``: (lines,) int64, where each line ends.  ``document_starts``: increasing positions at
    which a document begins; empty with documents ``none``.  ``answers_only``: targets that belong to no
    answer of a conversation are padding.
    """

    def __init__(
        self,
        parts: Sequence[CorpusSplit],
        dictionary: Dictionary,
        name: str = "tokens",
        documents: str = "none",
        answers_only: bool = False,
    ) -> None:
        if documents not in DOCUMENTS:
            raise ValueError(
                f"task.documents={documents!r} is unknown; choose one of {', '.join(DOCUMENTS)}"
            )
        self.parts, self.name, self.answers_only = parts, name, answers_only
        self.vocab_size, self.eos, self.pad = len(dictionary), dictionary.eos(), dictionary.pad()
        sizes = np.concatenate([part.sizes for part in parts])
        self.line_ends = np.cumsum(sizes)
        self.document_starts = self._document_starts(sizes, documents)

    def __len__(self) -> int:
        return int(self.line_ends[-1])

    def _document_starts(self, sizes: np.ndarray, documents: str) -> np.ndarray:
        starts = self.line_ends - sizes
        if documents == "none":
            return starts[:0]
        if documents == "corpus":
            return np.unique(starts[self.parts[0].first_items])
        if documents == "line":
            return starts[sizes > 0]
        blank = sizes <= 1  # nothing but EOS
        return starts[~blank & np.concatenate(([True], blank[:-1]))]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read tokens ``start`` to ``stop``, (stop - start,) int64.

        Raises ``ValueError`` for a token that is not in the vocabulary.
        """
        found, begin = [np.empty(0, np.int64)], 0
        for part in self.parts:
            end = begin + int(part.sizes.sum())
            if start < min(stop, end) and begin < stop:
                found.append(part.tokens(max(start - begin, 0), min(stop, end) - begin))
            begin = end
        tokens = torch.from_numpy(np.concatenate(found))
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            at = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"{self.name}: token id {int(tokens[at])} at position {start + at} is out of range: "
                f"dict.txt has {self.vocab_size} symbols; use the one that the data was prepared with"
            )
        return tokens

    def source_and_target(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what stands before each of the tokens ``start`` to ``stop``, and these; both int64.

        Before the first token of all, and of each document, stands EOS.  With ``answers_only`` other
        targets are padding.
        """
        target = self.read(start, stop)
        previous = self.read(start - 1, start) if start else target.new_tensor([self.eos])
        source = torch.cat((previous, target))[:-1]
        source[self.starts_between(start, stop)] = self.eos
        if self.answers_only:
            items = np.searchsorted(self.line_ends, np.arange(start, stop), side="right")
            target = target.masked_fill(torch.from_numpy(~is_answer(items)), self.pad)
        return source, target

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """Return where documents begin in ``start`` to ``stop``, counted from ``start``."""
        low, high = np.searchsorted(self.document_starts, (start, stop))
        return self.document_starts[low:high] - start


def open_stream(
    folder: Path,
    split: str,
    dictionary: Dictionary,
    documents: str = "none",
    combine: bool = False,
    answers_only: bool = False,
) -> TokenStream:
    """Open a split of ``folder``; with ``combine`` also ``split1``, ``split2`` and so on.

    Raises ``ValueError`` where files are missing, empty or damaged, with documents ``corpus`` where
    the manifest is missing or describes only the first part, and with ``answers_only`` for data that is
    not of conversations.
    """
    corpus = read_corpus(folder)
    parts = [corpus.split(split)]
    while combine and (folder / f"{split}{len(parts)}.idx").is_file():
        parts.append(CorpusSplit(folder, f"{split}{len(parts)}", None))
    if documents == "corpus" and corpus.manifest is None:
        raise ValueError(
            f"task.documents=corpus: {folder} has no {MANIFEST}, which says where documents begin; "
            "prepare it with a recipe, or choose line or blank"
        )
    if documents == "corpus" and len(parts) > 1:
        raise ValueError(
            f"task.documents=corpus: split {split!r} of {folder} has {len(parts)} parts, and {MANIFEST} "
            f"describes only the first; move {parts[1].name}.idx away, or choose line or blank"
        )
    if answers_only:
        template_of(corpus)  # raises for a corpus without answers
    name = f"split {split!r} of {folder}"
    return TokenStream(parts, dictionary, name, documents, answers_only)
