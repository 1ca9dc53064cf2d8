"""The command ``megalodon``: one subcommand per task, each in a file of its name."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

import megalodon_tasks

# subcommand -> what it does.  Each is a module of this package whose ``main(arguments)`` returns an exit
# status; it is imported when called, so that ``--help`` is quick.
COMMANDS = {
    "prepare": "check a data set and bring it into the form that training reads",
    "train": "train a recipe with fairseq and hydra",
    "evaluate": "evaluate a classifier, or a language model as in validation",
    "evaluate-lm": "evaluate a language model on documents of any length",
    "sample": "draw text from a language model",
    "convert": "convert to and from the released checkpoints",
    "sweep": "train and evaluate a recipe over a grid of settings",
    "report": "draw training curves and write a page that compares runs",
    "inspect": "draw what a trained model does",
}

EXAMPLES = """examples:
  megalodon prepare lra/listops DATA DATA/prepared
  megalodon train --config-dir recipes/lra --config-name listops --data DATA/prepared --save-dir SAVE
  megalodon evaluate SAVE/checkpoint_best.pt
  megalodon sweep lra/listops DATA SWEEP --chunk-sizes 64 128 full

`megalodon COMMAND --help` lists the options of a command; from a checkout: python -m megalodon_tasks."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the first word; the subcommand parses the others."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="megalodon",
        usage="megalodon COMMAND ...",
        description=f"Train and test Megalodon.\n\ncommands:\n{listing}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=megalodon_tasks.__version__)
    parser.add_argument("command", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status.  An unknown one exits with status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    command = parser.parse_args(words[:1]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=2) or COMMANDS
        parser.error(f"unknown command {command!r}; there is {', '.join(near)}")
    module = importlib.import_module(f"megalodon_tasks.cli.{command.replace('-', '_')}")
    return module.main(words[1:]) or 0
