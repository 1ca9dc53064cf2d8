"""Evaluate an encoder-decoder: ``megalodon evaluate-translation CHECKPOINT``.

Translates a split with beam search, writes the translations, and appends the result to
``results.jsonl``.
"""

import argparse
from collections.abc import Sequence

from megalodon_tasks.cli import options
from megalodon_tasks.evaluation import checkpoint, translation
from megalodon_tasks.files import write_rows
from megalodon_tasks.option_types import real, whole
from megalodon_tasks.runs import results
from megalodon_tasks.runs.record import RESULTS, append

METRICS = ("bleu", "exact")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "evaluate-translation",
        "Translate a split and compare with its references.",
        "SAVE/checkpoint_best.pt --beam 5 --lenpen 0.5 --remove-bpe '@@ '",
    )
    options.add_checkpoint(parser)
    options.add_result(parser)
    options.add_chunk_size(parser)
    add, search = parser.add_argument, translation.Search()
    add("--metric", choices=METRICS, default="bleu", help="the result (default: %(default)s)")
    add("--beam", type=whole(1), default=search.beam, help="default: %(default)s")
    add("--lenpen", type=real(-10, 10), default=search.lenpen, help="default: %(default)s")
    add("--max-len-a", type=real(0, 1000), default=search.max_len_a, help="default: %(default)s")
    add(
        "--max-len-b", type=whole(0), default=search.max_len_b,
        help="a translation has at most max-len-a * source + max-len-b tokens (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max-tokens",
        type=whole(1),
        default=search.max_tokens,
        help="of a batch (default: %(default)s)",
    )
    add("--remove-bpe", metavar="MARK", help="join byte pairs before comparing, such as '@@ '")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Translate, print and record."""
    given = build_parser().parse_args(arguments)
    trained = checkpoint.load(
        given.checkpoint, given.data, given.device, chunk_size=given.chunk_size
    )
    names = translation.Search.__dataclass_fields__
    search = translation.Search(**{name: getattr(given, name) for name in names})
    score = translation.evaluate(trained, given.split, search)
    file = given.results or given.checkpoint.parent / RESULTS
    measured = {
        "split": given.split,
        "metric": given.metric,
        "value": getattr(score, given.metric),
        "loss": score.loss,
        "n": len(score.sentences),
        "best_constant": None,
        "measures": {"bleu": score.bleu, "exact": score.exact},
        "search": vars(search),
    }
    record = trained.result(file, measured, given.recipe)
    table = file.parent / f"translations-{given.split}.tsv"
    write_rows(table, translation.Sentence._fields, score.sentences)
    append(file, record)
    print("\n".join(results.summary(record)))
    print(f"BLEU {score.bleu:.2f}, exact {score.exact:.1f} %")
    print(f"recorded in {file}; translations in {table}")
