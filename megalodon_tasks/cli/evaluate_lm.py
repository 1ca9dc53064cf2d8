"""Evaluate a language model on whole documents: ``megalodon evaluate-lm CHECKPOINT``.

Reads a split document by document, each from its start to its end with the state carried, in pieces: the
memory needed does not depend on their length.  Reports perplexity per token and per word, bits per
character and per byte, and perplexity against context length.  Stopped, also by ``kill -9``, and started
again, it continues from the last position that it saved.  With ``--dynamic`` the weights follow the text
(dynamic evaluation); the checkpoint stays as it is.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.cli import options
from megalodon_tasks.data.corpus import Corpus, CorpusSplit, SplitInfo, read_corpus
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint, dynamic, language_model, long_context, shuffled
from megalodon_tasks.evaluation.long_context import Totals
from megalodon_tasks.evaluation.shuffled import ShuffledSplit
from megalodon_tasks.option_types import whole
from megalodon_tasks.runs import results
from megalodon_tasks.runs.record import RESULTS, append

AFTER_INTERRUPT = "the same command continues where it was stopped"
PROGRESS_VERSION = 2
PIECE = 2048
ORDER_SEED = 1
DIVERGED = 100.0  # nats per token, which no vocabulary reaches by chance


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "evaluate-lm",
        "Evaluate a language model on whole documents, however long they are.",
        "SAVE/checkpoint_best.pt --metric bits_per_byte",
    )
    options.add_checkpoint(parser)
    options.add_result(parser)
    options.add_chunk_size(parser)
    add, positive = parser.add_argument, whole(1)
    add(
        "--piece", type=positive,
        help=f"tokens read at a time (default: {PIECE}; with --dynamic {dynamic.PIECE})",
    )  # fmt: skip
    add(
        "--segments",
        type=positive,
        help="cut the split into so many equal streams, not into documents",
    )
    add(
        "--context", type=positive, metavar="N",
        help="cut each document or stream after every N tokens and read each part from an empty state",
    )  # fmt: skip
    add(
        "--concatenate", type=positive, nargs="?", const=shuffled.LENGTH, metavar="N",
        help="join the documents in a random order and read parts of N tokens, as figure 5 of the paper "
        "(default: %(const)s)",
    )  # fmt: skip
    add(
        "--order-seed", type=whole(0), metavar="SEED",
        help=f"equal seeds give equal orders of --concatenate (default: {ORDER_SEED})",
    )  # fmt: skip
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
    add_dynamic(parser)
    return parser


def add_dynamic(parser: argparse.ArgumentParser) -> None:
    """Add the options of dynamic evaluation."""
    group = parser.add_argument_group(
        "dynamic evaluation (Krause et al., arXiv 1904.08378)",
        "adapt the weights to the text while it is read, in memory only: one gradient step after each "
        "piece, SGD, or RMS with --gradient-statistics; choose the values on the validation split",
    )
    group.add_argument("--dynamic", type=float, metavar="RATE", help="learning rate of the steps")
    group.add_argument(
        "--decay", type=float,
        help="share of the way back to the trained weights after each piece (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--gradient-statistics", type=Path, metavar="FILE",
        help="divide gradients by their root mean square on the training split, and decay in "
        "proportion to it: read from FILE, or if there is none, computed and written there",
    )  # fmt: skip
    group.add_argument(
        "--statistics-tokens", type=whole(1), metavar="N",
        help="training tokens that the statistics are computed on "
        f"(default: the first {dynamic.STATISTICS_TOKENS:,})",
    )  # fmt: skip
    group.add_argument(
        "--epsilon", type=float,
        help=f"added to the root mean square (default: {dynamic.Rule.epsilon})",
    )  # fmt: skip


def describe(record: dict[str, Any], info: SplitInfo, totals: Totals) -> list[str]:
    """Return the lines to print: published numbers, all measures, and the context table."""
    lines = results.summary(record)
    cut = record["segments"] or record["segment_tokens"] or record["concatenated"]
    lines.append(
        f"{totals.documents:,} {'parts' if cut else 'documents'}, {totals.tokens:,} tokens"
    )
    if (settings := record["dynamic"]) is not None:
        kind = "SGD" if settings["statistics_tokens"] is None else "RMS"
        lines.append(
            f"dynamic evaluation: {kind}, rate {settings['rate']}, decay {settings['decay']}, "
            f"a step after every {record['piece']:,} tokens"
        )
    lines += [f"  {name:20} {value:10.4f}" for name, value in record["measures"].items()]
    if info.words:
        lines.append(f"  words: {info.words:,} ({info.words_rule})")
    for name, value in record.get("compressors", {}).items():
        lines.append(f"  {name:32} {value:.4f} bits per byte")
    return [*lines, "perplexity against context length:", *long_context.table(totals.bands)]


def dynamic_rule(given: argparse.Namespace) -> dynamic.Rule | None:
    """Return how weights follow the text, None without ``--dynamic``.

    Raises ``ValueError`` for impossible values and for options that have no effect without another.
    """
    needs = {
        "--decay": (given.decay, "--dynamic RATE", given.dynamic),
        "--gradient-statistics": (given.gradient_statistics, "--dynamic RATE", given.dynamic),
        "--statistics-tokens":
            (given.statistics_tokens, "--gradient-statistics FILE", given.gradient_statistics),
        "--epsilon": (given.epsilon, "--gradient-statistics FILE", given.gradient_statistics),
    }  # fmt: skip
    for name, (value, other, present) in needs.items():
        if value is not None and present is None:
            raise ValueError(f"{name} {value} has no effect without {other}")
    if given.dynamic is None:
        return None
    chosen = {name: getattr(given, name) for name in ("decay", "epsilon")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return dynamic.Rule(given.dynamic, **chosen)


def text_and_parts(
    given: argparse.Namespace, split: CorpusSplit
) -> tuple[CorpusSplit | ShuffledSplit, np.ndarray]:
    """Return what is read, and where its parts begin and the last one ends, (parts + 1,) int64.

    Sets the default of --order-seed.  Raises ``ValueError`` for options that exclude each other.
    """
    if given.concatenate is None:
        if given.order_seed is not None:
            raise ValueError(f"--order-seed {given.order_seed} has no effect without --concatenate")
        return split, language_model.divide(split.offsets, given.segments, given.context)
    for name, value in {"--segments": given.segments, "--context": given.context}.items():
        if value is not None:
            raise ValueError(
                f"{name} {value} does not go with --concatenate, which makes other parts"
            )
    given.order_seed = ORDER_SEED if given.order_seed is None else given.order_seed
    text = ShuffledSplit(split, given.order_seed)
    return text, language_model.divide(text.offsets, 1, given.concatenate)


def build_adaptation(
    given: argparse.Namespace, rule: dynamic.Rule | None, trained: checkpoint.Trained,
    corpus: Corpus, source: list[Any],
) -> tuple[dynamic.Adaptation | None, dict[str, Any] | None]:  # fmt: skip
    """Return what moves the weights, and how, as a result records it; None and None without a rule.

    source: the settings that the gradient statistics depend on.
    """
    if rule is None:
        return None, None
    model, file = trained.language_model, given.gradient_statistics
    if file is None:
        return dynamic.Adaptation(model, rule), {**asdict(rule), "statistics_tokens": None}
    split, end_token = corpus.split("train"), trained.task.source_dictionary.eos()
    tokens = min(given.statistics_tokens or dynamic.STATISTICS_TOKENS, split.info.tokens)
    rms = dynamic.saved_statistics(
        file, fingerprint([*source, tokens]), trained.device,
        lambda: dynamic.gradient_rms(model, split, given.piece, end_token, tokens),
    )  # fmt: skip
    return dynamic.Adaptation(model, rule, rms), {**asdict(rule), "statistics_tokens": tokens}


def fingerprint(settings: list[Any]) -> str:
    """Return a text that differs where ``settings`` do."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def build_record(
    given: argparse.Namespace, totals: Totals, measures: dict[str, float], metric: str
) -> dict[str, Any]:
    """Return what the result says of the text and of how it was read."""
    return {
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
        "segment_tokens": given.context,
        "concatenated": given.concatenate,
        "order_seed": given.order_seed,
    }


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print, record and draw."""
    given = build_parser().parse_args(arguments)
    rule = dynamic_rule(given)
    given.piece = given.piece or (dynamic.PIECE if rule else PIECE)
    language_model.return_large_buffers()
    trained = checkpoint.load(
        given.checkpoint, given.data, given.device, chunk_size=given.chunk_size
    )
    model, end_token = trained.language_model, trained.task.source_dictionary.eos()
    corpus = read_corpus(Path(trained.cfg.task.data))
    split = corpus.split(given.split)
    text, offsets = text_and_parts(given, split)
    metric = language_model.choose_metric(given.metric, split)
    compressed = language_model.compressed_sizes(corpus, split) if given.compressors else None
    file = given.results or given.checkpoint.parent / RESULTS
    output = given.output or file.parent
    output.mkdir(parents=True, exist_ok=True)
    status = trained.path.stat()
    source = [
        PROGRESS_VERSION, status.st_size, status.st_mtime_ns, trained.update, corpus.identity,
        given.chunk_size, given.piece,
    ]  # fmt: skip
    adaptation, dynamic_settings = build_adaptation(given, rule, trained, corpus, source)
    identity = [
        *source, given.split, given.segments, given.context, given.first_context, dynamic_settings,
        given.concatenate, given.order_seed,
    ]  # fmt: skip
    progress = language_model.Progress(
        output / f"evaluation-{given.split}.progress.pt", fingerprint(identity)
    )
    totals = language_model.evaluate(
        model, text, offsets, given.piece, end_token, progress, given.first_context, adaptation
    )
    if (nats := totals.nll / totals.tokens) > DIVERGED:
        lower = " under --dynamic; choose a lower rate" if rule else ""
        raise UserError(
            f"{given.checkpoint}: {nats:.0f} nats per token: the weights diverged{lower}"
        )
    measured = {
        **build_record(given, totals, language_model.measures(totals, split.info), metric),
        "dynamic": dynamic_settings,
    }
    record = trained.result(file, measured, given.recipe)
    if compressed is not None:
        record["compressors"] = compressed
    append(file, record)
    curve = output / ("context_length_joined" if given.concatenate else "context_length")
    title = (
        f"{record['benchmark']}, {given.split}{', documents joined' if given.concatenate else ''}"
    )
    long_context.write_csv(totals.bands, curve.with_suffix(".csv"))
    long_context.draw(totals.bands, title, curve.with_suffix(".png"))
    progress.remove()
    print("\n".join(describe(record, split.info, totals)))
    print(f"recorded in {file}; curve in {curve.with_suffix('.png')} and .csv")
