"""An ImageFolder tree and its index, which makes start-up quick at a million images.

The tree is torchvision's: ``train/<class>/...``, ``val/<class>/...`` and, if there is one,
``test/<class>/...``.  ImageNet's test labels are not public, so without a ``test`` folder the split
``test`` is the validation folder, which is what publications report on.

The index is a folder with ``images.json`` (classes, counts, when each class folder last changed) and for
each split one file of paths, sorted, a line each.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.files import atomic_file, sole_writer

DESCRIPTION = "images.json"
FORMAT, VERSION = "megalodon-images", 1
FOLDERS = {"train": "train", "valid": "val", "test": "test"}
NAMED_AT_MOST = 5
# torchvision's (datasets/folder.py), which would take a second to import
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class SplitInfo:
    """What ``images.json`` says of a split: images per class, and of each class folder its changes.

    ignored: files that are no images by their extension.  verified: all were decoded once.
    """

    folder: str
    counts: list[int]
    modified_ns: list[int]
    paths_bytes: int
    ignored: int
    verified: bool = False


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
        text = np.asarray(np.memmap(self.paths_file, np.uint8, mode="r"))
        return text, np.concatenate(([0], np.flatnonzero(text == ord("\n")) + 1))

    def path(self, index: int) -> Path:
        """Where image ``index`` lies."""
        text, starts = self._lines
        line = text[starts[index] : starts[index + 1] - 1].tobytes()
        return self.root / self.info.folder / os.fsdecode(line)


class ImageTree:
    """A tree with its index.  Raises ``ValueError`` where either is missing or damaged."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        description = _read_description(self.folder)
        try:
            self.root = (self.folder / description["root"]).resolve()
            self.classes = tuple(description["classes"])
            infos = {k: SplitInfo(**v) for k, v in description["splits"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.folder / DESCRIPTION} is damaged ({type(error).__name__}: {error}); "
                "prepare the images again"
            ) from None
        self.splits = {name: self._split(name, info) for name, info in infos.items()}

    def _split(self, name: str, info: SplitInfo) -> ImageSplit:
        paths_file = self.folder / f"{name}.paths"
        size = paths_file.stat().st_size if paths_file.is_file() else None
        if size != info.paths_bytes:
            state = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(
                f"{paths_file} {state}, wanted {info.paths_bytes} bytes; prepare the images again"
            )
        if not (self.root / info.folder).is_dir():
            raise ValueError(
                f"{self.root / info.folder} is not there any more: {self.folder} is the index of "
                "images in it; bring them back, or prepare the images at their new place"
            )
        return ImageSplit(name, self.root, paths_file, info)

    def split(self, name: str) -> ImageSplit:
        """The split of this name; ``test`` falls back to the validation images."""
        if name == "test" and name not in self.splits:
            name = "valid"
        if name not in self.splits:
            raise ValueError(
                f"there is no split {name!r}; there are {', '.join(self.splits)}, test"
            )
        return self.splits[name]

    def is_current(self, source: Path) -> bool:
        """Whether the index is of ``source`` and no class folder came, went or changed since."""
        if self.root != source.resolve():
            return False
        for name, folder in FOLDERS.items():
            found = _class_folders(source / folder) if (source / folder).is_dir() else []
            if name not in self.splits:
                if found:
                    return False
                continue
            info = self.splits[name].info
            if tuple(path.name for path in found) != self.classes:
                return False
            if [path.stat().st_mtime_ns for path in found] != info.modified_ns:
                return False
        return True


def is_indexed(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` holds an index."""
    return (Path(folder) / DESCRIPTION).is_file()


def build_index(source: Path, out: Path, on_class: Callable[[], None] = lambda: None) -> ImageTree:
    """Read the names of all images below ``source`` once and write their index to ``out``.

    Calls ``on_class`` after each class folder.  Raises ``ValueError`` if train or val is missing, a
    class folder holds no image, or two splits have different classes; ``out`` stays as it was then.
    """
    names = [name for name, folder in FOLDERS.items() if (source / folder).is_dir()]
    for needed in ("train", "valid"):
        if needed not in names:
            raise ValueError(f"{source} has no folder {FOLDERS[needed]}/; {_LAYOUT}")
    folders = {name: _checked_class_folders(source / FOLDERS[name]) for name in names}
    classes = [path.name for path in folders["train"]]
    for name in names:
        _require_same(classes, [path.name for path in folders[name]], source, FOLDERS[name])
    with sole_writer(out):
        splits = {name: asdict(_scan(name, folders[name], out, on_class)) for name in names}
        _write_description(out, os.path.relpath(source.resolve(), out.resolve()), classes, splits)
    return ImageTree(out)


def mark_verified(tree: ImageTree, name: str) -> None:
    """Note in the index that every image of a split was decoded."""
    with sole_writer(tree.folder):
        splits = {k: asdict(v.info) for k, v in tree.splits.items()}
        splits[name]["verified"] = True
        relative = os.path.relpath(tree.root, tree.folder.resolve())
        _write_description(tree.folder, relative, list(tree.classes), splits)


_LAYOUT = (
    "the images must lie in train/<class>/ and val/<class>/, one folder for each class "
    "(recipes/imagenet/README.md says how to bring ImageNet into that form)"
)


def _class_folders(folder: Path) -> list[Path]:
    entries = (Path(e) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    return sorted(entries, key=lambda path: path.name)


def _checked_class_folders(folder: Path) -> list[Path]:
    found = _class_folders(folder)
    if not found:
        flat = sum(e.name.lower().endswith(IMG_EXTENSIONS) for e in os.scandir(folder))
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


def _scan(name: str, folders: list[Path], out: Path, on_class: Callable[[], None]) -> SplitInfo:
    """Write the paths of one split; counts of each class."""
    counts, modified, ignored, empty = [], [], 0, []
    top = folders[0].parent
    with atomic_file(out / f"{name}.paths") as stream:
        for folder in folders:
            modified.append(folder.stat().st_mtime_ns)
            images, others = _images_below(folder)
            for path in images:
                stream.write(os.fsencode(path.relative_to(top)) + b"\n")
            counts.append(len(images))
            ignored += others
            empty += [] if images else [str(folder)]
            on_class()
        if empty:
            raise ValueError(
                f"{len(empty)} class folders hold no image ({_some(empty)}); complete them, or remove "
                "these classes from train and val"
            )
        size = stream.tell()
    return SplitInfo(top.name, counts, modified, size, ignored)


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Sorted image files (by extension, as torchvision decides), and the number of other files."""
    files = sorted(_files_below(folder))
    images = [path for path in files if path.name.lower().endswith(IMG_EXTENSIONS)]
    broken = next((path for path in images if "\n" in str(path)), None)
    if broken is not None:
        raise ValueError(f"{str(broken)!r} has a line break in its name; rename the file")
    return images, len(files) - len(images)


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names)


def _write_description(out: Path, root: str, classes: list[str], splits: dict[str, Any]) -> None:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "root": root,
        "classes": classes,
        "splits": splits,
    }
    with atomic_file(out / DESCRIPTION, "w") as stream:
        json.dump(content, stream)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        state = "does not exist" if not folder.is_dir() else f"has no {DESCRIPTION}"
        raise ValueError(f"the folder {folder} {state}: it is no index of images")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); prepare the images again") from None
    found = (description.get("format"), description.get("version"))
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} has format {found}, wanted {(FORMAT, VERSION)}; prepare the images again"
        )
    return description
