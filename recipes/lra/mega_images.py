"""Mega's processed files of the image tasks, which are text.

    input/{train,valid,test}.src      one image per line: pixels from 0 to 255, separated by spaces
    label/{train,valid,test}.label    one class per line

They are read line by line: the Path-X files have 16,384 numbers in each of 160,000 lines.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sources import Origin, Rejects, find_files

SPLITS = ("train", "valid", "test")


def find_mega_images(source: Path, names: tuple[str, ...]) -> dict[str, Origin] | None:
    """The files of one task below ``source`` as ``train.src``, ``train.label`` ...; None if not there.

    ``names`` are those that Mega's archive gives to the folder.  Raises ``ValueError`` if only some of
    the files are there.
    """
    files = {f"{split}.src": f"input/{split}.src" for split in SPLITS}
    files |= {f"{split}.label": f"label/{split}.label" for split in SPLITS}
    folders = ["", *names, *(f"lra/{name}" for name in names)]
    found = find_files(source, files, folders, "copy the folder of the task once more")
    return None if found is None else {key: Origin.of_file(path) for key, path in found.items()}


def read_mega_images(
    origins: dict[str, Origin],
    split: str,
    pixels: int,
    classes: int,
    rejects: Rejects,
    on_bytes: OnBytes,
) -> Iterator[tuple[int, np.ndarray]]:
    """The class and the ``pixels`` numbers (uint8) of each image of ``split``.

    A line that is no such image, or whose class is none, goes to ``rejects``.  Raises ``ValueError`` if
    the two files differ in their number of lines.
    """
    images, labels = origins[f"{split}.src"], origins[f"{split}.label"]
    (path,), (label_path,) = images.paths, labels.paths
    answers = labels.lines(on_bytes)
    for number, line in enumerate(images.lines(on_bytes), start=1):
        answer = next(answers, None)
        if answer is None:
            raise ValueError(
                f"{label_path} ends after line {number - 1}, {path} goes on: one of them was cut short"
            )
        values, reason = _pixels(line, pixels)
        if values is None:
            rejects.add(f"{path}, line {number}", reason)
        elif not _is_class(answer, classes):
            text = answer.decode(errors="replace").strip()
            rejects.add(
                f"{label_path}, line {number}", f"has the label {text!r}, wanted 0 to {classes - 1}"
            )
        else:
            yield int(answer), values
    if next(answers, None) is not None:
        raise ValueError(f"{path} ends before {label_path} does: one of them was cut short")


def _is_class(answer: bytes, classes: int) -> bool:
    return answer.strip().isdigit() and int(answer) < classes


def _pixels(line: bytes, pixels: int) -> tuple[np.ndarray | None, str]:
    try:
        values = np.array(line.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return None, "holds something else than whole numbers"
    if len(values) != pixels:
        return None, f"has {len(values)} pixels, wanted {pixels}"
    if values.min() < 0 or values.max() > 255:
        return None, f"has pixels from {values.min()} to {values.max()}, wanted 0 to 255"
    return values.astype(np.uint8), ""
