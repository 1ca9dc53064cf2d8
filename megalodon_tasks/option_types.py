"""Types of command-line options that are numbers, with their limits."""

import argparse
import math
from collections.abc import Callable

LARGEST = 2**31 - 1  # what a count may be at most, so that it fits everywhere
PROCESSES = 1024  # at most, of workers


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """Return the type of an option that is a whole number from ``least`` to ``most``."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text} must be at least {least}" if value < least else f"{text} exceeds {most}"
            )
        return value

    return number


def real(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Return the type of an option that is a finite number from ``least`` to ``most``."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not least <= value <= most:
            limits = (
                f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            )
            raise argparse.ArgumentTypeError(
                f"{text} must be a finite number" + (f" {limits}" if math.isfinite(least) else "")
            )
        return value

    return number
