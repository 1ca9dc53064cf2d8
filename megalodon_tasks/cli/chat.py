"""Hold a conversation with a language model: ``megalodon chat CHECKPOINT``.

Each line of standard input is a question; its answer appears as it is drawn.  The model's state is
carried from turn to turn, so that no turn reads an earlier one again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megalodon_tasks.cli import options
from megalodon_tasks.data.conversations import (
    SYSTEM,
    USER,
    ConversationEncoder,
    Message,
    Template,
    template_of,
)
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint, sampling, text_model
from megalodon_tasks.evaluation.chat import Chat

PROMPT = "> "


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "chat", "Answer each line of standard input.", "SAVE/checkpoint_best.pt --temperature 0.7"
    )
    options.add_checkpoint(parser, options.ANY_MODEL)
    options.add_drawing(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is to know beforehand")
    parser.add_argument(
        "--template",
        type=Path,
        help="JSON file with a text for each role (default: that of the data)",
    )
    return parser


def find_template(given: argparse.Namespace) -> Template:
    """Return the template that is named, or that of the data; raise :class:`UserError` without one."""
    if given.template is not None:
        return Template.read(given.template)
    if given.data is None and not text_model.is_of_fairseq(given.checkpoint):
        raise UserError(
            f"{given.checkpoint} does not say which template its conversations had; name a file by "
            "--template, or the prepared conversations by --data"
        )
    return template_of(read_corpus(given.data or checkpoint.data_of(given.checkpoint)))


def main(arguments: Sequence[str]) -> None:
    """Answer until standard input ends."""
    given = build_parser().parse_args(arguments)
    choice = sampling.Choice(given.temperature, given.top_k, given.top_p)
    if given.system is not None and not given.system.strip():
        raise UserError("--system is an empty text; leave it out")
    loaded = text_model.load(given.checkpoint, given.data, given.device)
    tokenizer = loaded.tokenizer
    encoder = ConversationEncoder(find_template(given), tokenizer)
    generator = torch.Generator().manual_seed(given.seed)
    chat = Chat(
        loaded.model, tokenizer, lambda scores_V: choice.draw(scores_V, generator),
        most=given.tokens, piece=given.piece,
    )  # fmt: skip
    before = [] if given.system is None else [Message(SYSTEM, given.system)]
    interactive = sys.stdin.isatty()
    while True:
        print(PROMPT if interactive else "", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            print("an empty line asks nothing", file=sys.stderr)
            continue
        prompt = encoder.prompt([*before, Message(USER, line.rstrip("\n"))])
        for part in tokenizer.stream(chat.answer(prompt)):
            print(part, end="", flush=True)
        print(flush=True)
        before = []
