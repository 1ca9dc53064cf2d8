"""Finding what users downloaded: in a folder, deeper inside a release, or still packed."""

from collections.abc import Iterable, Mapping
from pathlib import Path

_ARCHIVES = {
    (".tar.gz", ".tgz", ".gz"): "tar -xzf",
    (".tar",): "tar -xf",
    (".zip",): "unzip",
}


def find_files(
    source: Path, files: Mapping[str, str], folders: Iterable[str], advice: str
) -> dict[str, Path] | None:
    """All of ``files`` (key -> name) from the first of ``folders`` below ``source`` that has any.

    Returns None where none of the folders has any.  Raises ``ValueError`` with ``advice`` at its end if
    only some are there.
    """
    for folder in folders:
        found = {key: source / folder / name for key, name in files.items()}
        missing = [path for path in found.values() if not path.is_file()]
        if not missing:
            return found
        if len(missing) < len(found):
            raise ValueError(f"{missing[0]} is missing beside the other files; {advice}")
    return None


def check_source(source: Path, wanted: str) -> None:
    """Raise ``ValueError`` unless ``source`` is a folder; for an archive, say how to unpack it."""
    if source.is_dir():
        return
    command = _unpacking(source)
    if source.is_file() and command:
        raise ValueError(
            f"{source} is an archive; unpack it with '{command} {source.name}' in its folder, then "
            "pass the unpacked folder"
        )
    raise ValueError(f"{source} is not a folder; wanted {wanted}")


def packed_inside(source: Path, names: Iterable[str]) -> str:
    """A clause that says how to unpack the first archive of ``names`` in ``source``, or nothing."""
    for name in names:
        if (source / name).is_file():
            return f"unpack {source / name} first ({_unpacking(source / name)} {name}); "
    return ""


def _unpacking(path: Path) -> str | None:
    for suffixes, command in _ARCHIVES.items():
        if path.name.endswith(suffixes):
            return command
    return None
