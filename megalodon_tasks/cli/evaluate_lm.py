"""Evaluate a language model on whole documents: ``python -m megalodon_tasks.cli.evaluate_lm FILE``.

Reads a split document by document, each from its start to its end with the state carried, in pieces: the
memory needed does not depend on their length.  Reports perplexity per token and per word, bits per
character and per byte, and perplexity against context length.  Stopped, also by ``kill -9``, and started
again, it goes on from the last position that it saved.

With N the sum of the negative log-likelihoods of all tokens in nats, end tokens included:
``perplexity = exp(N / tokens)``, ``word_perplexity = exp(N / words)`` (Rae et al., arXiv 1911.05507,
section 4.2), ``bits_per_character = N / ln 2 / characters``, ``bits_per_byte`` likewise.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megalodon_tasks import fairseq_compat
from megalodon_tasks.cli.evaluate import Trained, load, provenance
from megalodon_tasks.data.corpus import Corpus, CorpusSplit, SplitInfo, read_corpus
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.data.tokenizers import SPECIALS
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.evaluation import compressors, context_report
from megalodon_tasks.evaluation.lm_progress import Progress, deferred_interrupt
from megalodon_tasks.evaluation.long_context import FIRST_CONTEXT, Position, Totals, read_document
from megalodon_tasks.evaluation.steady_memory import return_large_buffers
from megalodon_tasks.runs import results
from megalodon_tasks.training.console import exit_status

PIECE = 2048
METRICS = ("perplexity", "word_perplexity", "bits_per_character", "bits_per_byte")
PROGRESS_VERSION = 1


def evaluate(
    trained: Trained, split: CorpusSplit, offsets: np.ndarray, piece: int, progress: Progress,
    first_context: int = FIRST_CONTEXT,
) -> Totals:  # fmt: skip
    """Read the documents that lie between ``offsets`` (documents + 1,) of ``split``."""
    model = trained.model.decoder.lm
    end_token = trained.task.source_dictionary.eos()
    totals, position = progress.load(first_context)
    bar = progress_bar(
        total=int(offsets[-1] - offsets[0]), label=split.name, unit="token", scale=True,
        hidden=not sys.stderr.isatty(),
    )  # fmt: skip
    bar.update(totals.tokens)
    with bar, deferred_interrupt() as interrupt:
        while position.document < len(offsets) - 1:
            start, stop = (int(offset) for offset in offsets[position.document :][:2])

            def read(first: int, last: int, start: int = start) -> np.ndarray:
                return split.tokens(start + first, start + last)

            steps = read_document(model, read, stop - start, piece, end_token, position)
            for first, nll_L, position in steps:
                totals.add(first, nll_L)
                bar.update(len(nll_L))
                if interrupt.asked or progress.is_due():
                    progress.save(totals, position)
                if interrupt.asked:
                    raise KeyboardInterrupt(f"stopped in document {position.document}")
            totals.end_document()
            position = Position(position.document + 1)
    return totals


def divide(offsets: np.ndarray, segments: int | None) -> np.ndarray:
    """``offsets`` of the documents, or of ``segments`` equal parts of all of it."""
    if segments is None:
        return offsets
    if not 1 <= segments <= offsets[-1]:
        raise UserError(f"--segments {segments} must be between 1 and the {offsets[-1]} tokens")
    return np.linspace(0, offsets[-1], segments + 1).round().astype(np.int64)


def chosen_metric(asked: str | None, split: CorpusSplit) -> str:
    """The measure to record: ``asked``, else per word where words were counted, else per token.

    Raises ``UserError`` if nothing is known that ``asked`` could be divided by.
    """
    info = split.info
    divisors = {
        "word_perplexity": info.words,
        "perplexity": info.tokens,
        "bits_per_character": info.characters,
        "bits_per_byte": info.bytes,
    }
    known = [name for name, count in divisors.items() if count]
    if asked is not None and asked not in known:
        raise UserError(
            f"--metric {asked}: {split.folder} does not say how to count that; possible: "
            f"{', '.join(known)}"
        )
    return asked or known[0]


def measures(totals: Totals, info: SplitInfo) -> dict[str, float]:
    """What the sums say, by name; those whose divisor is unknown are left out."""
    nll = totals.nll
    found = {"perplexity": _exp(nll / totals.tokens)}
    if info.words:
        found["word_perplexity"] = _exp(nll / info.words)
    if info.characters:
        found["bits_per_character"] = nll / math.log(2) / info.characters
    if info.bytes:
        found["bits_per_byte"] = nll / math.log(2) / info.bytes
    return found


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def compared(corpus: Corpus, split: CorpusSplit) -> dict[str, float]:
    """Bits per byte of compressors on the same split.  Raises ``UserError`` unless tokens are bytes."""
    if corpus.tokenizer["kind"] != "bytes":
        raise UserError(
            f"--compressors needs a corpus of bytes, {corpus.folder} is of other tokens"
        )

    def text(part: CorpusSplit) -> bytes:
        tokens = part.tokens(0, int(part.offsets[-1]))
        return (tokens[tokens >= SPECIALS] - SPECIALS).astype(np.uint8).tobytes()

    return compressors.bits_per_byte(text(split), text(corpus.split("train")))


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.cli.evaluate_lm",
        description="Evaluate a language model on whole documents, however long they are.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a file that a training run wrote")
    add("--data", type=Path, help="folder of the prepared data (default: as in training)")
    add("--split", default="test", help="which split (default: %(default)s)")
    add("--piece", type=int, default=PIECE, help="tokens read at a time (default: %(default)s)")
    add("--segments", type=int, help="cut the split into so many equal streams, not into documents")
    add(
        "--first-context",
        type=int,
        default=FIRST_CONTEXT,
        help="smallest context length in the table",
    )
    add("--metric", choices=METRICS, help="the one to record (default: per word, else per token)")
    add(
        "--compressors", action="store_true", help="also compress the split with bz2 and xz (bytes)"
    )
    add("--cpu", action="store_true", help="do not use a GPU")
    add(
        "--results", type=Path, help="file of JSON lines (default: results.jsonl beside CHECKPOINT)"
    )
    add("--recipe", help="id in recipes/results.csv (default: the task's name)")
    add(
        "--output", type=Path, help="folder for context_length.csv and .png (default: of --results)"
    )
    return parser


def _identity(trained: Trained, corpus: Corpus, options: argparse.Namespace) -> str:
    status = trained.path.stat()
    parts = [
        PROGRESS_VERSION, status.st_size, status.st_mtime_ns, trained.update, corpus.identity,
        options.split, options.piece, options.segments, options.first_context,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check(options: argparse.Namespace) -> None:
    if not options.checkpoint.is_file():
        raise UserError(f"{options.checkpoint}: there is no such checkpoint")
    for name in ("piece", "first_context"):
        if getattr(options, name) < 1:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1"
            )


@user_errors()
def run(options: argparse.Namespace) -> None:
    """Evaluate, print, record and draw."""
    _check(options)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    trained = load(options.checkpoint, options.data and str(options.data), device)
    if not hasattr(trained.model.decoder, "lm"):
        raise UserError(f"{options.checkpoint}: holds no language model of this project")
    corpus = read_corpus(Path(trained.cfg.task.data))
    split = corpus.split(options.split)
    file = options.results or options.checkpoint.parent / "results.jsonl"
    output = options.output or file.parent
    output.mkdir(parents=True, exist_ok=True)
    progress = Progress(
        output / f"evaluation-{options.split}.progress.pt", _identity(trained, corpus, options)
    )
    offsets = divide(split.offsets, options.segments)
    metric = chosen_metric(options.metric, split)
    compressed = compared(corpus, split) if options.compressors else None
    totals = evaluate(trained, split, offsets, options.piece, progress, options.first_context)
    found = measures(totals, split.info)
    record = describe(trained, totals, found, metric, options, file, device)
    if compressed is not None:
        record["compressors"] = compressed
    results.append(file, record)
    context_report.write_csv(totals.bands, output / "context_length.csv")
    title = f"{record['benchmark']}, {options.split}"
    context_report.draw(totals.bands, title, output / "context_length.png")
    progress.remove()
    print("\n".join(lines(record, split.info, totals)))
    print(f"recorded in {file}; curve in {output / 'context_length.png'} and .csv")


def describe(
    trained: Trained, totals: Totals, found: dict[str, float], metric: str,
    options: argparse.Namespace, file: Path, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """The line of ``results.jsonl``: what was reached, by what, where."""
    return {
        "benchmark": options.recipe or trained.cfg.task._name,
        "split": options.split,
        "metric": metric,
        "value": found[metric],
        "loss": totals.nll / totals.tokens / math.log(2),
        "n": totals.documents,
        "best_constant": None,
        "tokens": totals.tokens,
        "nll": totals.nll,
        "measures": found,
        "context": [asdict(band) for band in totals.bands],
        "piece": options.piece,
        "segments": options.segments,
        **provenance(trained, file, device),
    }


def lines(record: dict[str, Any], info: SplitInfo, totals: Totals) -> list[str]:
    """What is printed: the published comparison, all measures, and the context table."""
    text = results.summary(record, results.published(record["benchmark"]))
    text.append(f"{totals.documents:,} documents, {totals.tokens:,} tokens")
    text += [f"  {name:20} {value:10.4f}" for name, value in record["measures"].items()]
    if info.words:
        text.append(f"  words: {info.words:,} ({info.words_rule})")
    for name, value in record.get("compressors", {}).items():
        text.append(f"  {name:32} {value:.4f} bits per byte")
    return text + ["perplexity against context length:", *context_report.table(totals.bands)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    return_large_buffers()
    again = "interrupted; the same command goes on where it was stopped"
    return exit_status(lambda: run(options), again)


if __name__ == "__main__":
    sys.exit(main())
