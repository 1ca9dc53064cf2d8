"""The manifest of prepared data: what a folder holds, where it came from, and its files.

A folder of prepared data holds ``manifest.json`` and the files that the manifest lists.  The manifest is
written last, so its presence means that everything is complete.  ``writer`` writes all of it; the
readers are ``sequences`` (labelled sequences), ``corpus`` (text as tokens) and, for image trees,
``recipes/imagenet/image_tree``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from megalodon_tasks.data.typed import typed
from megalodon_tasks.data.verified import check_changed
from megalodon_tasks.files import atomic_file, inner_path, read_text, size_of

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"  # folder inside, in which the data grows until it is complete
FORMAT, VERSION = "megalodon-data", 2
# What versions before the manifest wrote.
_EARLIER = ("dataset.json", "corpus.json", "images.json")

OnBytes = Callable[[int], None]


def no_progress(count: int) -> None:
    """Ignore how many bytes were read."""


class FileRecord(TypedDict):
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass
class Manifest:
    """The contents of ``manifest.json``.

    kind: how the data is stored: ``sequences``, ``corpus`` or ``images``.
    benchmark: name of the data (``listops``).
    classes, vocabulary: name of each label, symbol of each token; empty where there are none.
    form: what else the reader of this kind needs (columns, value scale, tokenizer, folder of images).
    source: where the data came from, any JSON.  ``origin`` is ``release``, ``mega`` (Mega's processed
    files), ``generated`` (with the seed in ``settings``), ``demo`` (made for a demo) or ``text`` (the
    user's own files); ``split_rule`` says how items were assigned to splits; ``settings`` is what the
    result depends on beside the files; ``published`` is the form that publications use, see
    ``provenance``; ``files`` are the source files with size and checksum; ``left_out`` names damaged
    items, with the reason; ``duplicates`` counts equal items, see ``writer.duplicates``.
    splits: the counts of each split.  files: path below ``folder`` -> ``bytes`` and ``sha256``.
    """

    folder: Path
    kind: str
    benchmark: str
    source: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    files: dict[str, FileRecord]
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    form: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: str | os.PathLike, kind: str | None = None, contents: bool = True
    ) -> "Manifest":
        """Read the manifest of ``folder`` and check that every file is as it states.

        The size of all files is compared, and with ``contents`` the checksum of those that ``verified``
        does not know.

        Raises ``ValueError``, naming the path, for a folder that is missing or holds no prepared data, a
        manifest that is damaged, of another version or of another ``kind`` (None: any), a name that
        leads out of the folder, and a file that is missing, of another size or of another content.
        """
        folder = Path(folder)
        content = _read_json(folder)
        try:
            manifest = typed(cls, content, folder=folder)
            manifest.classes, manifest.vocabulary = (
                tuple(manifest.classes),
                tuple(manifest.vocabulary),
            )
            manifest._check_names()
            manifest._check_sizes()
            if contents:
                check_changed(folder, manifest.files, manifest.compare)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(folder, error) from None
        if kind not in (None, manifest.kind):
            raise ValueError(
                f"{folder} holds prepared {manifest.kind} ({manifest.benchmark!r}) where {kind} are "
                f"needed; pass the folder of other data, or {_AGAIN}"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, replacing one that is there in one step."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        with atomic_file(folder / MANIFEST, "w") as stream:
            json.dump(
                {"format": FORMAT, "version": VERSION, **content}, stream, indent=1, allow_nan=False
            )
            stream.write("\n")

    def split_counts(self, name: str) -> dict[str, Any]:
        """Return the counts of a split; raise ``ValueError`` listing the splits there are."""
        if name not in self.splits:
            raise ValueError(
                f"{self.folder} has no split {name!r}; it has {', '.join(self.splits)}"
            )
        return self.splits[name]

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(file["bytes"] for file in self.files.values())

    @property
    def digest(self) -> str:
        """A checksum of the data, which neither place nor time of the preparation changes."""
        form = {key: value for key, value in self.form.items() if key != "root"}
        content = [self.kind, self.benchmark, self.classes, self.vocabulary, form, self.files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def verify(self, on_bytes: OnBytes = no_progress) -> None:
        """Compare the checksum of every file; call ``on_bytes`` with the number of bytes just read.

        Raises ``ValueError`` naming the first file that differs.
        """
        self.compare(list(self.files), on_bytes)

    def compare(self, names: Sequence[str], on_bytes: OnBytes = no_progress) -> None:
        """Do the same as :meth:`verify` for some of the files."""
        for name in names:
            found, expected = sha256_of(self.folder / name, on_bytes), self.files[name]["sha256"]
            if found != expected:
                raise ValueError(
                    f"{self.folder / name} is damaged: its sha256 is {found}, but {MANIFEST} has "
                    f"{expected}; {_AGAIN}"
                )

    def _check_names(self) -> None:
        """Check every name that becomes part of a path below the folder."""
        tokenizer = self.form.get("tokenizer") or {}
        models = [tokenizer["model"]] if "model" in tokenizer else []
        for name in [*self.files, *self.splits, *self.form.get("columns", {}), *models]:
            inner_path(self.folder, name, self.folder / MANIFEST)

    def _check_sizes(self) -> None:
        for name, expected in self.files.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != expected["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes"
                raise ValueError(
                    f"{path} {state}, expected {expected['bytes']} bytes: the copy was cut short or "
                    f"changed; copy it again or {_AGAIN}"
                )


_AGAIN = "prepare the data again"


def damaged(folder: Path, error: Exception) -> ValueError:
    """Make the error for a manifest whose fields are missing or of another form."""
    return ValueError(f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}); {_AGAIN}")


def refuse_incomplete(folder: Path) -> None:
    """Raise ``ValueError`` for a folder without a manifest whose files may pass for prepared data.

    A version before the manifest wrote them, or a run that was stopped while it moved finished files.
    """
    for name in _EARLIER:
        if (folder / name).is_file():
            raise ValueError(
                f"{folder / name} was written by an earlier version of this program; {_AGAIN}"
            )
    if (folder / UNFINISHED / MANIFEST).is_file():
        raise ValueError(
            f"the preparation of {folder} was stopped before it was complete; start the same command "
            "again"
        )


def is_prepared(folder: str | os.PathLike) -> bool:
    """Return whether the folder holds a manifest."""
    return (Path(folder) / MANIFEST).is_file()


def sha256_of(path: Path, on_bytes: OnBytes = no_progress) -> str:
    """Return the checksum of a file in hexadecimal."""
    size_of(path)  # raises for what is no file
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist")
    if not path.is_file():
        refuse_incomplete(folder)
        state = "holds no prepared data" if any(folder.iterdir()) else "is empty"
        raise ValueError(f"the data folder {folder} {state}: {MANIFEST} is missing")
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {_AGAIN}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected an object; {_AGAIN}")
    found = content.pop("format", None), content.pop("version", None)
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} has format {found[0]!r}, version {found[1]!r}; this program reads {FORMAT!r}, "
            f"version {VERSION}; {_AGAIN}"
        )
    return content
