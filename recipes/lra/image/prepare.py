"""Prepare Image: CIFAR-10, grey, as sequences of 1,024 pixels, from its release or from Mega's files.

    python -m megalodon_tasks.recipes.lra.image.prepare SOURCE OUT [--validation last]

SOURCE is ``cifar-10-batches-py`` or Mega's ``cifar10`` (or a folder above one of them), OUT the data
folder of the task ``lra_image``.  A tenth of the 50,000 training images is for validation: a random one
with seed 42 as in S4's and Mega's code, or the last one as in Long Range Arena's.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from megalodon_tasks.data.sources import Origin, Rejects
from megalodon_tasks.recipes.lra.image import cifar
from megalodon_tasks.recipes.lra.mega_images import SPLITS, find_mega_images, read_mega_images
from megalodon_tasks.recipes.lra.seeded_split import seeded_split, split_in_order

BENCHMARK = "image"
VALIDATION = ("random", "last")
RELEASED = {"train": 45_000, "valid": 5_000, "test": 10_000}

_TITLE = "Image"
# Mega's; S4 has 122.6 / 255 and 61 / 255, which is the same to two digits.
_SCALE = ValueScale(divisor=255.0, mean=0.48, std=0.24)
_MEGA_NAMES = ("cifar10",)


def prepare(
    source: Path,
    out: Path,
    *,
    validation: str = "random",
    side: int = cifar.SIDE,
    rejects: Rejects | None = None,
    hidden: bool = False,
) -> bool:
    """Check and prepare Image; return False if ``out`` already holds it, made from the same files.

    ``validation`` is one of ``VALIDATION`` and counts for the release alone, ``side`` is that of the
    images in Mega's form.  ``hidden`` hides the progress bar.  Raises ``ValueError`` for bad files and
    leaves ``out`` as it was then.
    """
    rejects = Rejects() if rejects is None else rejects
    batches = cifar.find_batches(source)
    if batches is not None:
        preparation = _from_release(batches, validation, rejects)
    else:
        origins = find_mega_images(source, _MEGA_NAMES)
        if origins is None:
            raise ValueError(f"{source} holds no images; {cifar.how_to_get(source)}")
        preparation = _from_mega(origins, side, rejects)
    return preparation.write(out, hidden=hidden)


def _spec(side: int, settings: dict[str, str]) -> DatasetSpec:
    return DatasetSpec(
        benchmark=BENCHMARK,
        kind="pixels",
        columns={"inputs": ColumnSpec("uint8", side * side)},
        classes=cifar.CLASSES,
        source={"settings": settings},
        scale=_SCALE,
    )


def _from_release(
    batches: dict[str, Origin], validation: str, rejects: Rejects
) -> preparing.Preparation:
    spec = _spec(cifar.SIDE, {"form": "release", "validation": validation})
    read = functools.partial(_release_items, batches, validation)
    splits = {name: preparing.from_the_start(read, name) for name in SPLITS}
    return preparing.Preparation(_TITLE, spec, batches, splits, rejects)


def _release_items(
    batches: dict[str, Origin], validation: str, split: str, on_bytes: OnBytes
) -> Iterator[Item]:
    names = (cifar.TEST,) if split == "test" else cifar.TRAIN
    parts = [cifar.read_batch(batches[name], on_bytes) for name in names]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    places = range(len(labels))
    if split != "test":
        valid = len(labels) // 10
        share = seeded_split if validation == "random" else split_in_order
        places = share({"train": len(labels) - valid, "valid": valid})[split]
    for place in places:
        yield int(labels[place]), {"inputs": images[place]}


def _from_mega(origins: dict[str, Origin], side: int, rejects: Rejects) -> preparing.Preparation:
    spec = _spec(side, {"form": "mega"})
    splits = {
        name: preparing.from_the_start(_mega_items, origins, name, side, rejects) for name in SPLITS
    }
    return preparing.Preparation(_TITLE, spec, origins, splits, rejects)


def _mega_items(
    origins: dict[str, Origin], split: str, side: int, rejects: Rejects, on_bytes: OnBytes
) -> Iterator[Item]:
    classes = len(cifar.CLASSES)
    for label, values in read_mega_images(origins, split, side**2, classes, rejects, on_bytes):
        yield label, {"inputs": values}


def report(dataset: PreparedDataset) -> list[str]:
    """Lines that say what a prepared Image holds, and how that differs from the release."""
    return preparing.describe_splits(dataset, "images", RELEASED)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = preparing.command_line(
        "lra/image",
        "Check CIFAR-10 and bring it into the form that the task lra_image reads.",
        "folder cifar-10-batches-py of the release, or Mega's cifar10, or one above",
    )
    parser.add_argument(
        "--validation",
        choices=VALIDATION,
        default="random",
        help="validate on a random tenth of the training images, or on the last (default: random)",
    )
    parser.add_argument(
        "--side",
        type=int,
        default=cifar.SIDE,
        help="height and width of the images in Mega's form (default: %(default)s)",
    )
    preparing.add_strict_option(parser)
    options = parser.parse_args(arguments)

    def prepare_as_told() -> bool:
        return prepare(
            options.source,
            options.out,
            validation=options.validation,
            side=options.side,
            rejects=Rejects(strict=options.strict),
        )

    preparing.run(parser, options, prepare_as_told, report)


if __name__ == "__main__":
    main()
