"""Draw one Pathfinder image from its snakes and mark two ends.

Two discs mark the tail of a randomly chosen target and the far end of the same one (label 1) or of
the other one (label 0).  Every paddle of a target has the brightness of its snake times a factor that
is drawn for each pair of paddles; distractors have only the brightness of snakes.  Several values
of ``snake_contrast`` are dealt to the two targets from two copies of each.
"""

from dataclasses import dataclass

import numpy as np

from megalodon_tasks.recipes.lra.pathfinder.geometry import Geometry, draw_disc
from megalodon_tasks.recipes.lra.pathfinder.settings import PathfinderSettings
from megalodon_tasks.recipes.lra.pathfinder.snakes import Snake, SnakeFinder


@dataclass(frozen=True, slots=True)
class PathfinderImage:
    """An image and what it was made of.

    pixels:  (resolution, resolution) uint8, stretched to the full range.
    targets: the two long snakes.   distractors: the short ones that found a place.
    markers: (2, 2) int64, (y, x) of the marked tail and of the marked far end.
    """

    pixels: np.ndarray
    label: int
    margin: int
    targets: list[Snake]
    distractors: list[Snake]
    markers: np.ndarray


class PathfinderPainter:
    """Draws images of one distribution."""

    def __init__(self, settings: PathfinderSettings) -> None:
        self.settings = settings
        self._finders = {margin: SnakeFinder(settings, margin) for margin in set(settings.margins)}

    def geometry(self, margin: int) -> Geometry:
        """Return the paddles that images of a margin are made of."""
        return self._finders[margin].geometry

    def paint(self, rng: np.random.Generator) -> PathfinderImage:
        """Draw one image; all of it follows from the seed of ``rng``.

        Raises ``ValueError`` if the targets do not fit after ``max_restarts`` new attempts.
        """
        settings = self.settings
        target_rng, rng = rng.spawn(2)
        label = int(rng.integers(2))
        margin = int(rng.choice(settings.margins))
        targets, distractors = self._finders[margin].find(target_rng, rng)
        dealt = rng.permutation(np.repeat(settings.snake_contrast, 2))[:2]
        factors = rng.choice(settings.paddle_contrast, settings.contour_length)
        contrasts = [contrast * factors for contrast in dealt]
        contrasts += [rng.choice(settings.snake_contrast, len(s.paddles)) for s in distractors]
        marked = int(rng.integers(2))
        ended = marked if label else 1 - marked
        markers = np.stack([targets[marked].starts[0], targets[ended].starts[-1]])
        picture = self._draw([*targets, *distractors], contrasts, self.geometry(margin))
        for y, x in markers.tolist():
            draw_disc(picture, (y, x), settings.marker_radius, settings.antialias_scale)
        return PathfinderImage(stretch(picture), label, margin, targets, distractors, markers)

    def _draw(
        self, snakes: list[Snake], contrasts: list[np.ndarray], geometry: Geometry
    ) -> np.ndarray:
        """Compute the pixelwise maximum of all paddles, float32."""
        half, pad = geometry.half, geometry.pad
        canvas = np.zeros((geometry.width, geometry.width), np.float32)
        for snake, contrast in zip(snakes, contrasts, strict=True):
            brightness = (contrast / 255).astype(np.float32)
            rasters = geometry.raster_PSS[snake.paddles] * brightness[:, None, None]
            corners = (snake.starts + (pad - half)).tolist()
            for raster, (y, x) in zip(rasters, corners, strict=True):
                window = canvas[y : y + 2 * half + 1, x : x + 2 * half + 1]
                np.maximum(window, raster, out=window)
        return canvas[pad:-pad, pad:-pad]


def stretch(picture: np.ndarray) -> np.ndarray:
    """Stretch a picture to bytes: darkest pixel 0, brightest 255; a uniform one becomes 0.

    The release was written by a function that did so to each image.
    """
    low, high = float(picture.min()), float(picture.max())
    if high == low:
        return np.zeros(picture.shape, np.uint8)
    return ((picture - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
