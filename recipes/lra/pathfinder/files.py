"""Write Pathfinder images in the layout of the Long Range Arena release, on all cores.

Below the folder of the settings (``pathfinder128/curv_contour_length_14``):

    imgs/<batch>/sample_<i>.png     8-bit grey
    metadata/<batch>.npy            *text* in spite of its name, one ``metadata_line`` per image
    pathfinder_generator.json       what all of them were made with; the release has no such file

Batches count from 0 and hold ``BATCH`` images each (a choice, the release's own number is not known
here), the last one the rest.  An image depends on (seed, batch, index) alone: neither the number of
processes nor an interruption changes it.  A batch is drawn in a folder of another name, which is
renamed once it is complete; its metadata is written last, and a batch that has its metadata is kept.
"""

import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from megalodon_tasks.data.parallel import in_turns
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.files import atomic_file, sole_writer
from megalodon_tasks.recipes.lra.pathfinder.drawing import PathfinderImage, PathfinderPainter
from megalodon_tasks.recipes.lra.pathfinder.settings import PathfinderSettings

BATCH = 1000
RECORD = "pathfinder_generator.json"
#: Images that a process draws before it reports back.
_PORTION = 20


def image_rng(seed: int, batch: int, index: int) -> np.random.Generator:
    """The random numbers that one image is drawn with."""
    return np.random.default_rng((seed, batch, index))


def metadata_line(
    settings: PathfinderSettings, image: PathfinderImage, batch: int, index: int
) -> str:
    """The line of an image, its fields in the order of the release; the fourth is the label."""
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


def _draw(
    folder: Path,
    settings: PathfinderSettings,
    seed: int,
    portions: list[_Portion],
    first: int,
    step: int,
) -> Iterator[list[str]]:
    """Draw every ``step``-th portion into the folder of its unfinished batch; yield their lines."""
    painter = PathfinderPainter(settings)
    for portion in portions[first::step]:
        unfinished = _unfinished(folder, portion.batch)
        unfinished.mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(portion.first, portion.last):
            image = painter.paint(image_rng(seed, portion.batch, index))
            Image.fromarray(image.pixels).save(unfinished / f"sample_{index}.png")
            lines.append(metadata_line(settings, image, portion.batch, index))
        yield lines


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
    hidden: bool = False,
) -> Path:
    """Write ``images`` images below ``root``, or those of the batches that are missing.

    ``hidden`` hides the progress bar.  Returns the folder with ``imgs`` and ``metadata``.  Raises
    ``ValueError`` for a number below its least value, and if the folder holds images of another seed,
    of other settings or of another origin, or more of them than are asked for.
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
            _write(folder, settings, seed, missing, images, workers, hidden)
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
    hidden: bool,
) -> None:
    portions = _portions(batches)
    make = functools.partial(_draw, folder, settings, seed, portions)
    bar = progress_bar(total=total, label=settings.folder, unit="images", hidden=hidden)
    lines: list[str] = []
    with bar, closing(in_turns(make, min(workers, len(portions)) or 1)) as drawn:
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
    """Batches (number -> size) that are still to be drawn."""
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
                    "another folder, or go on with the same parameters"
                )
    elif (folder / "imgs").exists() or (folder / "metadata").exists():
        raise ValueError(
            f"{folder} holds images that were not generated here (no {RECORD}): choose another folder"
        )
    else:
        with atomic_file(path, "w") as stream:
            stream.write(json.dumps(origin, indent=1) + "\n")
