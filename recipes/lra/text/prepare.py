"""Prepare Text: the released IMDB reviews, or Mega's files, become arrays of tokens.

    megalodon prepare lra/text SOURCE OUT [--validation held-out]

SOURCE is ``aclImdb`` or Mega's ``imdb-4000`` (or a folder above one of them), OUT the data folder of the
task ``lra_text``.  The first 4,000 bytes of a review and an end token; ``text_tokens`` has the details.

The literature validates on the test split, so that its best checkpoint is chosen on the test data;
``--validation held-out`` takes a tenth of the training reviews instead, as many of each class.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.finding import not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item, PreparedDataset
from megalodon_tasks.data.sources import Origin, Rejects, check_source
from megalodon_tasks.recipes.lra.mega_files import SPLITS, MegaTokens
from megalodon_tasks.recipes.lra.text.release import (
    CLASSES,
    RELEASED_PER_FOLDER,
    find_reviews,
    read_reviews,
)
from megalodon_tasks.recipes.lra.text_tokens import (
    MAX_BYTES,
    VOCABULARY,
    add_text_options,
    mega_preparation,
    tokens_of,
)

BENCHMARK = "text"
MEGA_NAME = "imdb-4000"
VALIDATION = {
    "test": "train and test of the release; validation is the test split, as in the literature",
    "held-out": "train and test of the release; validation is a random share of the training reviews",
}

_TITLE = "Text"
_RELEASED = 2 * RELEASED_PER_FOLDER
# Mega's labels are numbers, as TensorFlow's catalogue of data sets has them: 0 negative, 1 positive.
_MEGA_CLASSES = {"0": 0, "neg": 0, "1": 1, "pos": 1}
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Options:
    """How to prepare the release.

    ``validation`` is one of ``VALIDATION``, ``held_out`` the share of the training reviews that is for
    validation in the second case.  ``subset`` takes other counts than the release's.
    """

    validation: str = "test"
    held_out: float = 0.1
    subset: bool = False
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.validation not in VALIDATION:
            raise ValueError(f"validation={self.validation!r} is none of {', '.join(VALIDATION)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be between 0 and 1")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes={self.max_bytes} must be at least 1")

    @property
    def settings(self) -> dict[str, Any]:
        """What the prepared form depends on, as JSON has it."""
        settings = {"tokens": "bytes", "longest": self.max_bytes, "validation": self.validation}
        if self.validation == "held-out":
            settings |= {"held_out": self.held_out, "seed": _HELD_OUT_SEED}
        return settings


def prepare(source: Path, out: Path, options: Options, rejects: Rejects) -> bool:
    """Check and prepare Text; return False if ``out`` already holds it, made from the same files.

    Damaged reviews go to ``rejects``.  Raises ``ValueError`` for bad files (see ``release`` and
    ``mega_files``) and leaves ``out`` as it was then.
    """
    spec = DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns={"inputs": ColumnSpec("uint8")},
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={
            "settings": options.settings,
            "origin": origin_of(source, "release"),
            "split_rule": VALIDATION[options.validation],
            "published": {
                "settings": {"longest": MAX_BYTES, "validation": "test"},
                "counts": {"items": dict.fromkeys(SPLITS, _RELEASED)},
            },
        },
    )
    check_source(source, f"the folder aclImdb of the IMDB reviews, or Mega's {MEGA_NAME}")
    origins = find_reviews(source, subset=options.subset)
    if origins is not None:
        splits = {
            split: preparing.from_the_start(_read, origins, part, options, rejects)
            for split, part in _parts(options).items()
        }
        return preparing.Preparation(_TITLE, spec, origins, splits, rejects).write(out)
    mega = MegaTokens.find(source, MEGA_NAME, classes=_MEGA_CLASSES)
    if mega is None:
        raise not_recognised(
            source,
            "folders train and test with pos and neg in them, and Mega's src-bin",
            "get aclImdb_v1.tar.gz (Maas et al., Large Movie Review Dataset) and unpack it, or take "
            f"the folder {MEGA_NAME} of Mega's processed files",
        )
    if options.validation == "held-out":
        raise ValueError(f"{mega.folder} has a validation split of its own; leave out --validation")
    return mega_preparation(mega, spec, _TITLE, options.max_bytes, rejects).write(out)


class _Part(NamedTuple):
    """A part of the release; all of it, or only what is (or is not) held out for validation."""

    name: str
    held_out: bool | None = None


def _parts(options: Options) -> dict[str, _Part]:
    """Return what each split is made of."""
    if options.validation == "held-out":
        return {
            "train": _Part("train", False),
            "valid": _Part("train", True),
            "test": _Part("test"),
        }
    return {"train": _Part("train"), "valid": _Part("test"), "test": _Part("test")}


def _read(
    origins: Mapping[str, Origin],
    part: _Part,
    options: Options,
    rejects: Rejects,
    on_bytes: OnBytes,
) -> Iterator[Item]:
    held_out = [_held_out(origins[f"{part.name}/{c}"], k, options) for k, c in enumerate(CLASSES)]
    for review in read_reviews(origins, part.name, on_bytes):
        if part.held_out not in (None, review.place in held_out[review.label]):
            continue
        try:
            tokens = tokens_of(review.text, options.max_bytes)
        except ValueError as error:
            rejects.add(review.path, str(error))
            continue
        yield review.label, {"inputs": tokens}


def _held_out(origin: Origin, label: int, options: Options) -> set[int]:
    """Return the places of the reviews of one folder that are held out if it is training data."""
    count = len(origin.paths)
    rng = np.random.default_rng([_HELD_OUT_SEED, label])
    return set(rng.permutation(count)[: max(1, round(options.held_out * count))].tolist())


def report(dataset: PreparedDataset) -> list[str]:
    """Say what a prepared Text holds, and how that differs from the release."""
    released = dict.fromkeys(SPLITS, _RELEASED)
    if dataset.spec.source["settings"].get("validation") == "held-out":
        released = {"test": _RELEASED}
    return preparing.describe_splits(dataset, "reviews", released, note=" with the end token")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run ``megalodon prepare lra/text``; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lra/text",
        "Check the IMDB reviews and bring them into the form that the task lra_text reads.",
        "folder aclImdb of the release, or Mega's imdb-4000, or one above",
    )
    parser.add_argument(
        "--validation",
        choices=tuple(VALIDATION),
        default="test",
        help="validate on the test split as the literature does, or on held-out training reviews",
    )
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share held out (default: %(default)s)"
    )
    parser.add_argument("--subset", action="store_true", help="take any number of reviews")
    add_text_options(parser)
    given = parser.parse_args(arguments)

    def run() -> bool:
        options = Options(given.validation, given.held_out, given.subset, given.max_bytes)
        return prepare(given.source, given.out, options, preparing.rejects_of(given))

    return preparing.run(parser, given, run, report)
