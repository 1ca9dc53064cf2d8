"""Evaluate a model that was tuned on instructions: ``megalodon evaluate-answers CHECKPOINT``.

Holds each conversation of a split with the model, which always takes the likeliest token, counts the
answers that are exactly those of the data, writes all of them, and appends the result to
``results.jsonl``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.data.conversations import template_of
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.data.tokenizers import corpus_tokenizer
from megalodon_tasks.evaluation import checkpoint, exact_answers
from megalodon_tasks.files import write_rows
from megalodon_tasks.option_types import whole
from megalodon_tasks.runs import results
from megalodon_tasks.runs.record import RESULTS, append


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "evaluate-answers",
        "Answer the questions of conversations and count the exact answers.",
        "SAVE/checkpoint_best.pt",
    )
    options.add_checkpoint(parser)
    options.add_result(parser)
    parser.add_argument(
        "--tokens", type=whole(1), default=500,
        help="most tokens of an answer (default: %(default)s)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str]) -> None:
    """Answer, print and record."""
    given = build_parser().parse_args(arguments)
    trained = checkpoint.load(given.checkpoint, given.data, given.device)
    corpus = read_corpus(Path(trained.cfg.task.data))
    template_of(corpus)  # raises for a corpus without answers
    tokenizer = corpus_tokenizer(corpus)
    split, model = corpus.split(given.split), trained.language_model
    found = exact_answers.answer_all(model, tokenizer, split, given.tokens)
    answers = [*progress_bar(found, total=len(split.sizes) // 2, label=given.split, unit="answer")]
    exact = 100 * sum(answer.exact for answer in answers) / len(answers)
    file = given.results or given.checkpoint.parent / RESULTS
    measured = {
        "split": given.split,
        "metric": "exact",
        "value": exact,
        "loss": exact_answers.answer_bits(model, split, tokenizer.eos),
        "n": len(answers),
        "best_constant": None,
        "measures": {"exact": exact},
        "most_tokens": given.tokens,
    }
    record = trained.result(file, measured, given.recipe)
    table = file.parent / f"answers-{given.split}.tsv"
    write_rows(table, exact_answers.Answer._fields, answers)
    append(file, record)
    print("\n".join(results.summary(record)))
    print(f"recorded in {file}; answers in {table}")
