"""Compute the likelihood of documents of any length, and perplexity against context length.

A document is read left to right in pieces with the state carried, so that memory does not grow with its
length.  It starts from the empty state; its first token is predicted from the end token, as in training.

Perplexity against context length is computed in bands of positions: a token at position p (its number of
predecessors in the document) lies in the band from L/2 to L that holds p.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from megalodon_tasks.files import atomic_file, write_rows
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState, state_from_plain, state_to_plain
from megalodon_tasks.runs.figures import open_axes

FIRST_CONTEXT = 1024
COLUMNS = (
    "from", "to", "documents", "tokens", "perplexity", "whole_documents", "whole_perplexity",
)  # fmt: skip
BAND_STYLE = {"color": "#0b3c6f", "linewidth": 1.8, "marker": "o"}
WHOLE_STYLE = {"color": "0.45", "linewidth": 1.4, "linestyle": "--", "marker": "s", "markersize": 4}
FEW_TOKENS = 1000  # a band with fewer is not drawn

# Reads tokens of a document by position: (start, stop) -> (stop - start,) int64.
ReadTokens = Callable[[int, int], np.ndarray]
# Does what LanguageModel.nll does: (tokens, targets, state) -> (negative log-likelihoods, state).
Score = Callable[[torch.Tensor, torch.Tensor, StackState | None], tuple[torch.Tensor, StackState]]


def counted_from(origin: int, read: ReadTokens) -> ReadTokens:
    """Return ``read`` with positions that count from ``origin``."""
    return lambda start, stop: read(origin + start, origin + stop)


def perplexity(nll: float, count: int) -> float:
    """Return ``exp(nll / count)``, infinity where that is too large for a number.  nll: in nats."""
    share = nll / count
    return math.exp(share) if share < 700 else math.inf


@dataclass
class Band:
    """Sums over the tokens at positions from ``low`` up to ``high``.

    nll: negative log-likelihood in nats.  documents: those that reach the band.  whole_*: over all
    tokens up to ``high`` of the documents that are at least so long.
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
        """Return the perplexity of the tokens in the band."""
        return perplexity(self.nll, self.tokens)

    @property
    def whole_perplexity(self) -> float | None:
        """Return that of all tokens up to ``high``, in documents that long; None without any."""
        if not self.whole_documents:
            return None
        return perplexity(self.whole_nll, self.whole_documents * self.high)


@dataclass
class Totals:
    """Sums over the documents read so far, and over the part that was read of the current one."""

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
        """Count a document; the next token belongs to another one."""
        self.documents += 1
        self.document_nll = 0.0

    def _band_at(self, position: int) -> Band:
        while not self.bands or self.bands[-1].high <= position:
            low = self.bands[-1].high if self.bands else 0
            self.bands.append(Band(low, 2 * low or self.first_context))
        return self.bands[bisect.bisect_right(self.bands, position, key=lambda band: band.low) - 1]


@dataclass(frozen=True)
class Position:
    """Where reading continues: document, token in it, and the state before that token."""

    document: int = 0
    token: int = 0
    state: StackState | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return numbers and tensors only, which ``torch.load(weights_only=True)`` reads."""
        plain = None if self.state is None else state_to_plain(self.state)
        return {"document": self.document, "token": self.token, "state": plain}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Position":
        """Return the position that :meth:`to_plain` was called on."""
        state = None if plain["state"] is None else state_from_plain(plain["state"])
        return cls(plain["document"], plain["token"], state)


def read_document(
    model: LanguageModel,
    read: ReadTokens,
    length: int,
    piece: int,
    first_token: int,
    position: Position,
    score: Score | None = None,
) -> Iterator[tuple[int, np.ndarray, Position]]:
    """Read a document of ``length`` tokens in pieces of ``piece``, starting at ``position``.

    Yields for each piece its start, the negative log-likelihood of its tokens, (L,) float64 in nats, and
    the position after it.  The first token of the document is predicted from ``first_token``.
    score: by default ``model.nll`` without gradients.
    """
    score = score or torch.inference_mode()(model.nll)
    device = next(model.parameters()).device
    state = position.state
    for start in range(position.token, length, piece):
        stop = min(start + piece, length)
        targets = torch.from_numpy(read(start, stop)).to(device)
        before = read(start - 1, start)[0] if start else first_token
        sources = torch.cat((targets.new_tensor([before]), targets[:-1]))
        nll_1L, state = score(sources[None], targets[None], state)
        nll_L = nll_1L[0].double().cpu().numpy()
        yield start, nll_L, Position(position.document, stop, state)


def _short(length: int) -> str:
    """Return ``length`` as figures write it: 512, 1K, 2M."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length >= size and length % size == 0:
            return f"{length // size}{letter}"
    return str(length)


def table(bands: Sequence[Band]) -> list[str]:
    """Return the lines of a table to print."""
    lines = [
        "  context        documents      tokens  perplexity   whole documents up to it: perplexity"
    ]
    for band in bands:
        whole = band.whole_perplexity
        lines.append(
            f"  {_short(band.low):>5} - {_short(band.high):<5} {band.documents:11,} {band.tokens:11,} "
            f"{band.perplexity:11.4f}   "
            + (f"{band.whole_documents:>23,}: {whole:.4f}" if whole is not None else f"{'-':>24}")
        )
    return lines


def write_csv(bands: Sequence[Band], path: Path) -> None:
    """Write one row per band."""
    wholes = ["" if b.whole_perplexity is None else f"{b.whole_perplexity:.6f}" for b in bands]
    rows = [
        [b.low, b.high, b.documents, b.tokens, f"{b.perplexity:.6f}", b.whole_documents, whole]
        for b, whole in zip(bands, wholes, strict=True)
    ]
    write_rows(path, COLUMNS, rows)


def draw(bands: Sequence[Band], title: str, path: Path) -> None:
    """Draw perplexity against context length, without bands of too few tokens to mean anything."""
    bands = [band for band in bands if math.isfinite(band.perplexity)]
    shown = [band for band in bands if band.tokens >= FEW_TOKENS] or list(bands)
    whole = [band for band in bands if band.whole_documents]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [band.high for band in shown], [band.perplexity for band in shown],
        label="tokens with at most so much context, at least half", **BAND_STYLE,
    )  # fmt: skip
    if whole:
        axes.plot(
            [band.high for band in whole], [band.whole_perplexity for band in whole],
            label="all tokens of documents cut at that length", **WHOLE_STYLE,
        )  # fmt: skip
    ticks = [band.high for band in shown][:: -(-len(shown) // 12)]
    names = {band.high: f"{_short(band.high)}\n({band.documents:,})" for band in shown}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(round(value), "")))
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(ScalarFormatter())
    label = "context length in tokens (in brackets: documents that reach its last half)"
    open_axes(axes, which="both", xlabel=label, ylabel="perplexity per token", title=title)
    axes.legend(frameon=False)
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=150, format="png")
