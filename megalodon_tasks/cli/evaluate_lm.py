"""Evaluate a language model on whole documents: ``megalodon evaluate-lm CHECKPOINT``.

Reads a split document by document, each from its start to its end with the state carried, in pieces: the
memory needed does not depend on their length.  Reports perplexity per token and per word, bits per
character and per byte, and perplexity against context length.  Stopped, also by ``kill -9``, and started
again, it continues from the last position that it saved.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megalodon_tasks.cli import options
from megalodon_tasks.data.corpus import SplitInfo, read_corpus
from megalodon_tasks.evaluation import checkpoint, language_model, long_context
from megalodon_tasks.evaluation.long_context import Totals
from megalodon_tasks.runs import comparability, results
from megalodon_tasks.runs.record import RESULTS, append

AFTER_INTERRUPT = "the same command continues where it was stopped"
PROGRESS_VERSION = 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "evaluate-lm",
        "Evaluate a language model on whole documents, however long they are.",
        "SAVE/checkpoint_best.pt --metric bits_per_byte",
    )
    options.add_checkpoint(parser)
    options.add_result(parser)
    add, positive = parser.add_argument, options.at_least(1)
    add("--piece", type=positive, default=2048, help="tokens read at a time (default: %(default)s)")
    add("--segments", type=int, help="cut the split into so many equal streams, not into documents")
    add(
        "--first-context", type=positive, default=long_context.FIRST_CONTEXT,
        help="smallest context length in the table",
    )  # fmt: skip
    add(
        "--metric", choices=language_model.UNITS,
        help="the one to record (default: per word, else per token)",
    )  # fmt: skip
    add(
        "--compressors", action="store_true", help="also compress the split with bz2 and xz (bytes)"
    )
    add(
        "--output", type=Path, help="folder for context_length.csv and .png (default: of --results)"
    )
    return parser


def describe(record: dict[str, Any], info: SplitInfo, totals: Totals) -> list[str]:
    """Return the lines to print: published numbers, all measures, and the context table."""
    lines = results.summary(record, results.published(record["benchmark"]))
    lines.append(f"{totals.documents:,} documents, {totals.tokens:,} tokens")
    lines += [f"  {name:20} {value:10.4f}" for name, value in record["measures"].items()]
    if info.words:
        lines.append(f"  words: {info.words:,} ({info.words_rule})")
    for name, value in record.get("compressors", {}).items():
        lines.append(f"  {name:32} {value:.4f} bits per byte")
    return [*lines, "perplexity against context length:", *long_context.table(totals.bands)]


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print, record and draw."""
    given = build_parser().parse_args(arguments)
    language_model.return_large_buffers()
    device = torch.device("cpu") if given.cpu else None
    trained = checkpoint.load(given.checkpoint, given.data, device)
    model, end_token = trained.language_model, trained.task.source_dictionary.eos()
    corpus = read_corpus(Path(trained.cfg.task.data))
    split = corpus.split(given.split)
    offsets = language_model.divide(split.offsets, given.segments)
    metric = language_model.choose_metric(given.metric, split)
    compressed = language_model.compressed_sizes(corpus, split) if given.compressors else None
    file = given.results or given.checkpoint.parent / RESULTS
    output = given.output or file.parent
    output.mkdir(parents=True, exist_ok=True)
    status = trained.path.stat()
    identity = [
        PROGRESS_VERSION, status.st_size, status.st_mtime_ns, trained.update, corpus.identity,
        given.split, given.piece, given.segments, given.first_context,
    ]  # fmt: skip
    progress = language_model.Progress(
        output / f"evaluation-{given.split}.progress.pt",
        hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )
    totals = language_model.evaluate(
        model, split, offsets, given.piece, end_token, progress, given.first_context
    )
    measures = language_model.measures(totals, split.info)
    record = {
        "benchmark": given.recipe or trained.cfg.task._name,
        "split": given.split,
        "metric": metric,
        "value": measures[metric],
        "loss": totals.nll / totals.tokens / math.log(2),
        "n": totals.documents,
        "best_constant": None,
        "tokens": totals.tokens,
        "nll": totals.nll,
        "measures": measures,
        "context": [asdict(band) for band in totals.bands],
        "piece": given.piece,
        "segments": given.segments,
        **trained.provenance(file),
    }
    record |= comparability.judge(record, trained.cfg)
    if compressed is not None:
        record["compressors"] = compressed
    append(file, record)
    long_context.write_csv(totals.bands, output / "context_length.csv")
    title = f"{record['benchmark']}, {given.split}"
    long_context.draw(totals.bands, title, output / "context_length.png")
    progress.remove()
    print("\n".join(describe(record, split.info, totals)))
    print(f"recorded in {file}; curve in {output / 'context_length.png'} and .csv")
