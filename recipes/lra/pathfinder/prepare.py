"""Prepare Pathfinder or Path-X: from the released images, or from Mega's files, to pixels.

    python -m megalodon_tasks.recipes.lra.pathfinder.prepare SOURCE OUT                       # 32 x 32
    python -m megalodon_tasks.recipes.lra.pathfinder.prepare SOURCE OUT --benchmark pathx     # 128 x 128

SOURCE is the release (or a folder of it), what ``pathfinder_generator`` wrote, or Mega's ``pathfinder``
or ``path-x``; OUT the data folder of the task ``lra_image``.  The benchmark takes the hard images,
paths of 14 paddles.  Splits: 80 / 10 / 10 %, at random with seed 42 as in S4's and Mega's code, or in
order as in Long Range Arena's.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import (
    ColumnSpec,
    DatasetSpec,
    Item,
    PreparedDataset,
    ValueScale,
)
from megalodon_tasks.data.sources import Origin, Rejects, check_source
from megalodon_tasks.recipes.lra.mega_images import SPLITS, find_mega_images, read_mega_images
from megalodon_tasks.recipes.lra.pathfinder.release import (
    CLASSES,
    Entry,
    find_releases,
    metadata_of,
    read_images,
    read_metadata,
    size_of_images,
)
from megalodon_tasks.recipes.lra.seeded_split import seeded_split, split_in_order

RELEASED = {"train": 160_000, "valid": 20_000, "test": 20_000}
SPLIT_RULES = ("random", "in-order")

_SCALE = ValueScale(divisor=255.0, mean=0.5, std=0.5)


@dataclass(frozen=True)
class Benchmark:
    """title: in messages.  side: of the images.  mega_names: folders of Mega's archive."""

    title: str
    side: int
    mega_names: tuple[str, ...]


BENCHMARKS = {
    "pathfinder": Benchmark("Pathfinder", 32, ("pathfinder",)),
    "pathx": Benchmark("Path-X", 128, ("path-x", "pathx")),
}


@dataclass(frozen=True)
class Options:
    """How to prepare images.

    side: their height and width, None for that of the benchmark.  images: their folder below
    ``pathfinder<side>``.  splits: one of ``SPLIT_RULES``, for images (Mega's files are split already).
    """

    benchmark: str = "pathfinder"
    side: int | None = None
    images: str = "curv_contour_length_14"
    splits: str = "random"

    @property
    def pixels_wide(self) -> int:
        """Height and width of the images."""
        return self.side or BENCHMARKS[self.benchmark].side


def prepare(
    source: Path,
    out: Path,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
    workers: int = 1,
    rejects: Rejects | None = None,
    hidden: bool = False,
) -> bool:
    """Check and prepare the images; return False if ``out`` already holds them, from the same files.

    Of several folders of images the deepest is taken.  Whether images are the same is told by their
    metadata and the size of their files.  ``hidden`` hides the progress bar.  Raises ``ValueError`` for
    bad files and leaves ``out`` as it was then.
    """
    rejects = Rejects() if rejects is None else rejects
    benchmark, side = BENCHMARKS[options.benchmark], options.pixels_wide
    check_source(source, "the folder of the images or of the release, or Mega's")
    wanted = f"pathfinder{side}/{options.images}"
    folders = find_releases(source, wanted)
    if folders:
        preparation = _from_images(folders, options, workers, rejects)
    else:
        origins = find_mega_images(source, benchmark.mega_names)
        if origins is None:
            raise ValueError(
                f"{source} holds neither {wanted} with imgs and metadata nor input/*.src; "
                "get lra_release.gz of Long Range Arena, or generate images with "
                "python -m megalodon_tasks.recipes.lra.pathfinder.generator"
            )
        preparation = _from_mega(origins, options, rejects)
    return preparation.write(out, hidden=hidden)


def _spec(options: Options, settings: dict[str, Any], **source: Any) -> DatasetSpec:
    return DatasetSpec(
        benchmark=options.benchmark,
        kind="pixels",
        columns={"inputs": ColumnSpec("uint8", options.pixels_wide**2)},
        classes=CLASSES,
        source={"settings": settings, **source},
        scale=_SCALE,
    )


