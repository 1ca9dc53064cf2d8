"""The tokens of one split that ``fairseq-preprocess`` wrote, end to end, readable from any place."""

from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils, indexed_dataset

from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.manifest import MANIFEST

# How documents are told apart: not at all, each line is one, lines without words divide them, or as
# the manifest says.
DOCUMENTS = ("none", "line", "blank", "corpus")


class TokenStream:
    """All lines of a split as one sequence of N tokens, each line with the EOS that ends it.

    ``line_ends``: (lines,) int64, where each line ends.  ``name``: the split in messages.
    ``document_starts``: increasing positions at which a document begins; empty with documents ``none``.
    ``first_lines``: the line that each document begins with, for documents ``corpus``.
    """

    def __init__(
        self,
        lines: FairseqDataset,
        dictionary: Dictionary,
        name: str = "tokens",
        documents: str = "none",
        first_lines: np.ndarray | None = None,
    ) -> None:
        if documents not in DOCUMENTS:
            raise ValueError(
                f"task.documents={documents!r} is unknown; choose one of {', '.join(DOCUMENTS)}"
            )
        self.lines, self.name = lines, name
        self.vocab_size, self.eos, self.pad = len(dictionary), dictionary.eos(), dictionary.pad()
        sizes = np.asarray(lines.sizes, dtype=np.int64)
        self.line_ends = np.cumsum(sizes)
        if len(self) == 0:
            raise ValueError(f"{name} holds no tokens; prepare it again from a file that has text")
        self.document_starts = self._document_starts(sizes, documents, first_lines)

    def __len__(self) -> int:
        return int(self.line_ends[-1]) if len(self.line_ends) else 0

    def _document_starts(
        self, sizes: np.ndarray, documents: str, first_lines: np.ndarray | None
    ) -> np.ndarray:
        starts = self.line_ends - sizes
        if documents == "none":
            return starts[:0]
        if documents == "corpus":
            assert first_lines is not None, "documents of a corpus without its first lines"
            return np.unique(starts[first_lines])
        if documents == "line":
            return starts[sizes > 0]
        blank = sizes <= 1  # nothing but EOS
        return starts[~blank & np.concatenate(([True], blank[:-1]))]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Tokens ``start`` to ``stop``, (stop - start,) int64.

        Raises ``ValueError`` for a token that is not in the vocabulary.
        """
        if start >= stop:
            return torch.empty(0, dtype=torch.int64)
        first = int(np.searchsorted(self.line_ends, start, side="right"))
        last = int(np.searchsorted(self.line_ends, stop, side="left"))
        lines = [self.lines[i].long() for i in range(first, last + 1)]
        before = int(self.line_ends[first - 1]) if first else 0
        tokens = torch.cat(lines)[start - before : stop - before]
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            at = int(((tokens < 0) | (tokens >= self.vocab_size)).nonzero()[0, 0])
            raise ValueError(
                f"{self.name}: token id {int(tokens[at])} at position {start + at} is out of range: "
                f"dict.txt has {self.vocab_size} symbols; use the one that the data was prepared with"
            )
        return tokens

    def source_and_target(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What to predict, tokens ``start`` to ``stop``, and what stands before each; both int64.

        Before the first token of all, and of each document, stands EOS.
        """
        target = self.read(start, stop)
        previous = self.read(start - 1, start) if start else target.new_tensor([self.eos])
        source = torch.cat((previous, target))[:-1]
        source[self.starts_between(start, stop)] = self.eos
        return source, target

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """Where documents begin in ``start`` to ``stop``, counted from ``start``."""
        low, high = np.searchsorted(self.document_starts, (start, stop))
        return self.document_starts[low:high] - start


def open_stream(
    folder: Path, split: str, dictionary: Dictionary, documents: str = "none", combine: bool = False
) -> TokenStream:
    """Open ``folder/split.bin`` and ``.idx``; with ``combine`` also ``split1``, ``split2`` and so on.

    Raises ``ValueError`` where they are missing, empty or damaged, and with documents ``corpus`` where
    the manifest is missing or of other data.
    """
    prefix = folder / split
    if indexed_dataset.infer_dataset_impl(str(prefix)) is None:
        found = ", ".join(sorted(path.stem for path in folder.glob("*.idx"))) or "none"
        raise ValueError(
            f"{folder} has no split {split!r} ({split}.bin, {split}.idx); it has {found}"
        )
    lines = data_utils.load_indexed_dataset(str(prefix), dictionary, combine=combine)
    name = f"split {split!r} of {folder}"
    if lines is None or len(lines) == 0:
        raise ValueError(f"{name} holds no lines; prepare it again from a file that has text")
    try:
        whole = len(lines[len(lines) - 1]) == lines.sizes[-1]
    except (ValueError, OSError, RuntimeError):
        whole = False
    if not whole:
        size = prefix.with_name(f"{split}.bin").stat().st_size
        raise ValueError(
            f"{name}: {split}.bin is shorter than {split}.idx says ({size} bytes); prepare it again"
        )
    first_lines = _first_lines(folder, split, len(lines)) if documents == "corpus" else None
    return TokenStream(lines, dictionary, name, documents, first_lines)


def _first_lines(folder: Path, split: str, lines: int) -> np.ndarray:
    """The line that each document of a split begins with, as the manifest says."""
    corpus = read_corpus(folder)
    if corpus.manifest is None:
        raise ValueError(
            f"task.documents=corpus: {folder} has no {MANIFEST}, which says where documents begin; "
            "prepare it with a recipe, or choose line or blank"
        )
    found = corpus.split(split)
    if found.info.items != lines:
        raise ValueError(
            f"task.documents=corpus: split {split!r} of {folder} has {lines} lines, {MANIFEST} says "
            f"{found.info.items}; further parts of a split ({split}1 and so on) are not described there"
        )
    return found.first_items
