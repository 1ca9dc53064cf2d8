"""Read Pathfinder images in the layout of the Long Range Arena release.

    pathfinder128/curv_contour_length_14/imgs/<batch>/sample_<i>.png
    pathfinder128/curv_contour_length_14/metadata/<batch>.npy

The metadata are text in spite of their name, one line per image: folder, file, number, *label*,
continuity, contour length and more.  The fourth field is the class.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from megalodon_tasks.data.finding import folders_in
from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.sources import Origin, Rejects, is_leftover, listing
from megalodon_tasks.files import size_of

CLASSES = ("not joined", "joined")

_LABEL = 3
_PORTION = 64  # images that a process decodes before it reports back
# numpy's own format, which the public generator writes, begins with this.
_BINARY = b"\x93NUMPY"


class Entry(NamedTuple):
    """One line of metadata: the image and its class."""

    path: Path
    label: int


def find_releases(source: Path, folder: str) -> list[Path]:
    """Find all folders such as ``pathfinder128/curv_contour_length_14``, the deepest first.

    ``source`` may be that folder, its parent, or above.  The release has two folders ``pathfinder128``,
    of which one is reported to be broken (issue 38 of the benchmark's repository); S4's documented
    commands take the inner one.
    """
    if _has_images(source):
        return [source]
    group, name = Path(folder).parts
    found = [
        path
        for path in folders_in(source)
        if path.name == name and (path.parent == source or path.parent.name == group)
    ]
    return sorted(filter(_has_images, found), key=lambda path: (-len(path.parts), path))


def _has_images(folder: Path) -> bool:
    return (folder / "metadata").is_dir() and (folder / "imgs").is_dir()


def size_of_images(folder: Path) -> int:
    """Add up the bytes of all files below ``imgs``, which change where an image is replaced."""
    total = 0
    for batch in listing(folder / "imgs"):
        if batch.is_dir():
            with os.scandir(batch) as entries:
                total += sum(e.stat().st_size for e in entries if not is_leftover(e.name))
    return total


def metadata_of(folder: Path) -> Origin:
    """Return the metadata files by their number.

    Raises ``ValueError`` if there are none, or one is not named by a number.
    """
    paths = [path for path in listing(folder / "metadata") if path.suffix == ".npy"]
    unnumbered = [path for path in paths if not path.stem.isdecimal()]
    if unnumbered or not paths:
        what = f"{unnumbered[0].name} is not named by a number" if unnumbered else "no <number>.npy"
        raise ValueError(f"{folder / 'metadata'}: {what}; unpack the release once more")
    return Origin("metadata", sorted(paths, key=lambda path: int(path.stem)))


def read_metadata(folder: Path, origin: Origin, rejects: Rejects) -> list[Entry | None]:
    """Return an entry per line of all files, in order; None for a line that went to ``rejects``.

    Every line keeps its place, so that a damaged one does not move the others between splits.
    Raises ``ValueError`` for a file in numpy's binary format.
    """
    entries: list[Entry | None] = []
    for path, data in origin.contents():
        if data.startswith(_BINARY):
            raise ValueError(
                f"{path} is a binary array, as the public generator writes it; the release has text"
            )
        text = data.decode("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            entry, reason = _entry(folder, line)
            if entry is None:
                rejects.add(f"{path}, line {number}", reason)
            entries.append(entry)
    return entries


def _entry(folder: Path, line: str) -> tuple[Entry | None, str]:
    fields = line.split()
    if len(fields) <= _LABEL:
        return None, f"has {len(fields)} fields, expected at least {_LABEL + 1}"
    label = fields[_LABEL]
    if label not in ("0", "1"):
        return None, f"has the label {label!r}, expected 0 or 1"
    return Entry(folder / fields[0] / fields[1], int(label)), ""


def without_repeats(entries: Sequence[Entry | None]) -> list[Entry | None]:
    """Leave out entries whose file has the same bytes as that of an earlier one.

    Entries that are None or whose file cannot be read keep their places.
    """
    seen: set[bytes] = set()
    distinct: list[Entry | None] = []
    for entry in entries:
        if entry is not None and entry.path.is_file():
            digest = hashlib.sha256(entry.path.read_bytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        distinct.append(entry)
    return distinct


def read_images(
    entries: Sequence[Entry], side: int, workers: int, rejects: Rejects
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield the class and the pixels (side * side,) uint8 of each image, on ``workers`` cores.

    An image that cannot be used goes to ``rejects`` and comes as None.
    """
    paths = [entry.path for entry in entries]
    decoded = map_in_order(functools.partial(_decode, side=side), paths, workers, _PORTION)
    for entry, pixels in zip(entries, decoded, strict=True):
        if isinstance(pixels, str):
            rejects.add(entry.path, pixels)
            pixels = None
        yield entry.label, pixels


def _decode(path: Path, side: int) -> np.ndarray | str:
    """Return the pixels, or what is wrong with the file."""
    try:
        if size_of(path) == 0:
            return "is empty"
        with Image.open(path) as image:
            if image.size != (side, side):
                return f"is {image.width}x{image.height}, expected {side}x{side}"
            if image.mode != "L":
                return f"has the mode {image.mode!r}, expected 8-bit grey ('L')"
            return np.asarray(image).reshape(-1)
    except FileNotFoundError:
        return "is missing"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"is no readable image ({error})"
