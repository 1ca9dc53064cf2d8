"""Find a data set in the folder that a user names, or below it, or still packed in an archive."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from megalodon_tasks.data.manifest import is_prepared
from megalodon_tasks.data.sources import is_leftover, listing, packed_inside

DEPTH = 5
_ARCHIVES = (".gz", ".tgz", ".tar", ".zip")
# Folders of very many images, which hold nothing to be found.
_NOT_SEARCHED = {"imgs"}


def folders_in(source: Path) -> Iterator[Path]:
    """Yield ``source`` and the folders up to ``DEPTH`` levels below it, level by level, by name.

    Symbolic links are followed, to each folder once.  Left out are hidden folders and prepared data.
    """
    level, seen = [source], {os.path.realpath(source)}
    for _ in range(DEPTH + 1):
        yield from level
        inner = [path for folder in level for path in _subfolders(folder)]
        level = []
        for path in inner:
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                level.append(path)


def _subfolders(folder: Path) -> list[Path]:
    # a folder of a class may hold many thousand files, of which none is to be looked at
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not is_leftover(e.name) and e.is_dir())
    found = [folder / name for name in names if name not in _NOT_SEARCHED]
    return [path for path in found if not is_prepared(path)]


def folders_named(source: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield ``source``, and the folders below it that have one of these ``names``."""
    return (folder for folder in folders_in(source) if folder == source or folder.name in names)


def find_files(
    folders: Iterable[Path], files: Mapping[str, str], advice: str
) -> dict[str, Path] | None:
    """Find all of ``files`` (key -> path) in the first of ``folders`` that has any of them.

    Returns None where no folder has any.  Raises ``ValueError`` that ends in ``advice`` if only some
    are there.
    """
    for folder in folders:
        found = {key: folder / name for key, name in files.items()}
        missing = [path for path in found.values() if not path.exists()]
        if not missing:
            return found
        if len(missing) < len(found):
            raise ValueError(f"{missing[0]} is missing beside the other files; {advice}")
    return None


def not_recognised(source: Path, expected: str, advice: str) -> ValueError:
    """Make the error for a folder that holds none of ``expected``; ``advice`` says where to get it."""
    found = listing(source)
    state = "holds no data that is recognised" if found else "is empty"
    archives = [path.name for path in found if path.suffix in _ARCHIVES]
    return ValueError(
        f"{source} {state}: looked there and {DEPTH} levels below for {expected}, and there for "
        f"prepared data; {packed_inside(source, archives)}{advice}"
    )
