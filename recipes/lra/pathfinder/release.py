"""Reading Pathfinder images in the layout of the Long Range Arena release.

    pathfinder128/curv_contour_length_14/imgs/<batch>/sample_<i>.png
    pathfinder128/curv_contour_length_14/metadata/<batch>.npy

The metadata are text in spite of their name, one line per image: folder, file, number, *label*,
continuity, contour length and more.  The fourth field is the class.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from megalodon_tasks.data.parallel import in_turns
from megalodon_tasks.data.sources import Origin, Rejects

CLASSES = ("not joined", "joined")

_LABEL = 3
# lra_release/lra_release/pathfinder128, and some levels of the user's own above it.
_DEPTH = 5
_PORTION = 64  # images that a process decodes before it reports back
# numpy's own format, which the public generator writes, begins with this.
_BINARY = b"\x93NUMPY"


class Entry(NamedTuple):
    """One line of metadata: the image and its class."""

    path: Path
    label: int


def find_releases(source: Path, folder: str) -> list[Path]:
    """All folders such as ``pathfinder128/curv_contour_length_14`` in ``source``, the deepest first.

    ``source`` may be that folder, its parent, or one up to ``_DEPTH`` levels above, of any names.  The
    release has two folders ``pathfinder128``, of which one is reported to be broken (issue 38 of the
    benchmark's repository); S4's documented commands take the inner one.
    """
    if _has_images(source):
        return [source]
    group, name = Path(folder).parts
    found = [source / name] if _has_images(source / name) else []
    found += [path / name for path in _folders(source, _DEPTH) if path.name == group]
    found = sorted({path for path in found if _has_images(path)})
    return sorted(found, key=lambda path: -len(path.parts))


def _has_images(folder: Path) -> bool:
    return (folder / "metadata").is_dir() and (folder / "imgs").is_dir()


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folders below ``folder``, but not those inside a folder of images."""
    if depth == 0 or _has_images(folder):
        return
    with os.scandir(folder) as entries:
        inner = sorted(Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))
    for path in inner:
        yield path
        yield from _folders(path, depth - 1)


def size_of_images(folder: Path) -> int:
    """The bytes of all files below ``imgs``, which change where an image is replaced."""
    total = 0
    for batch in (folder / "imgs").iterdir():
        if batch.is_dir():
            with os.scandir(batch) as entries:
                total += sum(entry.stat().st_size for entry in entries)
    return total


def metadata_of(folder: Path) -> Origin:
    """The metadata files by their number.

    Raises ``ValueError`` if there are none, or one is not named by a number.
    """
    paths = list((folder / "metadata").glob("*.npy"))
    unnumbered = [path for path in paths if not path.stem.isdecimal()]
    if unnumbered or not paths:
        what = f"{unnumbered[0].name} is not named by a number" if unnumbered else "no <number>.npy"
        raise ValueError(f"{folder / 'metadata'}: {what}; unpack the release once more")
    return Origin("metadata", sorted(paths, key=lambda path: int(path.stem)))


def read_metadata(folder: Path, origin: Origin, rejects: Rejects) -> list[Entry | None]:
    """An entry per line of all files, in order; None for a line that went to ``rejects``.

    The place of every line is kept, so that a damaged one does not move the others between splits.
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
        return None, f"has {len(fields)} fields, wanted at least {_LABEL + 1}"
    label = fields[_LABEL]
    if label not in ("0", "1"):
        return None, f"has the label {label!r}, wanted 0 or 1"
    return Entry(folder / fields[0] / fields[1], int(label)), ""


def read_images(
    entries: Sequence[Entry], side: int, workers: int, rejects: Rejects
) -> Iterator[tuple[int, np.ndarray | None]]:
    """The class and the pixels (side * side,) uint8 of each image, on ``workers`` cores.

    An image that cannot be used goes to ``rejects`` and comes as None.
    """
    make = functools.partial(_decode_portions, entries, side)
    portions = -(-len(entries) // _PORTION)
    with closing(in_turns(make, max(1, min(workers, portions)))) as decoded:
        for first, pixels in zip(range(0, len(entries), _PORTION), decoded, strict=True):
            for entry, found in zip(entries[first : first + _PORTION], pixels, strict=True):
                if isinstance(found, str):
                    rejects.add(entry.path, found)
                    yield entry.label, None
                else:
                    yield entry.label, found


def _decode_portions(
    entries: Sequence[Entry], side: int, first: int, step: int
) -> Iterator[list[np.ndarray | str]]:
    starts = range(0, len(entries), _PORTION)
    for start in starts[first::step]:
        yield [_decode(entry.path, side) for entry in entries[start : start + _PORTION]]


def _decode(path: Path, side: int) -> np.ndarray | str:
    """The pixels, or what is wrong with the file."""
    try:
        if path.stat().st_size == 0:
            return "is empty"
        with Image.open(path) as image:
            if image.size != (side, side):
                return f"is {image.width}x{image.height}, wanted {side}x{side}"
            if image.mode != "L":
                return f"has the mode {image.mode!r}, wanted 8-bit grey ('L')"
            return np.asarray(image).reshape(-1)
    except FileNotFoundError:
        return "is missing"
    except (OSError, SyntaxError, ValueError) as error:
        return f"is no readable image ({error})"
