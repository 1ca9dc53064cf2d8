"""Evaluate a language model on whole documents: all measures, and an evaluation that can be resumed.

With N the sum of the negative log-likelihoods of all tokens in nats, end tokens included:
``perplexity = exp(N / tokens)``, ``word_perplexity = exp(N / words)`` (Rae et al., arXiv 1911.05507,
section 4.2), ``bits_per_character = N / ln 2 / characters``, ``bits_per_byte`` likewise.
"""

import bz2
import ctypes
import itertools
import lzma
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from megalodon_tasks.data.corpus import Corpus, CorpusSplit, SplitInfo
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.data.tokenizers import SPECIALS
from megalodon_tasks.evaluation.dynamic import Adaptation
from megalodon_tasks.evaluation.long_context import (
    Position,
    Totals,
    counted_from,
    perplexity,
    read_document,
)
from megalodon_tasks.evaluation.shuffled import ShuffledSplit
from megalodon_tasks.files import atomic_file
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.signals import handled, is_repeated

# measure -> what it is counted by, a field of SplitInfo; the first that is known is the default
UNITS = {
    "word_perplexity": "words",
    "perplexity": "tokens",
    "bits_per_character": "characters",
    "bits_per_byte": "bytes",
}
SAVE_SECONDS = 30.0
COMPRESSORS = {
    "bz2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}

# M_MMAP_THRESHOLD of mallopt(3), and the size of buffers that are returned to the system.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 20


class Progress:
    """The file that lets a stopped evaluation continue: sums, position and state."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._saved, self._pause = time.monotonic(), SAVE_SECONDS

    def load(
        self, first_context: int, adaptation: Adaptation | None = None
    ) -> tuple[Totals, Position]:
        """Return what an evaluation of the same model and data saved, else the beginning.

        adaptation: gets the weights that it had.
        """
        if not self.path.is_file():
            return Totals(first_context), Position()
        try:
            plain = torch.load(self.path, weights_only=True)
            if plain["identity"] == self.identity:
                saved = Totals(**plain["totals"]), Position.from_plain(plain["position"])
                if adaptation is not None:
                    adaptation.restore(plain["weights"])
                return saved
            reason = "is of another evaluation"
        except Exception as error:  # whatever a damaged file raises, only time is lost
            reason = f"is damaged ({type(error).__name__})"
        print(f"{self.path} {reason}; starting from the beginning", file=sys.stderr)
        return Totals(first_context), Position()

    def save(
        self, totals: Totals, position: Position, adaptation: Adaptation | None = None
    ) -> None:
        """Write the file now."""
        begin = time.monotonic()
        plain = {
            "identity": self.identity,
            "totals": asdict(totals),
            "position": position.to_plain(),
            "weights": None if adaptation is None else adaptation.weights,
        }
        with atomic_file(self.path) as stream:
            torch.save(plain, stream)
        self._saved = time.monotonic()
        self._pause = max(SAVE_SECONDS, 20 * (self._saved - begin))

    def is_due(self) -> bool:
        """Return whether the last save is some time ago, and long ago for one that took long."""
        return time.monotonic() - self._saved > self._pause

    def remove(self) -> None:
        """Delete the file of an evaluation that is complete."""
        self.path.unlink(missing_ok=True)


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C instead of raising, so that sums and position stay consistent.

    A second Ctrl-C interrupts at once.
    """
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        repeated = is_repeated()
        if interrupted.is_set() and not repeated:
            signal.default_int_handler(number, frame)
        interrupted.set()

    with handled(note, signal.SIGINT):
        yield interrupted


def evaluate(
    model: LanguageModel, split: CorpusSplit | ShuffledSplit, offsets: np.ndarray, piece: int,
    end_token: int, progress: Progress, first_context: int, adaptation: Adaptation | None = None,
) -> Totals:  # fmt: skip
    """Read the parts of ``split`` that lie between ``offsets`` (parts + 1,), each from an empty state.

    piece: tokens read at a time.  end_token: what the first token of a document is predicted from; that
    of a part inside a document is predicted from the token before it, as in a block of training.
    adaptation: moves the weights of ``model`` after each piece, from one document to the next too.
    Continues from ``progress`` and saves there; raises ``KeyboardInterrupt`` once Ctrl-C is saved, and
    ``ValueError`` for a probability that is not finite.
    """
    documents = frozenset(split.offsets.tolist())
    totals, position = progress.load(first_context, adaptation)
    score = None if adaptation is None else adaptation.nll
    bar = progress_bar(
        total=int(offsets[-1] - offsets[0]), label=split.name, unit="token", scale=True,
        hidden=not sys.stderr.isatty(),
    )  # fmt: skip
    bar.update(totals.tokens)
    with bar, deferred_interrupt() as interrupted:
        while position.document < len(offsets) - 1:
            start, stop = (int(offset) for offset in offsets[position.document :][:2])
            read = counted_from(start, split.tokens)
            before = end_token if start in documents else int(split.tokens(start - 1, start)[0])
            steps = read_document(model, read, stop - start, piece, before, position, score)
            for first, nll_L, position in steps:
                if not np.isfinite(nll_L).all():
                    raise ValueError(
                        f"split {split.name}: the output of the model is not finite in document "
                        f"{position.document}, tokens {first} to {first + len(nll_L)}; nothing was "
                        "recorded"
                    )
                totals.add(first, nll_L)
                bar.update(len(nll_L))
                if interrupted.is_set() or progress.is_due():
                    progress.save(totals, position, adaptation)
                if interrupted.is_set():
                    raise KeyboardInterrupt(f"stopped in document {position.document}")
            totals.end_document()
            position = Position(position.document + 1)
    return totals


def divide(offsets: np.ndarray, segments: int | None, context: int | None = None) -> np.ndarray:
    """Return where reading starts from an empty state, and the number of tokens, (parts + 1,) int64.

    It starts at the ``offsets`` of the documents (documents + 1,), or of ``segments`` equal parts of the
    whole split, and after every ``context`` tokens of these.
    """
    if segments is not None:
        if not 1 <= segments <= offsets[-1]:
            raise ValueError(
                f"--segments {segments} must be between 1 and the {offsets[-1]} tokens"
            )
        offsets = np.linspace(0, offsets[-1], segments + 1).round().astype(np.int64)
    if context is None:
        return offsets
    cuts = [np.arange(start, stop, context) for start, stop in itertools.pairwise(offsets)]
    return np.concatenate([*cuts, offsets[-1:]])


def choose_metric(metric: str | None, split: CorpusSplit) -> str:
    """Return ``metric``, or by default perplexity per word where words were counted, else per token.

    Raises ``ValueError`` if the split does not say how many words, characters or bytes it has.
    """
    known = [name for name, unit in UNITS.items() if getattr(split.info, unit)]
    if metric is not None and metric not in known:
        raise ValueError(
            f"--metric {metric}: {split.folder} does not say how to count that; possible: "
            f"{', '.join(known)}"
        )
    return metric or known[0]


def measures(totals: Totals, info: SplitInfo) -> dict[str, float]:
    """Return all measures by name, except those whose unit was not counted."""
    found = {}
    for name, unit in UNITS.items():
        count = totals.tokens if unit == "tokens" else getattr(info, unit)
        if count and name.endswith("perplexity"):
            found[name] = perplexity(totals.nll, count)
        elif count:
            found[name] = totals.nll / math.log(2) / count
    return found


def compressed_sizes(corpus: Corpus, split: CorpusSplit) -> dict[str, float]:
    """Return the bits per byte of general compressors on ``split``.

    Each compresses the split, and the training split followed by it, of which the increase counts.
    Raises ``ValueError`` unless tokens are bytes.
    """
    if corpus.tokenizer["kind"] != "bytes":
        raise ValueError(
            f"--compressors needs a corpus of bytes, {corpus.folder} is of other tokens"
        )

    def text(part: CorpusSplit) -> bytes:
        tokens = part.tokens(0, int(part.offsets[-1]))
        return (tokens[tokens >= SPECIALS] - SPECIALS).astype(np.uint8).tobytes()

    data, seen = text(split), text(corpus.split("train"))
    result = {}
    for name, compress in COMPRESSORS.items():
        increase = len(compress(seen + data)) - len(compress(seen))
        result[name] = 8 * len(compress(data)) / len(data)
        result[f"{name} after the training split"] = 8 * increase / len(data)
    return result


def return_large_buffers() -> None:
    """Return every buffer of a megabyte or more to the system as soon as it is free.

    By itself glibc raises that bound with each large buffer that is freed, to 32 MB, and keeps what is
    below it in a heap whose gaps add up over thousands of pieces of a document.  Does nothing where the
    C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
