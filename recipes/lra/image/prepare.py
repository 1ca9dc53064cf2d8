"""Prepare Image: CIFAR-10, grey, as sequences of 1,024 pixels, from its release or from Mega's files.

    megalodon prepare lra/image SOURCE OUT [--validation last]

SOURCE is ``cifar-10-batches-py`` or Mega's ``cifar10`` (or a folder above one of them), OUT the data
folder of the task ``lra_image``.  A tenth of the 50,000 training images is for validation: a random one
with seed 42 as in S4's and Mega's code, or the last one as in Long Range Arena's.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.finding import not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sequences import (
    ColumnSpec,
    DatasetSpec,
    Item,
    PreparedDataset,
    ValueScale,
)
from megalodon_tasks.data.sources import Origin, Rejects, check_source
from megalodon_tasks.recipes.lra.image import cifar
from megalodon_tasks.recipes.lra.mega_files import SPLITS, find_mega_images, read_mega_images
from megalodon_tasks.recipes.lra.splits import random_split, split_in_order

BENCHMARK = "image"
VALIDATION = {"random": random_split, "last": split_in_order}
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
) -> bool:
    """Check and prepare Image; return False if ``out`` already holds it, made from the same files.

    ``validation`` is one of ``VALIDATION`` and counts only for the release, ``side`` is that of the
    images in Mega's form.  Raises ``ValueError`` for bad files and leaves ``out`` as it was then.
    """
    rejects = Rejects() if rejects is None else rejects
    check_source(source, "the folder cifar-10-batches-py, or Mega's cifar10")
    origins = cifar.find_batches(source)
    if origins is not None:
        spec = _spec(
            cifar.SIDE, "release", f"{validation} tenth of the training images", validation
        )
        splits = {
            name: preparing.from_the_start(_release_items, origins, validation, name)
            for name in SPLITS
        }
    elif (origins := find_mega_images(source, _MEGA_NAMES)) is not None:
        origin = origin_of(source, "mega")
        spec = _spec(side, origin, "the splits of Mega's files")
        shape = (side * side, len(cifar.CLASSES))
        splits = {
            name: preparing.from_the_start(read_mega_images, origins, name, *shape, rejects)
            for name in SPLITS
        }
    else:
        raise not_recognised(
            source,
            "data_batch_1 to 5 and test_batch, and Mega's input/*.src",
            "get cifar-10-python.tar.gz (Krizhevsky, CIFAR-10) and unpack it, or take the folder "
            "cifar10 of Mega's processed files",
        )
    return preparing.Preparation(_TITLE, spec, origins, splits, rejects).write(out)


def _spec(side: int, origin: str, split_rule: str, validation: str | None = None) -> DatasetSpec:
    form = {"form": "mega" if validation is None else "release"}
    settings = form if validation is None else form | {"validation": validation}
    published = {} if validation is None else {"validation": "random"}
    return DatasetSpec(
        benchmark=BENCHMARK,
        kind="pixels",
        columns={"inputs": ColumnSpec("uint8", side * side)},
        classes=cifar.CLASSES,
        source={
            "settings": settings | {"side": side},
            "origin": origin,
            "split_rule": split_rule,
            "published": {
                "settings": published | {"side": cifar.SIDE},
                "counts": {"items": RELEASED},
            },
        },
        scale=_SCALE,
    )


def _release_items(
    batches: Mapping[str, Origin], validation: str, split: str, on_bytes: OnBytes
) -> Iterator[Item]:
    names = (cifar.TEST,) if split == "test" else cifar.TRAIN
    parts = [cifar.read_batch(batches[name], on_bytes) for name in names]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    places = range(len(labels))
    if split != "test":
        valid = len(labels) // 10
        places = VALIDATION[validation]({"train": len(labels) - valid, "valid": valid})[split]
    for place in places:
        yield int(labels[place]), {"inputs": images[place]}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run ``megalodon prepare lra/image``; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lra/image",
        "Check CIFAR-10 and bring it into the form that the task lra_image reads.",
        "folder cifar-10-batches-py of the release, or Mega's cifar10, or one above",
    )
    parser.add_argument(
        "--validation",
        choices=tuple(VALIDATION),
        default="random",
        help="validate on a random tenth of the training images, or on the last (default: random)",
    )
    parser.add_argument(
        "--side",
        type=int,
        default=cifar.SIDE,
        help="height and width of the images in Mega's form (default: %(default)s)",
    )
    preparing.add_rejects_options(parser)
    options = parser.parse_args(arguments)

    def run() -> bool:
        return prepare(
            options.source,
            options.out,
            validation=options.validation,
            side=options.side,
            rejects=preparing.rejects_of(options),
        )

    def report(dataset: PreparedDataset) -> list[str]:
        return preparing.describe_splits(dataset, "images", RELEASED)

    return preparing.run(parser, options, run, report)
