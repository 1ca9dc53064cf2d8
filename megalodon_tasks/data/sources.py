"""The files that data is prepared from: found, read with progress and checksum, recognised later.

Also the list of damaged items in them that are left out.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megalodon_tasks.data.manifest import OnBytes, no_progress, sha256_of
from megalodon_tasks.files import read_bytes, read_lines, size_of

#: More damaged items than this mean that the data itself is damaged.
LIMIT = 100
_NAMED = 10
_LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx"}
_ARCHIVES = {
    (".tar.gz", ".tgz", ".gz"): "tar -xzf",
    (".tar",): "tar -xf",
    (".zip",): "unzip",
}


class Origin:
    """One source file, or many that belong together, such as those of a folder.

    Reading through it takes the checksum on the way: that of the file, or of names, sizes and contents
    of the files in their order.  ``on_bytes`` is called with the number of bytes just read, the first
    time that the files are read.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths = name, tuple(paths)
        self._description: dict[str, Any] | None = None

    @classmethod
    def of_file(cls, path: Path) -> "Origin":
        """Make the origin that is this one file."""
        return cls(path.name, [path])

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(size_of(path) for path in self.paths)

    def lines(self, on_bytes: OnBytes = no_progress) -> Iterator[bytes]:
        """Yield the lines of the one file, with their ends."""
        (path,) = self.paths
        status, digest, on_bytes = self.status(), hashlib.sha256(), self._first_time(on_bytes)
        for line in read_lines(path):
            digest.update(line)
            on_bytes(len(line))
            yield line
        self._description = {**status, "sha256": digest.hexdigest()}

    def contents(self, on_bytes: OnBytes = no_progress) -> Iterator[tuple[Path, bytes]]:
        """Yield each file with all that it holds."""
        status, digest, on_bytes = self.status(), hashlib.sha256(), self._first_time(on_bytes)
        for path in self.paths:
            data = read_bytes(path)
            if len(self.paths) > 1:
                digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
            on_bytes(len(data))
            yield path, data
        self._description = {**status, "sha256": digest.hexdigest()}

    @property
    def was_read(self) -> bool:
        """Whether the checksum is known because the files were read to their end."""
        return self._description is not None

    def description(self, on_bytes: OnBytes = no_progress) -> dict[str, Any]:
        """Return name, size, time of the latest change and checksum, as JSON stores them.

        The files are read for that unless they were read to their end before.
        """
        if self._description is None:
            self._description = {**self.status(), "sha256": self._sha256(on_bytes)}
        return self._description

    def is_same(self, known: Mapping[str, Any]) -> bool:
        """Return whether ``known`` describes these very files.

        They are read only if their size is the same and the time of the latest change is not.
        """
        status = self.status()
        if any(status[key] != known.get(key) for key in status.keys() & {"bytes", "files"}):
            return False
        if status["modified_ns"] == known.get("modified_ns"):
            return True
        return self._sha256() == known.get("sha256")

    def status(self) -> dict[str, Any]:
        """Return name, number of files if there are many, size, and time of the latest change (ns)."""
        status = [path.stat() for path in self.paths]
        many = {"files": len(status)} if len(status) > 1 else {}
        return {
            "name": self.name,
            **many,
            "bytes": sum(one.st_size for one in status),
            "modified_ns": max(one.st_mtime_ns for one in status),
        }

    def _first_time(self, on_bytes: OnBytes) -> OnBytes:
        return no_progress if self.was_read else on_bytes

    def _sha256(self, on_bytes: OnBytes = no_progress) -> str:
        if len(self.paths) == 1:
            return sha256_of(self.paths[0], on_bytes)
        again = Origin(self.name, self.paths)
        for _ in again.contents(on_bytes):
            pass
        return again.description()["sha256"]


def listing(folder: Path) -> list[Path]:
    """Return the files and folders in ``folder`` by name, without what operating systems leave there."""
    return sorted(path for path in folder.iterdir() if not is_leftover(path.name))


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is hidden (``._1.txt``, ``.DS_Store``) or like ``Thumbs.db``."""
    return name.startswith(".") or name.casefold() in _LEFTOVERS


class Rejects:
    """Names of the damaged items that were left out; an item that is met again counts once.

    ``strict`` refuses the first damaged item; otherwise all are refused once there are more than
    ``limit``.
    """

    def __init__(self, *, strict: bool = False, limit: int = LIMIT) -> None:
        self.strict, self.limit = strict, limit
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, item: str | Path, reason: str) -> None:
        """Leave ``item`` out, named by path or place in a file.

        ``reason`` completes a sentence that begins with the name, as in ``is empty``.  Raises
        ``ValueError`` if the item is refused instead.
        """
        self.reasons[str(item)] = reason
        if self.strict:
            raise ValueError(f"{item} {reason}; correct or remove it, or do without --strict")
        if len(self) > self.limit:
            lines = "\n".join(describe(self.reasons))
            raise ValueError(
                f"more than {self.limit} items are damaged, so nothing is used (--max-rejects N "
                f"allows more):\n{lines}"
            )

    def explain(self, error: ValueError) -> ValueError:
        """Return ``error``, about a lack of items, with the items that were left out."""
        return ValueError("\n".join([str(error), *describe(self.reasons)]))


def describe(reasons: Mapping[str, str]) -> list[str]:
    """Return lines that count what was left out (item -> reason) and name the first, or no line."""
    if not reasons:
        return []
    named = [f"  {item} {reason}" for item, reason in list(reasons.items())[:_NAMED]]
    more = [f"  and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return [f"left out as damaged: {len(reasons)}", *named, *more]


def check_source(source: Path, expected: str) -> None:
    """Raise ``ValueError`` unless ``source`` is a folder; for an archive, say how to unpack it."""
    if source.is_dir():
        return
    command = _unpacking(source)
    if source.is_file() and command:
        raise ValueError(
            f"{source} is an archive; unpack it with '{command} {source.name}' in its folder, then "
            "pass the unpacked folder"
        )
    raise ValueError(f"{source} is not a folder; expected {expected}")


def packed_inside(source: Path, names: Iterable[str]) -> str:
    """Return a clause that says how to unpack the first archive of ``names`` in ``source``, or ''."""
    for name in names:
        if (source / name).is_file():
            return f"unpack {source / name} first ({_unpacking(source / name)} {name}); "
    return ""


def _unpacking(path: Path) -> str | None:
    for suffixes, command in _ARCHIVES.items():
        if path.name.endswith(suffixes):
            return command
    return None
