"""Continue a text: ``megalodon sample CHECKPOINT --prompt "Once upon a time"``.

The text appears as it is drawn and ends at the model's end of a document, or after ``--tokens``.  A
prompt of any length is read in pieces, so it need not fit into memory at once.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megalodon_tasks.cli import options
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import sampling, text_model
from megalodon_tasks.files import read_bytes


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "sample", "Continue a text.", 'SAVE/checkpoint_best.pt --prompt "Once upon a time"'
    )
    options.add_checkpoint(parser, options.ANY_MODEL)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", default="", help="the text to continue (default: a new document)"
    )
    prompt.add_argument(
        "--prompt-file", help="a file with the text to continue, - for standard input"
    )
    options.add_drawing(parser)
    parser.add_argument(
        "--past-end", action="store_true", help="continue with another document at the end of one"
    )
    return parser


def read_prompt(prompt: str, prompt_file: str | None) -> str:
    """Return the text to continue.  Raises :class:`UserError` if it is not UTF-8."""
    if prompt_file is None:
        data, where = prompt.encode("utf-8", "surrogateescape"), "--prompt"
    elif prompt_file == "-":
        data, where = sys.stdin.buffer.read(), "standard input"
    else:
        data, where = read_bytes(Path(prompt_file)), prompt_file
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}"
        ) from None


def main(arguments: Sequence[str]) -> None:
    """Write the prompt and what follows it to standard output."""
    given = build_parser().parse_args(arguments)
    choice = sampling.Choice(given.temperature, given.top_k, given.top_p)
    text = read_prompt(given.prompt, given.prompt_file)
    loaded = text_model.load(given.checkpoint, given.data, given.device)
    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = torch.tensor([tokenizer.eos, *tokenizer.encode(text).tolist()], dtype=torch.int64)
    unknown = int((prompt == tokenizer.dictionary().unk()).sum())
    if unknown:
        print(f"{unknown} tokens of the prompt are not in the vocabulary", file=sys.stderr)
    generator = torch.Generator().manual_seed(given.seed)
    tokens = sampling.generate(
        model, prompt, lambda scores_V: choice.draw(scores_V, generator),
        piece=given.piece, allowed=sampling.text_tokens(tokenizer, model.vocab_size),
    )  # fmt: skip
    print(text, end="", flush=True)
    limited = itertools.islice(tokens, given.tokens)
    for part in tokenizer.stream(sampling.until_end(limited, tokenizer, given.past_end)):
        print(part, end="", flush=True)
    print()
