"""Handwritten digits as an ImageFolder tree: the demo's stand-in for ImageNet.

The 1,797 grey images of 8 x 8 pixels that ship with scikit-learn, as PNG files ``OUT/train/<digit>/``
(1,297), ``OUT/val`` (200) and ``OUT/test`` (300), each with its share of every digit.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from megalodon_tasks.files import atomic_file

SPLIT_SEED = 0
HELD_OUT = {"test": 300, "val": 200}


def write_tree(out: Path) -> int:
    """Write the missing files of the tree, the same each time; return the number of images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rest = np.arange(len(digits.target))
    parts: dict[str, np.ndarray] = {}
    for split, count in HELD_OUT.items():
        rest, parts[split] = train_test_split(
            rest, test_size=count, stratify=digits.target[rest], random_state=SPLIT_SEED
        )
    for split, indices in {**parts, "train": rest}.items():
        for index in indices:
            folder = out / split / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / f"{index:04d}.png").exists():
                continue
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            with atomic_file(folder / f"{index:04d}.png") as stream:
                Image.fromarray(pixels).save(stream, "PNG")
    return len(digits.target)


def main(arguments: Sequence[str]) -> None:
    """Write the tree into the folder that is given."""
    (out,) = arguments
    print(f"{out}: {write_tree(Path(out))} images of digits")
