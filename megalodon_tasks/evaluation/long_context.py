"""Likelihood of documents of any length, read left to right in pieces with the state carried.

What is held at a time is one piece and the state, whatever the length of a document.  A document is read
from the empty state; its first token is predicted from the end token, as in training.

Perplexity against context length is kept in bands of positions: a token at position p (its number of
predecessors in the document) lies in the band from L/2 to L that holds p.
"""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState, state_from_plain, state_to_plain

FIRST_CONTEXT = 1024
_LARGEST = 2**48

#: Tokens of a document by position: (start, stop) -> (stop - start,) int64.
ReadTokens = Callable[[int, int], np.ndarray]


@dataclass
class Band:
    """Tokens at positions from ``low`` up to ``high``.

    nll: their sum in nats.  documents: those that reach the band.  whole_*: over all tokens up to
    ``high`` of the documents that are at least so long.
    """

    low: int
    high: int
    documents: int = 0
    tokens: int = 0
    nll: float = 0.0
    whole_documents: int = 0
    whole_nll: float = 0.0

    @property
    def perplexity(self) -> float:
        """Of the tokens in the band."""
        return math.exp(self.nll / self.tokens)

    @property
    def whole_perplexity(self) -> float | None:
        """Of everything up to ``high``, in documents that long; None if there is none."""
        if not self.whole_documents:
            return None
        return math.exp(self.whole_nll / (self.whole_documents * self.high))


@dataclass
class Totals:
    """Sums over the documents read so far, and over the part read of the one in progress."""

    first_context: int = FIRST_CONTEXT
    tokens: int = 0
    nll: float = 0.0
    documents: int = 0
    document_nll: float = 0.0
    bands: list[Band] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bands = [band if isinstance(band, Band) else Band(**band) for band in self.bands]

    def add(self, start: int, nll_L: np.ndarray) -> None:
        """Count the tokens from position ``start`` of a document on.  nll: (L,) float64 in nats."""
        while len(nll_L):
            band = self._band_at(start)
            part, nll_L = np.split(nll_L, [min(len(nll_L), band.high - start)])
            band.documents += start == band.low
            band.tokens += len(part)
            band.nll += float(part.sum())
            self.tokens += len(part)
            self.nll += float(part.sum())
            self.document_nll += float(part.sum())
            start += len(part)
            if start == band.high:
                band.whole_documents += 1
                band.whole_nll += self.document_nll

    def end_document(self) -> None:
        """The next token belongs to another document."""
        self.documents += 1
        self.document_nll = 0.0

    def _band_at(self, position: int) -> Band:
        while not self.bands or self.bands[-1].high <= position:
            low = self.bands[-1].high if self.bands else 0
            self.bands.append(Band(low, 2 * low or self.first_context))
        return self.bands[bisect.bisect_right(self.bands, position, key=lambda band: band.low) - 1]


@dataclass(frozen=True)
class Position:
    """Where reading stands: document, token in it, and the state before that token."""

    document: int = 0
    token: int = 0
    state: StackState | None = None

    def to_plain(self) -> dict[str, Any]:
        """Numbers and tensors alone, which ``torch.load(weights_only=True)`` reads."""
        plain = None if self.state is None else state_to_plain(self.state)
        return {"document": self.document, "token": self.token, "state": plain}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Position":
        """The inverse of :meth:`to_plain`."""
        state = None if plain["state"] is None else state_from_plain(plain["state"])
        return cls(plain["document"], plain["token"], state)


@torch.inference_mode()
def read_document(
    model: LanguageModel,
    read: ReadTokens,
    length: int,
    piece: int,
    first_token: int,
    position: Position,
) -> Iterator[tuple[int, np.ndarray, Position]]:
    """Read a document of ``length`` tokens in pieces of ``piece``, from ``position`` on.

    Yields for each piece its start, the negative log-likelihood of its tokens, (L,) float64 in nats, and
    the position after it.  ``first_token`` stands before the document.
    """
    device = next(model.parameters()).device
    state = position.state
    for start in range(position.token, length, piece):
        stop = min(start + piece, length)
        targets = torch.from_numpy(read(start, stop)).to(device)
        before = read(start - 1, start)[0] if start else first_token
        sources = torch.cat((targets.new_tensor([before]), targets[:-1]))
        nll_1L, state = model.nll(sources[None], targets[None], state)
        nll_L = nll_1L[0].double().cpu().numpy()
        yield start, nll_L, Position(position.document, stop, state)
