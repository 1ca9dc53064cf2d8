"""Generate Pathfinder and Path-X: are two discs joined by one dashed path, or the ends of two paths?

    megalodon prepare lra/pathx DATA OUT --generate [--difficulty hard] [--contact-sheet examples.png]

writes Path-X in the layout of the Long Range Arena release, on all cores; given again after an
interruption, it continues.  The task and the rules of drawing are those of Linsley et al. 2018 (arXiv
1805.08315), the parameters those of Long Range Arena (Tay et al. 2021, arXiv 2011.04006).  Below the
folder of the settings (``pathfinder128/curv_contour_length_14``):

    imgs/<batch>/sample_<i>.png     8-bit grey
    metadata/<batch>.npy            *text* in spite of its name, one ``metadata_line`` per image
    pathfinder_generator.json       what all of them were made with; the release has no such file

Batches count from 0 and hold ``BATCH`` images each (a choice, the release's own number is not known
here), the last one what remains.  An image depends only on (seed, batch, index): neither the number of
processes nor an interruption changes it.  A batch is drawn in a folder of another name, which is
renamed once it is complete; its metadata is written last, and a batch that has its metadata stays.
"""

import argparse
import functools
import json
import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.preparing import generator_options, progress_bar
from megalodon_tasks.files import atomic_file, sole_writer
from megalodon_tasks.recipes.lra.pathfinder.drawing import PathfinderImage, PathfinderPainter
from megalodon_tasks.recipes.lra.pathfinder.settings import (
    DIFFICULTIES,
    PRESETS,
    PathfinderSettings,
    settings_for,
)

BATCH, COUNT = 1000, 200_000
RECORD = "pathfinder_generator.json"
#: Images that a process draws before it reports back.
_PORTION = 20


_COLUMNS, _ROWS = 6, 2
_MEANING = {1: "joined", 0: "not joined"}


def image_rng(seed: int, batch: int, index: int) -> np.random.Generator:
    """Return the random numbers that one image is drawn with."""
    return np.random.default_rng((seed, batch, index))


def metadata_line(
    settings: PathfinderSettings, image: PathfinderImage, batch: int, index: int
) -> str:
    """Write the line of an image, its fields in the order of the release; the fourth is the label."""
    values = (
        f"imgs/{batch}",
        f"sample_{index}.png",
        index,
        image.label,
        settings.continuity,
        settings.contour_length,
        settings.distractor_length,
        settings.paddle_length,
        settings.paddle_thickness,
        image.margin,
        len(settings.paddle_contrast),
    )
    return " ".join(map(str, values)) + "\n"


@dataclass(frozen=True, slots=True)
class _Portion:
    """Images [first, last) of a batch; ``ends`` where they are the last ones of it."""

    batch: int
    first: int
    last: int
    ends: bool


def _portions(batches: dict[int, int]) -> list[_Portion]:
    """Cut batches (number -> size) into portions."""
    return [
        _Portion(batch, first, min(first + _PORTION, size), first + _PORTION >= size)
        for batch, size in batches.items()
        for first in range(0, size, _PORTION)
    ]


def _draw(folder: Path, settings: PathfinderSettings, seed: int, portion: _Portion) -> list[str]:
    """Draw a portion into the folder of its unfinished batch; return its lines of metadata."""
    painter, lines = _painter(settings), []
    unfinished = _unfinished(folder, portion.batch)
    unfinished.mkdir(parents=True, exist_ok=True)
    for index in range(portion.first, portion.last):
        image = painter.paint(image_rng(seed, portion.batch, index))
        Image.fromarray(image.pixels).save(unfinished / f"sample_{index}.png")
        lines.append(metadata_line(settings, image, portion.batch, index))
    return lines


# once for all portions that a process draws
_painter = functools.lru_cache(maxsize=1)(PathfinderPainter)


def _unfinished(folder: Path, batch: int) -> Path:
    return folder / "imgs" / f"{batch}.unfinished"


def _metadata(folder: Path, batch: int) -> Path:
    return folder / "metadata" / f"{batch}.npy"


