"""The command ``megalodon``: one subcommand per task, each in a file of its name."""

import argparse
import difflib
import importlib
import signal
import sys
from collections.abc import Sequence

import megalodon_tasks
from megalodon_tasks.errors import user_errors
from megalodon_tasks.signals import exit_status, interruptible

INTERRUPTED = exit_status(signal.SIGINT)

# subcommand -> what it does.  Each is a module of this package, imported when it is called, so that
# ``--help`` is quick.  Its ``main(arguments)`` may return an exit status; its ``AFTER_INTERRUPT`` says
# what Ctrl-C left.
COMMANDS = {
    "prepare": "check a data set and bring it into the form that training reads",
    "train": "train a recipe with fairseq and hydra",
    "slurm": "train a recipe as a job of SLURM, on one machine or several",
    "evaluate": "evaluate a classifier, or a language model as in validation",
    "evaluate-lm": "evaluate a language model on documents of any length",
    "lm-eval": "evaluate a language model on tasks of lm-evaluation-harness",
    "evaluate-translation": "translate a split and compare with its references",
    "evaluate-answers": "answer the questions of conversations and count exact answers",
    "sample": "draw text from a language model",
    "chat": "hold a conversation with a language model",
    "convert": "convert to and from released checkpoints and Hugging Face",
    "sweep": "train and evaluate a recipe over a grid of settings",
    "report": "draw training curves and write a page that compares runs",
    "inspect": "draw what a trained model does",
}

EXAMPLES = """examples:
  megalodon prepare lra/listops DATA DATA/prepared
  megalodon train --config-dir recipes/lra --config-name listops --data DATA/prepared --save-dir SAVE
  megalodon evaluate SAVE/checkpoint_best.pt
  megalodon sweep lra/listops DATA SWEEP --chunk-sizes 64 128 full

`megalodon COMMAND --help` lists the options of a command.  In a checkout: python -m megalodon_tasks."""


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
    """Run a subcommand; return its exit status: 130 after Ctrl-C, and 2 for an unknown command.

    Raises :class:`UserError` for what the user can put right.  Uncaught, it ends the process with one
    message and status 1 (see :func:`megalodon_tasks.errors.install_excepthook`).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    command = parser.parse_args(words[:1]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=2) or COMMANDS
        parser.error(f"unknown command {command!r}; there is {', '.join(near)}")
    try:
        module = importlib.import_module(f"megalodon_tasks.cli.{command.replace('-', '_')}")
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] not in ("fairseq", "fairseq_cli"):
            raise
        parser.error(
            f"{command} needs fairseq: pip install 'megalodon-tasks[fairseq]', or any other "
            "distribution of fairseq 0.12.3"
        )
    try:
        with interruptible(), user_errors():
            return module.main(words[1:]) or 0
    except KeyboardInterrupt as interrupt:
        said = ("interrupted", str(interrupt), getattr(module, "AFTER_INTERRUPT", ""))
        print("; ".join(filter(None, said)), file=sys.stderr)
        return INTERRUPTED