def _from_images(
    folders: Sequence[Path], options: Options, workers: int, rejects: Rejects
) -> preparing.Preparation:
    folder, *others = folders
    origin = metadata_of(folder)
    settings = {
        "form": "images",
        "images": options.images,
        "splits": options.splits,
        "image_bytes": size_of_images(folder),
    }
    spec = _spec(options, settings, folder=str(folder), not_taken=list(map(str, others)))
    reader = _ImageSplits(folder, origin, options, workers, rejects)
    return preparing.Preparation(
        BENCHMARKS[options.benchmark].title,
        spec,
        {"metadata": origin},
        {name: preparing.from_the_start(reader.items, name) for name in SPLITS},
        rejects,
    )


class _ImageSplits:
    """Reads the metadata once and the images of each split when asked for them."""

    def __init__(
        self, folder: Path, origin: Origin, options: Options, workers: int, rejects: Rejects
    ) -> None:
        self.folder, self.origin, self.options = folder, origin, options
        self.workers, self.rejects = workers, rejects

    @functools.cached_property
    def entries(self) -> list[Entry | None]:
        return read_metadata(self.folder, self.origin, self.rejects)

    @functools.cached_property
    def places(self) -> dict[str, np.ndarray]:
        count = len(self.entries)
        tenth = count // 10
        if tenth == 0:
            raise ValueError(f"{self.folder} has {count} images; three splits need at least 10")
        share = seeded_split if self.options.splits == "random" else split_in_order
        return share({"train": count - 2 * tenth, "valid": tenth, "test": tenth})

    def items(self, split: str, on_bytes: OnBytes) -> Iterator[Item]:
        """The images of one split; progress is that of the metadata whose images have been read."""
        chosen = [entry for place in self.places[split] if (entry := self.entries[place])]
        each = self.origin.bytes / len(self.entries)
        told = 0
        images = read_images(chosen, self.options.pixels_wide, self.workers, self.rejects)
        for number, (label, pixels) in enumerate(images, start=1):
            on_bytes(int(number * each) - told)
            told = int(number * each)
            if pixels is not None:
                yield label, {"inputs": pixels}


def _from_mega(
    origins: dict[str, Origin], options: Options, rejects: Rejects
) -> preparing.Preparation:
    splits = {
        name: preparing.from_the_start(_mega_items, origins, name, options, rejects)
        for name in SPLITS
    }
    title = BENCHMARKS[options.benchmark].title
    return preparing.Preparation(title, _spec(options, {"form": "mega"}), origins, splits, rejects)


def _mega_items(
    origins: dict[str, Origin], split: str, options: Options, rejects: Rejects, on_bytes: OnBytes
) -> Iterator[Item]:
    pixels, classes = options.pixels_wide**2, len(CLASSES)
    for label, values in read_mega_images(origins, split, pixels, classes, rejects, on_bytes):
        yield label, {"inputs": values}


def report(dataset: PreparedDataset) -> list[str]:
    """Lines that say what was prepared, and how that differs from the release."""
    lines = preparing.describe_splits(dataset, "images", RELEASED)
    source = dataset.spec.source
    if others := source.get("not_taken"):
        lines.append(
            f"taken: {source['folder']}, the deepest of several; not taken: {', '.join(others)} (to "
            "have it instead, pass that folder itself)"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = preparing.command_line(
        "lra/pathfinder",
        "Check Pathfinder images and bring them into the form that the task lra_image reads.",
        "the release, a folder of it, generated images, or Mega's pathfinder or path-x",
    )
    add = parser.add_argument
    add("--benchmark", choices=tuple(BENCHMARKS), default="pathfinder")
    add("--side", type=int, help="height and width (default: 32, or 128 for pathx)")
    add(
        "--images",
        default=Options.images,
        help="which images, a folder below pathfinder<side> (default: %(default)s, the hard ones)",
    )
    add("--splits", choices=SPLIT_RULES, default="random", help="default: %(default)s")
    preparing.add_workers_option(parser)
    preparing.add_strict_option(parser)
    options = parser.parse_args(arguments)

    def prepare_as_told() -> bool:
        wanted = Options(options.benchmark, options.side, options.images, options.splits)
        rejects = Rejects(strict=options.strict)
        return prepare(
            options.source, options.out, wanted, workers=options.workers, rejects=rejects
        )

    preparing.run(parser, options, prepare_as_told, report)


if __name__ == "__main__":
    main()
