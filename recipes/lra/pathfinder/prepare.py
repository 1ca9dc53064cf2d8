"""Prepare Pathfinder or Path-X: released, generated or Mega's images become rows of pixels.

    megalodon prepare lra/pathfinder SOURCE OUT [--generate]     # 32 x 32
    megalodon prepare lra/pathx SOURCE OUT [--generate]          # 128 x 128

SOURCE is the release (or a folder of it), what was generated, or Mega's ``pathfinder`` or ``path-x``;
OUT the data folder of the task ``lra_image``.  The benchmark takes the hard images, paths of 14 paddles.
Splits: 80 / 10 / 10 %, at random with seed 42 as in S4's and Mega's code, or in order as in Long Range
Arena's.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.finding import not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import (
    ColumnSpec,
    DatasetSpec,
    Item,
    PreparedDataset,
    ValueScale,
)
from megalodon_tasks.data.sources import Origin, Rejects, check_source
from megalodon_tasks.recipes.lra.mega_files import SPLITS, find_mega_images, read_mega_images
from megalodon_tasks.recipes.lra.pathfinder import generator
from megalodon_tasks.recipes.lra.pathfinder.release import (
    CLASSES,
    Entry,
    find_releases,
    metadata_of,
    read_images,
    read_metadata,
    size_of_images,
    without_repeats,
)
from megalodon_tasks.recipes.lra.splits import random_split, split_in_order

RELEASED = {"train": 160_000, "valid": 20_000, "test": 20_000}
SPLIT_RULES = {"random": random_split, "in-order": split_in_order}

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
    distinct: leave out images that equal an earlier one, before they are split.
    """

    benchmark: str = "pathfinder"
    side: int | None = None
    images: str = "curv_contour_length_14"
    splits: str = "random"
    distinct: bool = False

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
) -> bool:
    """Check and prepare the images; return False if ``out`` already holds them, from the same files.

    The deepest of several folders of images is taken.  Images count as the same if their metadata and
    the size of their files are.  Raises ``ValueError`` for bad files and leaves ``out`` as it was then.
    """
    rejects = Rejects() if rejects is None else rejects
    benchmark = BENCHMARKS[options.benchmark]
    check_source(source, "the folder of the images or of the release, or Mega's")
    folder = f"pathfinder{options.pixels_wide}/{options.images}"
    if folders := find_releases(source, folder):
        preparation = _from_images(folders, options, workers, rejects)
    elif origins := find_mega_images(source, benchmark.mega_names):
        if options.distinct:
            raise ValueError(f"--distinct: {source} holds Mega's files, which are split already")
        spec = _spec(options, {"form": "mega"}, "mega", "the splits of Mega's files")
        shape = (options.pixels_wide**2, len(CLASSES))
        splits = {
            name: preparing.from_the_start(read_mega_images, origins, name, *shape, rejects)
            for name in SPLITS
        }
        preparation = preparing.Preparation(benchmark.title, spec, origins, splits, rejects)
    else:
        raise not_recognised(
            source,
            f"{folder} with imgs and metadata, and Mega's input/*.src",
            f"get lra_release.gz of Long Range Arena and unpack it, {preparing.OR_GENERATE}",
        )
    return preparation.write(out)


def _spec(
    options: Options, settings: dict[str, Any], origin: str, split_rule: str, **source: Any
) -> DatasetSpec:
    published: dict[str, Any] = {"side": BENCHMARKS[options.benchmark].side}
    if settings["form"] == "images":
        published |= {
            "images": Options.images,
            "splits": Options.splits,
            "distinct": Options.distinct,
        }
    return DatasetSpec(
        benchmark=options.benchmark,
        kind="pixels",
        columns={"inputs": ColumnSpec("uint8", options.pixels_wide**2)},
        classes=CLASSES,
        source={
            "settings": settings | {"side": options.pixels_wide},
            "origin": origin,
            "split_rule": split_rule,
            "published": {"settings": published, "counts": {"items": RELEASED}},
            **source,
        },
        scale=_SCALE,
    )