def write_images(
    root: str | os.PathLike[str],
    settings: PathfinderSettings,
    images: int,
    *,
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Write ``images`` images below ``root``, or those of the batches that are missing.

    Returns the folder with ``imgs`` and ``metadata``.  Raises ``ValueError`` for a number below its
    least value, and if the folder holds images of another seed, of other settings or of another origin,
    or more of them than are asked for.
    """
    for name, value, least in (("images", images, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    folder = Path(root) / settings.folder
    sizes = {first // BATCH: min(BATCH, images - first) for first in range(0, images, BATCH)}
    with sole_writer(folder):
        _check_origin(folder, settings, seed)
        missing = _missing(folder, sizes)
        _remove_unfinished(folder)
        try:
            _write(folder, settings, seed, missing, images, workers)
        finally:
            _remove_unfinished(folder)
    return folder


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("imgs/*.unfinished"):
        shutil.rmtree(path)


def _write(
    folder: Path,
    settings: PathfinderSettings,
    seed: int,
    batches: dict[int, int],
    total: int,
    workers: int,
) -> None:
    portions = _portions(batches)
    draw = functools.partial(_draw, folder, settings, seed)
    bar = progress_bar(total=total, label=settings.folder, unit="images")
    lines: list[str] = []
    with bar, closing(map_in_order(draw, portions, workers)) as drawn:
        bar.update(total - sum(batches.values()))
        for portion, some in zip(portions, drawn, strict=True):
            lines += some
            if portion.ends:
                _finish(folder, portion.batch, lines)
                lines = []
            bar.update(len(some))


def _finish(folder: Path, batch: int, lines: list[str]) -> None:
    """Give a complete batch its names, the metadata last."""
    images, metadata = folder / "imgs" / str(batch), _metadata(folder, batch)
    metadata.parent.mkdir(exist_ok=True)
    metadata.unlink(missing_ok=True)
    shutil.rmtree(images, ignore_errors=True)
    os.rename(_unfinished(folder, batch), images)
    with atomic_file(metadata, "w") as stream:
        stream.writelines(lines)


def _missing(folder: Path, sizes: dict[int, int]) -> dict[int, int]:
    """Return the batches (number -> size) that are still to be drawn."""
    present: Counter[int] = Counter()
    for path in folder.glob("metadata/*.npy"):
        present[int(path.stem)] = path.read_text(encoding="utf-8").count("\n")
    for batch, count in sorted(present.items()):
        if count > sizes.get(batch, 0):
            raise ValueError(
                f"{_metadata(folder, batch)} has {count} images, where {sum(sizes.values())} in all "
                f"({BATCH} to a batch) leave {sizes.get(batch, 0)}: choose another folder, or ask for "
                "at least as many images as there are"
            )
    return {
        batch: size
        for batch, size in sizes.items()
        if present[batch] != size
        or sum(1 for _ in (folder / "imgs" / str(batch)).glob("sample_*.png")) != size
    }


def _check_origin(folder: Path, settings: PathfinderSettings, seed: int) -> None:
    """Compare with what the folder's images were made with; write it down where there are none."""
    # Through text, as tuples come back as lists.
    origin = json.loads(json.dumps({"seed": seed, "batch": BATCH, **asdict(settings)}))
    path = folder / RECORD
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in origin.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{folder} holds images made with {name}={before.get(name)}, not {value}: choose "
                    "another folder, or continue with the same parameters"
                )
    elif (folder / "imgs").exists() or (folder / "metadata").exists():
        raise ValueError(
            f"{folder} holds images that were not generated here (no {RECORD}): choose another folder"
        )
    else:
        with atomic_file(path, "w") as stream:
            stream.write(json.dumps(origin, indent=1, allow_nan=False) + "\n")


def write_contact_sheet(path: Path, settings: PathfinderSettings, seed: int = 0) -> None:
    """Draw a PNG with the first images of batch 0: two rows with label 1 above two with label 0."""
    painter = PathfinderPainter(settings)
    shown: dict[int, list[tuple[int, np.ndarray]]] = {label: [] for label in _MEANING}
    index = 0
    while min(map(len, shown.values())) < _ROWS * _COLUMNS:
        image = painter.paint(image_rng(seed, 0, index))
        shown[image.label].append((index, image.pixels))
        index += 1
    figure = Figure(figsize=(2.4 * _COLUMNS, 5.2 * _ROWS), layout="constrained")
    figure.suptitle(f"{settings.folder}, seed {seed}")
    panels = iter(figure.subplots(2 * _ROWS, _COLUMNS).flat)
    for label, meaning in _MEANING.items():
        for number, pixels in shown[label][: _ROWS * _COLUMNS]:
            panel = next(panels)
            panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            panel.set_title(f"sample_{number}: {label} ({meaning})", fontsize=9)
            panel.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=100)


# Name of each parameter of an image that can be given -> how its value is read, and what it means.
_PARAMETERS = {
    field.name: field for field in fields(PathfinderSettings) if field.name != "resolution"
}
_OTHERS = ("difficulty", "count", "seed", "contact_sheet")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--generate`` and what it can be given."""
    group = parser.add_argument_group("synthetic data")
    add = group.add_argument
    sizes, lengths = (", ".join(map(str, known)) for known in (PRESETS, DIFFICULTIES.values()))
    add(
        "--generate",
        action="store_true",
        help="generate images by the rules of the benchmark into SOURCE first, with the parameters of "
        f"Long Range Arena for --side {sizes}, for another one those of the next smaller of these, or "
        "of the smallest",
    )
    difficulties = tuple(DIFFICULTIES)
    add("--difficulty", choices=difficulties, help=f"paths of {lengths} paddles (default: hard)")
    add("--count", type=int, metavar="N", help=f"number of images (default: {COUNT})")
    add("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    add(
        "--contact-sheet",
        type=Path,
        metavar="PNG",
        help="also draw labelled examples into this file",
    )
    group = parser.add_argument_group(
        "what a synthetic image is made of (default: as for its side)"
    )
    for name, field in _PARAMETERS.items():
        several = get_args(field.type)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=several[0] if several else field.type,
            nargs="+" if several else None,
            metavar=name.split("_")[-1].upper(),
            help=field.metadata["help"],
        )


def generate(options: argparse.Namespace) -> Path | None:
    """Generate what the parsed options ask for; return its folder, None without ``--generate``.

    Raises ``ValueError`` for impossible options, and for some without ``--generate``.
    """
    given = generator_options(options, (*_OTHERS, *_PARAMETERS))
    if not options.generate:
        return None
    sheet, count, seed = (
        given.pop(name, default)
        for name, default in (("contact_sheet", None), ("count", COUNT), ("seed", 0))
    )
    values = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
    settings = settings_for(options.side, **values)
    if sheet is not None:
        write_contact_sheet(sheet, settings, seed)
        print(f"{sheet}: examples of {settings.folder}")
    return write_images(options.source, settings, count, seed=seed, workers=options.workers)
