"""Perplexity against context length as a table, a CSV file and a picture (figure 5 of the paper)."""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from megalodon_tasks.evaluation.long_context import Band
from megalodon_tasks.files import atomic_file

COLUMNS = (
    "from", "to", "documents", "tokens", "perplexity", "whole_documents", "whole_perplexity",
)  # fmt: skip
BAND_STYLE = {"color": "#0b3c6f", "linewidth": 1.8, "marker": "o"}
WHOLE_STYLE = {"color": "0.45", "linewidth": 1.4, "linestyle": "--", "marker": "s", "markersize": 4}
FEW_TOKENS = 1000


def short(length: int) -> str:
    """``length`` as figures write it: 512, 1K, 2M."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length >= size and length % size == 0:
            return f"{length // size}{letter}"
    return str(length)


def table(bands: Sequence[Band]) -> list[str]:
    """Lines to print."""
    lines = [
        "  context        documents      tokens  perplexity   whole documents up to it: perplexity"
    ]
    for band in bands:
        whole = band.whole_perplexity
        lines.append(
            f"  {short(band.low):>5} - {short(band.high):<5} {band.documents:11,} {band.tokens:11,} "
            f"{band.perplexity:11.4f}   "
            + (f"{band.whole_documents:>23,}: {whole:.4f}" if whole is not None else f"{'-':>24}")
        )
    return lines


def write_csv(bands: Sequence[Band], path: Path) -> None:
    """One row per band."""
    with atomic_file(path, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for band in bands:
            whole = band.whole_perplexity
            writer.writerow(
                [band.low, band.high, band.documents, band.tokens, f"{band.perplexity:.6f}"]
                + [band.whole_documents, "" if whole is None else f"{whole:.6f}"]
            )


def draw(bands: Sequence[Band], title: str, path: Path) -> None:
    """Perplexity against context length.  Bands with too few tokens to mean anything are left out."""
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
    names = {band.high: f"{short(band.high)}\n({band.documents:,})" for band in shown}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(round(value), "")))
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(ScalarFormatter())
    axes.set_xlabel("context length in tokens (in brackets: documents that reach its last half)")
    axes.set_ylabel("perplexity per token")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(title)
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=150, format="png")