def _from_images(
    folders: Sequence[Path], options: Options, workers: int, rejects: Rejects
) -> preparing.Preparation:
    folder, *others = folders
    metadata = metadata_of(folder)
    settings = {
        "form": "images",
        "images": options.images,
        "splits": options.splits,
        "distinct": options.distinct,
        "image_bytes": size_of_images(folder),
    }
    origin, record = "release", folder / generator.RECORD
    if record.is_file():
        origin = "generated"
        settings["generated"] = json.loads(record.read_text(encoding="utf-8"))
    spec = _spec(
        options,
        settings,
        origin,
        f"80 / 10 / 10 %, {options.splits}" + (", of distinct images" if options.distinct else ""),
        folder=str(folder),
        not_taken=list(map(str, others)),
    )
    reader = _ImageSplits(folder, metadata, options, workers, rejects)
    return preparing.Preparation(
        BENCHMARKS[options.benchmark].title,
        spec,
        {"metadata": metadata},
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
        entries = read_metadata(self.folder, self.origin, self.rejects)
        return without_repeats(entries) if self.options.distinct else entries

    @functools.cached_property
    def places(self) -> dict[str, np.ndarray]:
        count = len(self.entries)
        tenth = count // 10
        if tenth == 0:
            raise ValueError(f"{self.folder} has {count} images; three splits need at least 10")
        share = SPLIT_RULES[self.options.splits]
        return share({"train": count - 2 * tenth, "valid": tenth, "test": tenth})

    def items(self, split: str, on_bytes: OnBytes) -> Iterator[Item]:
        """Yield the images of one split; progress is that of the metadata whose images were read."""
        chosen = [entry for place in self.places[split] if (entry := self.entries[place])]
        each = self.origin.bytes / len(self.entries)
        images = read_images(chosen, self.options.pixels_wide, self.workers, self.rejects)
        for number, (label, pixels) in enumerate(images):
            on_bytes(int((number + 1) * each) - int(number * each))
            if pixels is not None:
                yield label, {"inputs": pixels}


def report(dataset: PreparedDataset) -> list[str]:
    """Say what was prepared, and how that differs from the release."""
    lines = preparing.describe_splits(dataset, "images", RELEASED)
    source = dataset.spec.source
    if others := source.get("not_taken"):
        lines.append(
            f"taken: {source['folder']}, the deepest of several; not taken: {', '.join(others)} (to "
            "have it instead, pass that folder itself)"
        )
    return lines


def main(arguments: Sequence[str] | None = None, benchmark: str = "pathfinder") -> Path:
    """Run ``megalodon prepare lra/pathfinder``; return the folder of the prepared data."""
    parser = preparing.command_line(
        f"lra/{benchmark}",
        f"Check images of {BENCHMARKS[benchmark].title} and bring them into the form that the task "
        "lra_image reads.",
        "the release, a folder of it, generated images, or Mega's files",
    )
    add = parser.add_argument
    side = BENCHMARKS[benchmark].side
    add("--side", type=int, default=side, help="height and width (default: %(default)s)")
    add(
        "--images",
        default=Options.images,
        help="which images, a folder below pathfinder<side> (default: %(default)s, the hard ones)",
    )
    add("--splits", choices=tuple(SPLIT_RULES), default="random", help="default: %(default)s")
    add(
        "--distinct",
        action="store_true",
        help="leave out images that equal an earlier one, so that no split has an image of another",
    )
    preparing.add_workers_option(parser)
    preparing.add_rejects_options(parser)
    generator.add_options(parser)
    given = parser.parse_args(arguments)

    def run() -> bool:
        options = Options(benchmark, given.side, given.images, given.splits, given.distinct)
        if folder := generator.generate(given):
            options = replace(options, images=folder.name)
        rejects = preparing.rejects_of(given)
        return prepare(given.source, given.out, options, workers=given.workers, rejects=rejects)

    return preparing.run(parser, given, run, report)


def main_pathx(arguments: Sequence[str] | None = None) -> Path:
    """Run ``megalodon prepare lra/pathx``; return the folder of the prepared data."""
    return main(arguments, "pathx")
