"""Options that several subcommands share."""

import argparse
from pathlib import Path

from megalodon_tasks.option_types import real, whole

ANY_MODEL = "a checkpoint, a release, or a folder of Hugging Face"


def parser(
    command: str, description: str, example: str, **options: bool
) -> argparse.ArgumentParser:
    """Return the parser of ``megalodon COMMAND``, whose help ends with an example."""
    return argparse.ArgumentParser(
        prog=f"megalodon {command}",
        description=description,
        epilog=f"example:\n  megalodon {command} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def chunk_size(text: str) -> int | str:
    """Return ``full``, or the number of steps that ``text`` says."""
    if text == "full":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number of steps from 1 on, or full")
    return int(text)


def add_checkpoint(
    parser: argparse.ArgumentParser, what: str = "a file that a training run wrote"
) -> None:
    """Add the checkpoint, which is ``what``, and the data to read it with."""
    add = parser.add_argument
    add("checkpoint", type=Path, help=what)
    add("--data", type=Path, help="folder of the prepared data (default: as in training)")


def add_chunk_size(parser: argparse.ArgumentParser) -> None:
    """Add the chunk size of the model that is evaluated."""
    parser.add_argument(
        "--chunk-size", type=chunk_size, metavar="N",
        help="steps in an attention chunk, or full for no chunks (default: "
        "task.eval_chunk_size, else as in training)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--cpu``, which sets ``device``."""
    parser.add_argument(
        "--cpu", dest="device", action="store_const", const="cpu", help="do not use a GPU"
    )


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Add how text is drawn from a model."""
    add, positive = parser.add_argument, whole(1)
    add("--tokens", type=positive, default=500, help="stop after so many (default: %(default)s)")
    add(
        "--temperature", type=real(0), default=1.0, help="0 takes the likeliest (default: %(default)s)"
    )  # fmt: skip
    add("--top-k", type=whole(0), default=0, help="draw from the so many likeliest (default: all)")
    add(
        "--top-p", type=real(0, 1), default=1.0,
        help="draw from the fewest with this probability together",
    )  # fmt: skip
    add("--seed", type=int, default=1, help="equal seeds give equal text (default: %(default)s)")
    add("--piece", type=positive, default=4096, help="tokens of the prompt read at a time")
    add_device(parser)


def add_result(parser: argparse.ArgumentParser) -> None:
    """Add what is evaluated, and where the result is recorded."""
    add = parser.add_argument
    add("--split", default="test", help="which split (default: %(default)s)")
    add_device(parser)
    add(
        "--results", type=Path, help="file of JSON lines (default: results.jsonl beside CHECKPOINT)"
    )
    add("--recipe", help="id in recipes/results.csv (default: the task's name)")
