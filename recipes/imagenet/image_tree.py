"""An ImageFolder tree and its index, which makes start-up quick at a million images.

The tree is torchvision's: ``train/<class>/...``, ``val/<class>/...`` and, if there is one,
``test/<class>/...``.  ImageNet's test labels are not public, so without a ``test`` folder the split
``test`` is the validation folder, which is what publications report on.

The index is a folder of prepared data: ``manifest.json`` and for each split a file ``<split>.paths``
with the sorted paths, one a line.  The images stay where they are.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from megalodon_tasks.data.finding import folders_in, not_recognised
from megalodon_tasks.data.manifest import MANIFEST, Manifest, OnBytes, damaged, no_progress
from megalodon_tasks.data.preparing import Preparation
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sources import Origin, check_source, is_leftover, listing
from megalodon_tasks.data.typed import typed
from megalodon_tasks.data.writer import Form
from megalodon_tasks.files import inner_path, sole_writer

BENCHMARK = "imagenet"
# ImageNet-1K (ILSVRC 2012)
PUBLISHED_COUNTS = {"train": 1_281_167, "valid": 50_000}
FOLDERS = {"train": "train", "valid": "val", "test": "test"}
NAMED_AT_MOST = 5
# torchvision's (datasets/folder.py), which would take a second to import
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_LAYOUT = (
    "the images must lie in train/<class>/ and val/<class>/, one folder for each class "
    "(recipes/imagenet/README.md says how to bring ImageNet into that form)"
)


@dataclass
class SplitInfo:
    """What the manifest says of a split: its folder, and the number of images of each class.

    ignored: files that are no images by their extension.  verified: all were decoded once.
    """

    folder: str
    counts: list[int]
    ignored: int = 0
    verified: bool = False


@dataclass(frozen=True)
class TreeForm(Form):
    """How an index is written: a record is a class folder; ``root`` is relative to the index."""

    classes: tuple[str, ...]
    root: str
    source: dict[str, Any]

    stored_as: ClassVar[str] = "images"
    benchmark: ClassVar[str] = BENCHMARK
    parts: ClassVar[tuple[str, ...]] = ("paths",)

    def details(self) -> dict[str, Any]:
        """Return the manifest's ``form``."""
        return {"root": self.root}

    def counts(self, known: Mapping[str, Any]) -> SplitInfo:
        """Return the counts of a split, empty or as ``known``."""
        return SplitInfo(**(known or {"folder": "", "counts": []}))

    def encode(self, record: Path, counts: SplitInfo, split: str) -> dict[str, bytes]:
        """Add a class folder to ``counts``; return the lines of its images.

        Raises ``ValueError`` for a name with a line break.
        """
        images, others = _images_below(record)
        counts.folder = record.parent.name
        counts.counts.append(len(images))
        counts.ignored += others
        lines = (os.fsencode(path.relative_to(record.parent)) + b"\n" for path in images)
        return {"paths": b"".join(lines)}

    def finish(self, folder: Path, split: str, counts: SplitInfo) -> None:
        """Raise ``ValueError`` if class folders hold no image."""
        empty = [
            f"{counts.folder}/{name}"
            for name, count in zip(self.classes, counts.counts, strict=True)
            if not count
        ]
        if empty:
            raise ValueError(
                f"{len(empty)} class folders hold no image ({_some(empty)}); complete them, or remove "
                "these classes from train and val"
            )


class ClassFolders(Origin):
    """The class folders of a split: known again by their names and the times of their changes.

    A file that comes or goes changes the time of its folder; the images themselves are not read.
    """

    was_read = True

    def status(self) -> dict[str, Any]:
        """Return the names of the folders and when each last changed (ns)."""
        modified = [path.stat().st_mtime_ns for path in self.paths]
        return {"names": [path.name for path in self.paths], "modified_ns": modified}

    def description(self, on_bytes: OnBytes = no_progress) -> dict[str, Any]:
        """Return the same as :meth:`status`."""
        return self.status()

    def is_same(self, known: Mapping[str, Any]) -> bool:
        """Return whether no folder came, went or changed since ``known``."""
        return self.status() == known

    def read(self, first: int, on_bytes: OnBytes) -> Iterator[Path]:
        """Yield the folders from number ``first`` on; progress is in folders."""
        on_bytes(first)
        for path in self.paths[first:]:
            yield path
            on_bytes(1)


class ImageSplit:
    """The images of one split in the order of their paths.  Pickling carries no paths."""

    def __init__(self, name: str, root: Path, paths_file: Path, info: SplitInfo) -> None:
        self.name, self.root, self.paths_file, self.info = name, root, paths_file, info

    def __len__(self) -> int:
        return sum(self.info.counts)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("name", "root", "paths_file", "info")}

    @cached_property
    def labels(self) -> np.ndarray:
        """(images,) int64."""
        return np.repeat(np.arange(len(self.info.counts)), self.info.counts)

    @cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        text = np.fromfile(
            self.paths_file, np.uint8
        )  # a map ends the process if the file is cut short
        return text, np.concatenate(([0], np.flatnonzero(text == ord("\n")) + 1))

    def path(self, index: int) -> Path:
        """Return the path of image ``index``."""
        text, starts = self._lines
        line = os.fsdecode(text[starts[index] : starts[index + 1] - 1].tobytes())
        if line.startswith("/") or ".." in line.split("/"):
            raise ValueError(
                f"{self.paths_file}, line {index + 1} names {line!r}, which leads out of "
                f"{self.root / self.info.folder}; prepare the images again"
            )
        return self.root / self.info.folder / line


