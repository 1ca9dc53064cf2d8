"""Check an ImageFolder tree and index it: the images stay where they are.

    megalodon prepare imagenet/imagenet IMAGES OUT

IMAGES is the folder with ``train/<class>/`` and ``val/<class>/``, OUT the data folder of the task
``imagenet``; IMAGES/prepared is a good place.  The tree is read once; the command does nothing if no
class folder changed since.

Images of ``val`` (and ``test``) are also decoded once, on all cores, since evaluation refuses a damaged
one: better now than after an epoch.  ``--decode all`` decodes the training images too; training replaces
those that are damaged.  What is damaged or unusual is listed in ``OUT/<split>.unusual.tsv``; the
digests of the files that were decoded are kept in ``OUT/<split>.digests``, so that duplicates are found
among all splits that were ever decoded.
"""

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.data.sources import Rejects, describe
from megalodon_tasks.data.writer import DIGEST_DTYPE, DIGESTS, digest_of, duplicates
from megalodon_tasks.files import atomic_file
from megalodon_tasks.recipes.imagenet.image_tree import (
    PUBLISHED_COUNTS,
    ImageSplit,
    ImageTree,
    index_of,
)
from megalodon_tasks.recipes.imagenet.reading import DamagedImage, read_with_mode

PUBLISHED_CLASSES = 1000
DECODED = {"none": (), "val": ("valid", "test"), "all": ("train", "valid", "test")}
# Every photograph is of one of these; other modes are worth listing.
USUAL_MODES = ("RGB", "L")
DAMAGED = "damaged"


def decode(tree: ImageTree, name: str, workers: int) -> tuple[Counter[str], Rejects]:
    """Decode every image of a split; return how many there are of each mode, and what is damaged.

    ``OUT/<split>.digests`` gets the digest of each file that is not, ``writer.DIGEST_DTYPE``.
    ``OUT/<split>.unusual.tsv`` gets a line for each image that is damaged, or of a mode that photographs
    rarely have: path, mode or ``damaged``, reason.
    """
    split, modes, damaged = tree.split(name), Counter[str](), Rejects(limit=sys.maxsize)
    digests = []
    with atomic_file(tree.folder / f"{name}.unusual.tsv", "w") as stream:
        results = progress_bar(
            map_in_order(functools.partial(_decoded, split), range(len(split)), workers),
            total=len(split),
            label=f"decoding {split.info.folder}",
            unit="image",
        )
        for index, (mode, reason, digest) in enumerate(results):
            modes[mode] += 1
            if mode == DAMAGED:
                damaged.add(split.path(index), reason)
            else:
                digests.append(digest)
            if mode not in USUAL_MODES:
                stream.write(f"{split.path(index)}\t{mode}\t{reason}\n")
    with atomic_file(_digests_of(tree, name)) as stream:
        stream.write(b"".join(digests))
    if len(damaged) == 0:
        tree.mark_verified(name)
    return modes, damaged


def _digests_of(tree: ImageTree, split: str) -> Path:
    return tree.folder / f"{split}.{DIGESTS}"


def _decoded(split: ImageSplit, index: int) -> tuple[str, str, bytes]:
    path = split.path(index)
    try:
        return read_with_mode(path)[1], "", digest_of(path.read_bytes())
    except DamagedImage as error:
        return DAMAGED, error.reason, b""


def report(tree: ImageTree) -> list[str]:
    """Return lines that say what a tree holds, and how that differs from ImageNet-1K."""
    note = (
        "" if len(tree.classes) == PUBLISHED_CLASSES else f" (ImageNet-1K has {PUBLISHED_CLASSES})"
    )
    lines = [f"{len(tree.classes)} classes{note}"]
    for name, split in tree.splits.items():
        counts, expected = split.info.counts, PUBLISHED_COUNTS.get(name)
        differs = expected is not None and len(split) != expected
        note = f" (ImageNet-1K has {expected:,})" if differs else ""
        ignored = f"; {split.info.ignored} other files" if split.info.ignored else ""
        lines.append(
            f"{split.info.folder}: {len(split):,} images{note}, {min(counts)} to {max(counts)} in a "
            f"class{ignored}"
        )
    return lines


def decode_all(tree: ImageTree, which: str, workers: int) -> list[str]:
    """Decode the splits that ``which`` (a key of ``DECODED``) names and are not known to be whole.

    Records the duplicates among all splits that were decoded, now or before.  Returns lines for the
    report.  Raises ``ValueError`` if an image for evaluation is damaged.
    """
    lines = []
    for name in DECODED[which]:
        if name not in tree.splits or tree.splits[name].info.verified:
            continue
        modes, damaged = decode(tree, name, workers)
        folder = tree.splits[name].info.folder
        if len(damaged) and name != "train":
            raise ValueError(
                f"{tree.root / folder}: evaluation takes no damaged image; copy them again, or remove "
                "them and say so with the result\n" + "\n".join(describe(damaged.reasons))
            )
        found = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
        lines.append(f"{folder}: {modes.total():,} images decoded: {found}")
        lines += describe(damaged.reasons)
    files = {name: _digests_of(tree, name) for name in tree.splits}
    known = {n: np.fromfile(file, DIGEST_DTYPE) for n, file in files.items() if file.is_file()}
    tree.record_duplicates(duplicates(known))
    return lines


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the index."""
    parser = preparing.command_line(
        "imagenet/imagenet",
        "Check an ImageFolder tree and index it for the task imagenet.",
        "folder with train/<class>/ and val/<class>/",
    )
    parser.add_argument(
        "--decode", choices=DECODED, default="val", help="which images to decode (default: val)"
    )
    preparing.add_workers_option(parser)
    options = parser.parse_args(arguments)
    found: list[str] = []

    def prepare() -> bool:
        done = index_of(options.source, options.out).write(options.out)
        tree = ImageTree(options.out)
        for name in tree.splits if done else ():
            _digests_of(tree, name).unlink(missing_ok=True)  # of the images that were there before
        found.extend(decode_all(tree, options.decode, options.workers))
        return done

    return preparing.run(parser, options, prepare, lambda tree: report(tree) + found, ImageTree)
