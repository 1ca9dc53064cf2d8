"""Write the data for the demo of Image: scikit-learn's digits, 8 x 8, in the form of Mega's files.

1,797 digits; the split keeps the proportions of the classes and depends on nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from megalodon_tasks.files import atomic_file

SIDE = 8
_HELD_OUT = 297  # for each of validation and test


def write_digits(out: Path) -> None:
    """Write ``input/{train,valid,test}.src`` and ``label/{train,valid,test}.label`` into ``out``."""
    digits = load_digits()
    images = np.rint(digits.images.reshape(len(digits.target), -1) * 255 / 16).astype(int)
    everything = np.arange(len(images))
    train, others = train_test_split(
        everything, test_size=2 * _HELD_OUT, random_state=0, stratify=digits.target
    )
    valid, test = train_test_split(
        others, test_size=_HELD_OUT, random_state=0, stratify=digits.target[others]
    )
    for folder in ("input", "label"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, places in (("train", train), ("valid", valid), ("test", test)):
        lines = [" ".join(map(str, images[place])) for place in places]
        _write(out / "input" / f"{split}.src", lines)
        _write(out / "label" / f"{split}.label", [str(digits.target[place]) for place in places])


def _write(path: Path, lines: list[str]) -> None:
    with atomic_file(path, "w") as stream:
        stream.write("\n".join(lines) + "\n")


def main(arguments: Sequence[str]) -> None:
    """Write the digits into the folder that is given."""
    (out,) = arguments
    write_digits(Path(out))
    print(f"{out}: digits of {SIDE}x{SIDE} pixels")
