"""Continue a text: ``python -m megalodon_tasks.cli.sample CHECKPOINT --prompt "Once upon a time"``.

The text appears as it is drawn and ends at the model's end of a document, or after ``--tokens``.  A
prompt of any length is read in pieces, so it need not fit into memory at once.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megalodon_tasks import fairseq_compat
from megalodon_tasks.cli.evaluate import load
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.tokenizers import Tokenizer, tokenizer_of
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.evaluation.sampling import Choice, generate
from megalodon_tasks.training.console import exit_status


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.cli.sample", description="Continue a text."
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a file that a training run wrote")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", default="", help="the text to continue (default: a new document)"
    )
    prompt.add_argument(
        "--prompt-file", help="a file with the text to continue, - for standard input"
    )
    add("--data", type=Path, help="folder of the prepared data (default: as in training)")
    add("--tokens", type=int, default=500, help="stop after so many (default: %(default)s)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="0 takes the likeliest (default: %(default)s)",
    )
    add("--top-k", type=int, default=0, help="draw from the so many likeliest (default: all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the fewest with this probability together",
    )
    add("--seed", type=int, default=1, help="equal seeds give equal text (default: %(default)s)")
    add("--piece", type=int, default=4096, help="tokens of the prompt read at a time")
    add("--past-end", action="store_true", help="go on with another document at the end of one")
    add("--cpu", action="store_true", help="do not use a GPU")
    return parser


def read_prompt(options: argparse.Namespace) -> str:
    """The text to continue.  Raises ``UserError`` if it is not UTF-8 or cannot be read."""
    if options.prompt_file is None:
        data, where = options.prompt.encode("utf-8", "surrogateescape"), "--prompt"
    elif options.prompt_file == "-":
        data, where = sys.stdin.buffer.read(), "standard input"
    else:
        data, where = Path(options.prompt_file).read_bytes(), options.prompt_file
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}"
        ) from None


def until_end(tokens: Iterator[int], tokenizer: Tokenizer, past_end: bool) -> Iterator[int]:
    """``tokens`` up to the end of the document, if the tokenizer's end token says that."""
    for token in tokens:
        if token == tokenizer.eos and tokenizer.ends_document:
            if not past_end:
                return
            continue
        yield token


def _check(options: argparse.Namespace) -> None:
    if not options.checkpoint.is_file():
        raise UserError(f"{options.checkpoint}: there is no such checkpoint")
    for name in ("piece", "tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")


@user_errors()
def run(options: argparse.Namespace) -> None:
    """Write the prompt and what follows it to standard output."""
    _check(options)
    choice = Choice(options.temperature, options.top_k, options.top_p)
    text = read_prompt(options)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    trained = load(options.checkpoint, options.data and str(options.data), device)
    if not hasattr(trained.model.decoder, "lm"):
        raise UserError(f"{options.checkpoint}: holds no language model of this project")
    dictionary = trained.task.source_dictionary
    corpus = read_corpus(Path(trained.cfg.task.data))
    tokenizer = tokenizer_of(corpus.folder, corpus.tokenizer, dictionary)
    prompt = torch.tensor([tokenizer.eos, *tokenizer.encode(text).tolist()])
    unknown = int((prompt == dictionary.unk()).sum())
    if unknown:
        print(f"{unknown} tokens of the prompt are not in the vocabulary", file=sys.stderr)
    allowed = torch.zeros(trained.model.decoder.lm.vocab_size, dtype=torch.bool)
    allowed[list(tokenizer.text_tokens())] = True
    allowed[tokenizer.eos] = True
    generator = torch.Generator().manual_seed(options.seed)
    tokens = generate(
        trained.model.decoder.lm, prompt, lambda scores_V: choice.draw(scores_V, generator),
        piece=options.piece, allowed=allowed,
    )  # fmt: skip
    print(text, end="", flush=True)
    limited = itertools.islice(tokens, options.tokens)
    for part in tokenizer.stream(until_end(limited, tokenizer, options.past_end)):
        print(part, end="", flush=True)
    print()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    return exit_status(lambda: run(options), "")


if __name__ == "__main__":
    sys.exit(main())
