"""The files that prepared data is made of: read with progress and checksum, and known again later."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megalodon_tasks.data.storage import sha256_of

OnBytes = Callable[[int], None]


def _ignore(count: int) -> None:
    """Tell nobody how much was read."""


class Origin:
    """One file, or many that belong together, such as those of a folder.

    Reading through it takes the checksum on the way: that of the file, or of names, sizes and contents
    of the files in their order.  ``on_bytes`` is told how many bytes were just read; reading the same
    files again tells nothing more.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths = name, tuple(paths)
        self._description: dict[str, Any] | None = None

    @classmethod
    def of_file(cls, path: Path) -> "Origin":
        """The origin that is this one file."""
        return cls(path.name, [path])

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def lines(self, on_bytes: OnBytes = _ignore) -> Iterator[bytes]:
        """The lines of the one file, with their ends."""
        (path,) = self.paths
        status, digest = self._status(), hashlib.sha256()
        told = self._first_time(on_bytes)
        with open(path, "rb") as stream:
            for line in stream:
                digest.update(line)
                told(len(line))
                yield line
        self._description = {**status, "sha256": digest.hexdigest()}

    def contents(self, on_bytes: OnBytes = _ignore) -> Iterator[tuple[Path, bytes]]:
        """Each file with all that it holds."""
        status, digest = self._status(), hashlib.sha256()
        told = self._first_time(on_bytes)
        for path in self.paths:
            data = path.read_bytes()
            if len(self.paths) > 1:
                digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
            told(len(data))
            yield path, data
        self._description = {**status, "sha256": digest.hexdigest()}

    def description(self) -> dict[str, Any]:
        """What identifies the files: name, size, time of the latest change, checksum; as JSON has it.

        They are read for that unless they were read to their end before.
        """
        if self._description is None:
            self._description = {**self._status(), "sha256": self._sha256()}
        return self._description

    def is_same(self, known: dict[str, Any]) -> bool:
        """Whether ``known`` describes these very files; reads them only if size and time do not tell."""
        status = self._status()
        if any(status[key] != known.get(key) for key in status.keys() & {"bytes", "files"}):
            return False
        if status["modified_ns"] == known.get("modified_ns"):
            return True
        return self._sha256() == known.get("sha256")

    def _first_time(self, on_bytes: OnBytes) -> OnBytes:
        return on_bytes if self._description is None else _ignore

    def _sha256(self) -> str:
        if len(self.paths) == 1:
            return sha256_of(self.paths[0])
        again = Origin(self.name, self.paths)
        for _ in again.contents():
            pass
        return again.description()["sha256"]

    def _status(self) -> dict[str, Any]:
        status = [path.stat() for path in self.paths]
        many = {"files": len(status)} if len(status) > 1 else {}
        return {
            "name": self.name,
            **many,
            "bytes": sum(one.st_size for one in status),
            "modified_ns": max(one.st_mtime_ns for one in status),
        }
