"""How the commands that prepare and generate data end: with one message, and a status for the shell."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_with_messages(parser: argparse.ArgumentParser, interrupted: str) -> Iterator[None]:
    """End the process with status 2 and the message of a ``ValueError`` or ``OSError`` of the block.

    After Ctrl-C: with status 130 and ``interrupted``.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; {interrupted}\n")
