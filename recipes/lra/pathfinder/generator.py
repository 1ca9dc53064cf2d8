"""Generate Pathfinder and Path-X: are two discs joined by one dashed path, or the ends of two paths?

    python -m megalodon_tasks.recipes.lra.pathfinder.generator OUT --resolution 128 --difficulty hard
    python -m megalodon_tasks.recipes.lra.pathfinder.generator --contact-sheet examples.png

The first command writes Path-X in the layout of the Long Range Arena release (``pathfinder_files``);
given again after an interruption, it goes on.  The second one draws the first examples of what the same
options would write.  The task and the rules of drawing are those of Linsley et al. 2018 (arXiv
1805.08315), the parameters those of Long Range Arena (Tay et al. 2021, arXiv 2011.04006).
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from megalodon_tasks.data.parallel import usable_cores
from megalodon_tasks.data.preparing import ending_with_messages
from megalodon_tasks.files import atomic_file
from megalodon_tasks.recipes.lra.pathfinder.drawing import PathfinderPainter
from megalodon_tasks.recipes.lra.pathfinder.files import image_rng, write_images
from megalodon_tasks.recipes.lra.pathfinder.settings import (
    DIFFICULTIES,
    PRESETS,
    PathfinderSettings,
    settings_for,
)

_COLUMNS, _ROWS = 6, 2
_MEANING = {1: "joined", 0: "not joined"}


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lra.pathfinder.generator",
        description="Generate Pathfinder images in the layout of the Long Range Arena release.",
    )
    add = parser.add_argument
    add("out", nargs="?", type=Path, help="folder for pathfinder<resolution>/...")
    presets = ", ".join(map(str, PRESETS))
    add(
        "--resolution",
        type=int,
        default=128,
        help=f"height and width (default: %(default)s); {presets} have the parameters of Long Range "
        "Arena, any other one those of the next smaller of these, or of the smallest",
    )
    lengths = ", ".join(map(str, DIFFICULTIES.values()))
    add(
        "--difficulty",
        choices=tuple(DIFFICULTIES),
        default="hard",
        help=f"paths of {lengths} paddles (default: %(default)s)",
    )
    add("--images", type=int, default=200_000, help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    cores = usable_cores()
    add("--workers", type=int, default=cores, help="processes (default: all cores, %(default)s)")
    add("--contact-sheet", type=Path, metavar="PNG", help="draw labelled examples into this file")
    _add_parameters(parser)
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what an image is made of (default: as for its resolution)")
    for entry in fields(PathfinderSettings):
        if entry.name == "resolution":
            continue
        names = [f"--{entry.name.replace('_', '-')}"]
        if entry.name == "snake_contrast":
            names.append("--contrast")
        several = get_args(entry.type)
        group.add_argument(
            *names,
            type=several[0] if several else entry.type,
            nargs="+" if several else None,
            default=argparse.SUPPRESS,
            metavar=entry.name.split("_")[-1].upper(),
            help=entry.metadata["help"],
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    out, sheet = options.pop("out"), options.pop("contact_sheet")
    if out is None and sheet is None:
        parser.error("give a folder to write to, or --contact-sheet, or both")
    images, seed, workers = (options.pop(name) for name in ("images", "seed", "workers"))
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    with ending_with_messages(parser, "the same command goes on, with the finished batches kept"):
        settings = settings_for(**values)
        if sheet is not None:
            write_contact_sheet(sheet, settings, seed)
            print(f"{sheet}: examples of {settings.folder}")
        if out is not None:
            folder = write_images(out, settings, images, seed=seed, workers=workers)
            print(f"{folder}: {images} images")


if __name__ == "__main__":
    main()
