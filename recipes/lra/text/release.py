"""Read the IMDB reviews (task Text of Long Range Arena) in the layout of their release.

    aclImdb/{train,test}/{pos,neg}/<number>_<stars>.txt

12,500 files each, one review per file.  ``train/unsup`` and other files of the release are not read.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from megalodon_tasks.data.finding import find_files, folders_in
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sources import Origin, listing

CLASSES = ("neg", "pos")
PARTS = ("train", "test")
RELEASED_PER_FOLDER = 12_500

_NAME = re.compile(r"(\d+)_(\d+)\.txt")
# Reviews with 5 or 6 stars were left out of the release.
_STARS = {"neg": range(1, 5), "pos": range(7, 11)}


class Review(NamedTuple):
    """One file: where it is, its place among the readable files of its folder, class and bytes."""

    path: Path
    place: int
    label: int
    text: bytes


def find_reviews(source: Path, *, subset: bool = False) -> dict[str, Origin] | None:
    """Find the four folders of reviews below ``source``, as ``train/neg`` and so on; None if not there.

    Raises ``ValueError`` if a folder is missing beside others, has a file that is not named as the
    release names reviews, or, unless ``subset``, not as many reviews as the release.
    """
    names = {key: key for key in (f"{part}/{c}" for part in PARTS for c in CLASSES)}
    folders = find_files(folders_in(source), names, "unpack the archive again")
    return folders and {key: _reviews_in(key, path, subset) for key, path in folders.items()}


def _reviews_in(key: str, folder: Path, subset: bool) -> Origin:
    """Return the reviews of a folder by their number."""
    numbered = []
    for path in listing(folder):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            numbered.append((int(match[1]), int(match[2]), path))
        elif path.suffix == ".txt":
            raise ValueError(
                f"{path} is not named as a review of the release, <number>_<stars>.txt; remove it"
            )
    if not subset and len(numbered) != RELEASED_PER_FOLDER:
        raise ValueError(
            f"{folder} has {len(numbered)} reviews, the release has {RELEASED_PER_FOLDER}: the "
            "download or the unpacking was cut short, or there are surplus files; unpack it again, or "
            "say --subset to take what there is"
        )
    if not numbered:
        raise ValueError(f"{folder} has no reviews, <number>_<stars>.txt")
    return Origin(key, [path for _, _, path in sorted(numbered)])


def read_reviews(origins: Mapping[str, Origin], part: str, on_bytes: OnBytes) -> Iterator[Review]:
    """Yield every review of ``part`` (``train`` or ``test``), those of class 0 first.

    Raises ``ValueError`` for a review whose stars say that it belongs into the other folder.
    """
    for label, class_ in enumerate(CLASSES):
        for place, (path, text) in enumerate(origins[f"{part}/{class_}"].contents(on_bytes)):
            stars = int(_NAME.fullmatch(path.name)[2])
            if stars not in _STARS[class_]:
                raise ValueError(
                    f"{path}: a review with {stars} stars lies in the folder {class_}, where they have "
                    f"{_STARS[class_][0]} to {_STARS[class_][-1]}; the labels are wrong, unpack again"
                )
            yield Review(path, place, label, text)
