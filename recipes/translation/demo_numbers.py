"""Sentence pairs that are exact: lists of numbers in English words and in digits, in both directions.

    words three hundred forty two , seventeen     ->  3 4 2 , 1 7
    digits 3 4 2 , 1 7                            ->  three hundred forty two , seventeen

The first word of a source says what it is written in.  Training, validation and test have lists of
up to ``NUMBERS`` numbers below a million, and ``test1`` has lists of exactly twice as many.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.files import atomic_file

NUMBERS, SEED = 3, 1
PAIRS = {"train": 60_000, "valid": 500, "test": 1_000, "test1": 500}
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> list[str]:
    """Return the English words of a number from 0 to 999,999, without hyphens and without "and"."""
    if not 0 <= number < 10**6:
        raise ValueError(f"number {number} is not in 0 to 999,999")
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            below = number % unit
            return [*in_words(number // unit), name, *(in_words(below) if below else [])]
    if number < 20:
        return [ONES[number]]
    return [TENS[number // 10 - 2], *([ONES[number % 10]] if number % 10 else [])]


def draw_pair(draw: random.Random, numbers: int) -> tuple[str, str]:
    """Draw a list of ``numbers`` numbers, of even chances for 1 to 6 digits, and a direction."""
    values = [draw.randrange(10 ** draw.randint(1, 6)) for _ in range(numbers)]
    words = " , ".join(" ".join(in_words(value)) for value in values)
    digits = " , ".join(" ".join(str(value)) for value in values)
    return (f"words {words}", digits) if draw.random() < 0.5 else (f"digits {digits}", words)


def draw_split(split: str, count: int) -> list[tuple[str, str]]:
    """Draw the pairs of a split, always the same."""
    draw = random.Random(f"{SEED} {split}")
    longer = split == "test1"
    return [
        draw_pair(draw, 2 * NUMBERS if longer else draw.randint(1, NUMBERS)) for _ in range(count)
    ]


def main(arguments: Sequence[str]) -> None:
    """Write ``SPLIT.en`` (source) and ``SPLIT.de`` (target) of each split into a folder.

    The languages have the names of the recipe whose demo this is.
    """
    (folder,) = map(Path, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in PAIRS.items():
        pairs = draw_split(split, count)
        for side, language in enumerate(("en", "de")):
            with atomic_file(folder / f"{split}.{language}", "w") as stream:
                stream.writelines(f"{pair[side]}\n" for pair in pairs)