class ImageTree:
    """A tree with its index; raises ``ValueError`` as ``Manifest.read`` does, and for missing images."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(folder, TreeForm.stored_as)
        self.classes = self.manifest.classes
        try:
            self.root = (self.folder / self.manifest.form["root"]).resolve()
            infos = {n: typed(SplitInfo, counts) for n, counts in self.manifest.splits.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(self.folder, error) from None
        for info in infos.values():
            inner_path(self.root, info.folder, self.folder / MANIFEST)
            if not (self.root / info.folder).is_dir():
                raise ValueError(
                    f"{self.root / info.folder} is not there any more: {folder} is the index of "
                    "images in it; bring them back, or prepare the images at their new place"
                )
        self.splits = {
            name: ImageSplit(name, self.root, self.folder / f"{name}.paths", info)
            for name, info in infos.items()
        }

    def split(self, name: str) -> ImageSplit:
        """Return the split of this name; ``test`` falls back to the validation images."""
        if name == "test" and name not in self.splits:
            name = "valid"
        self.manifest.split_counts(name)
        return self.splits[name]

    def mark_verified(self, name: str) -> None:
        """Note in the index that every image of a split was decoded."""
        self.splits[name].info.verified = True
        self.manifest.splits[name] = asdict(self.splits[name].info)
        self._write_manifest()

    def record_duplicates(self, counts: dict[str, int]) -> None:
        """Note in the index what ``writer.duplicates`` has counted."""
        if self.manifest.source.get("duplicates") != counts:
            self.manifest.source["duplicates"] = counts
            self._write_manifest()

    def _write_manifest(self) -> None:
        with sole_writer(self.folder):
            self.manifest.write(self.folder)


def index_of(source: Path, out: Path) -> Preparation:
    """Return the preparation of an index in ``out`` of all images below ``source``.

    The folder of train and val may lie deeper.  Raises ``ValueError`` if it, train or val is missing,
    or two splits have different classes.
    Writing it raises ``ValueError`` for a class folder that holds no image.
    """
    source = _find_tree(source)
    names = [name for name, folder in FOLDERS.items() if (source / folder).is_dir()]
    origins = {
        name: ClassFolders(FOLDERS[name], _class_folders(source / FOLDERS[name])) for name in names
    }
    classes = [path.name for path in origins["train"].paths]
    for name in names:
        _require_same(classes, [path.name for path in origins[name].paths], source, FOLDERS[name])
    return Preparation(
        title="images",
        form=TreeForm(
            classes=tuple(classes),
            root=os.path.relpath(source.resolve(), out.resolve()),
            source={
                "origin": origin_of(source, "release"),
                "split_rule": "the folders",
                "settings": {},
                "published": {"counts": {"counts": PUBLISHED_COUNTS}},
            },
        ),
        origins=origins,
        splits={name: folders.read for name, folders in origins.items()},
        total=sum(len(folders.paths) for folders in origins.values()),
        unit="class",
    )


def _find_tree(source: Path) -> Path:
    """Return the folder that holds train and val: ``source`` or the first one below it."""
    check_source(source, "the one with train/<class>/ and val/<class>/")
    needed = [FOLDERS["train"], FOLDERS["valid"]]
    missing = [name for name in needed if not (source / name).is_dir()]
    if len(missing) == 1:
        raise ValueError(f"{source} has no folder {missing[0]}/; {_LAYOUT}")
    for folder in folders_in(source):
        if all((folder / name).is_dir() for name in needed):
            return folder
    raise not_recognised(source, "train/ and val/", _LAYOUT)


def _class_folders(folder: Path) -> list[Path]:
    entries = listing(folder)
    found = [path for path in entries if path.is_dir()]
    if not found:
        flat = sum(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries)
        state = f"{flat} images and no class folders" if flat else "no class folders"
        raise ValueError(f"{folder} holds {state}; {_LAYOUT}")
    return found


def _require_same(train: list[str], other: list[str], source: Path, folder: str) -> None:
    lacking, surplus = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if lacking or surplus:
        differences = [f"{folder} lacks {_some(lacking)}"] if lacking else []
        differences += [f"only {folder} has {_some(surplus)}"] if surplus else []
        raise ValueError(
            f"{source}: train and {folder} have different classes: {'; '.join(differences)}; "
            "a class must have a folder of the same name in both"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Return sorted image files (by extension, as torchvision decides) and the number of others."""
    files = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not is_leftover(name)
    )
    images = [path for path in files if path.name.lower().endswith(IMG_EXTENSIONS)]
    broken = next((path for path in images if "\n" in str(path)), None)
    if broken is not None:
        raise ValueError(f"{str(broken)!r} has a line break in its name; rename the file")
    return images, len(files) - len(images)
