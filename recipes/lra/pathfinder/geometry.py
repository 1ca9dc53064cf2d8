"""Draw the shapes that Pathfinder images are made of once: paddles, their masks, and discs.

A snake only ever meets finitely many paddles: a seed points along a whole degree, and any other one
ends at one of the pixels on a circle about a pixel.  ``Geometry`` holds all paddles of one margin as
tables, so that to grow a snake (``pathfinder_growth``) is to look up small windows.

Axes: P paddles, O options for the next paddle, S side of a window.  Bytes stand for 0 to 1, 255 = 1.
"""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from megalodon_tasks.recipes.lra.pathfinder.settings import PathfinderSettings

#: A new paddle overlaps where its mask and what is taken add up to 1.8 or more.
OVERLAP = 459
#: A pixel counts as free up to an occupancy of 0.3.
FREE = 76
#: Directions of a seed: paddle ``d`` of a ``Geometry`` points along d - 180 degrees for d < SEEDS.
SEEDS = 360


def step(length: float, angle: float) -> tuple[int, int]:
    """Round a step up to whole pixels, (dy, dx), after rounding noise is removed."""
    dy, dx = length * math.sin(angle), length * math.cos(angle)
    return math.ceil(dy - 1e-9), math.ceil(dx - 1e-9)


def disc(radius: int) -> np.ndarray:
    """Return the pixels of a disc, (2 radius + 1, 2 radius + 1) bool."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def circle_pixels(radius: int) -> np.ndarray:
    """Return the distinct pixels on a circle walked in arcs of one pixel: (N, 2) int (dy, dx)."""
    angles = np.arange(0, 360, 360 / (2 * radius * math.pi)) * math.pi / 180
    points = np.stack([radius * np.sin(angles), radius * np.cos(angles)], axis=1)
    return np.unique(np.floor(points + 1e-9).astype(np.int64), axis=0)


def turn_weights(angle: float, angles: np.ndarray, continuity: float) -> np.ndarray:
    """Compute cos^2(min(continuity x turn, pi / 2)) from one direction to others, in radians."""
    apart = np.abs(angles - angle)
    turn = np.minimum(apart, 2 * math.pi - apart)
    weights = np.cos(np.minimum(continuity * turn, math.pi / 2)) ** 2
    return np.where(continuity * turn < math.pi / 2, weights, 0.0)


def _shrink(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample to (height, width) by Lanczos, uint8 in and out."""
    small = Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(small)


def draw_paddle(
    settings: PathfinderSettings, margin: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a paddle whose line starts in the middle of its window and runs along ``angle`` (radians).

    Returns raster and mask, both (S, S) uint8, S = 2 (length + ceil(thickness) + margin) + 1: a line
    drawn ``antialias_scale`` times larger and resampled, and the same line dilated by a disc of
    radius ``margin`` before it is resampled.
    """
    half = settings.paddle_length + math.ceil(settings.paddle_thickness) + margin
    scale = settings.antialias_scale
    middle = half * scale
    blown = Image.new("L", (2 * middle + 1, 2 * middle + 1), 0)
    dy, dx = step(settings.paddle_length * scale, angle)
    width = round(settings.paddle_thickness * scale)
    ends = [(middle, middle), (middle + dx, middle + dy)]
    ImageDraw.Draw(blown).line(ends, fill=255, width=width)
    line = np.asarray(blown)
    widened = ndimage.binary_dilation(line > 0, structure=disc(margin * scale))
    size = (2 * half + 1, 2 * half + 1)
    return _shrink(line, size), _shrink(widened.astype(np.uint8) * 255, size)


@lru_cache(maxsize=4096)
def _disc_window(
    above: int, below: int, left: int, right: int, radius: float, scale: int
) -> np.ndarray:
    y, x = np.ogrid[-above * scale : (below + 1) * scale, -left * scale : (right + 1) * scale]
    blown = (x**2 + y**2 <= (radius * scale) ** 2).astype(np.uint8) * 255
    return _shrink(blown, (above + below + 1, left + right + 1))


def draw_disc(picture: np.ndarray, centre: tuple[int, int], radius: float, scale: int) -> None:
    """Brighten a square float32 picture to an antialiased disc of brightness 1, in place.

    Only the window that the disc and the resampling filter (three pixels to a side) reach is drawn;
    where the image ends the window ends too, so that the filter is cut off as on a whole image.
    """
    reach = math.ceil(radius) + 4
    (y, x), last = centre, picture.shape[0] - 1
    above, below = min(y, reach), min(last - y, reach)
    left, right = min(x, reach), min(last - x, reach)
    spot = _disc_window(above, below, left, right, radius, scale).astype(np.float32) / 255
    window = picture[y - above : y + below + 1, x - left : x + right + 1]
    np.maximum(window, spot, out=window)


class Geometry:
    """Tables of all paddles of one margin, and the empty field that they are put on.

    Paddles 0 to 359 are seeds, anchored at their tail; the others end on the circle of radius
    ``paddle_length + margin`` about their anchor, the pivot, and their line is drawn from that end
    back towards the pivot.  Windows are centred on the pixel where the line starts.

    Fields are (width, width) with ``pad`` occupied pixels around the image, so that no window leaves
    them, and places and displacements are flat indices into a field.

    raster_PSS:   (P, S, S) uint8.
    mask_PSS:     (P, S, S) uint8, what the paddle takes; limit_PSS = what must not be exceeded there
                  for the paddle to fit.
    room_PSS:     (P, S + 2 margin, S + 2 margin) uint8, 255 minus the mask dilated by the margin.
    next_pivot_P: (P,) int64, from the pivot of a paddle to that of the next one.
    option_PO, option_end_PO, option_turn_PO: the paddles that can follow, where they end from their
                  pivot, and cos^2 of the turn; unused options have weight 0.
    """

    def __init__(self, settings: PathfinderSettings, margin: int) -> None:
        self.settings, self.margin = settings, margin
        length = settings.paddle_length
        self.half = length + math.ceil(settings.paddle_thickness) + margin
        self.pad = self.half + 2 * margin + 2
        self.width = settings.resolution + 2 * self.pad
        self._ends_N2 = circle_pixels(length + margin)
        seed_angles = np.radians(np.arange(-180, 180))
        end_angles = np.arctan2(self._ends_N2[:, 0], self._ends_N2[:, 1])
        self.angle_P = np.concatenate([seed_angles, end_angles])
        self._draw_paddles()
        self._tabulate_steps()
        self._tabulate_options(end_angles)
        self.empty_taken, self.empty_room = self._empty()
        self.outside = np.pad(
            np.zeros((settings.resolution, settings.resolution), bool),
            self.pad,
            constant_values=True,
        )
        self._seed_runs: dict[int, list[tuple[int, int, int]]] = {}

    def flat(self, places: np.ndarray) -> np.ndarray:
        """Return flat indices, or displacements, of (..., 2) pairs (y, x) from the padded corner."""
        return places[..., 0] * self.width + places[..., 1]

    def places(self, flat: np.ndarray | int) -> np.ndarray:
        """Return (..., 2) pairs (y, x) in the image of flat indices (...)."""
        return np.stack(np.divmod(flat, self.width), axis=-1) - self.pad

    def _draw_paddles(self) -> None:
        margin = self.margin
        angles = self.angle_P + np.where(np.arange(len(self.angle_P)) < SEEDS, 0, math.pi)
        drawn = [draw_paddle(self.settings, margin, float(angle)) for angle in angles]
        self.raster_PSS = np.stack([raster for raster, _ in drawn])
        self.mask_PSS = np.stack([mask for _, mask in drawn])
        self.limit_PSS = np.minimum(OVERLAP - 1 - self.mask_PSS.astype(np.int16), 255)
        self.limit_PSS = self.limit_PSS.astype(np.uint8)
        padded = np.pad(self.mask_PSS, ((0, 0), (margin, margin), (margin, margin)))
        self.room_PSS = 255 - ndimage.grey_dilation(
            padded, footprint=disc(margin)[None], mode="constant"
        )

    def _tabulate_steps(self) -> None:
        length, margin = self.settings.paddle_length, self.margin
        steps = [step(length + 2 * margin, float(angle)) for angle in self.angle_P]
        self.next_pivot_P = self.flat(np.array(steps))
        directions = self.angle_P[:SEEDS]
        self.seed_head = np.array([step(length, float(angle)) for angle in directions])
        back = [step(length + margin, float(angle) + math.pi) for angle in directions]
        self.seed_pivot = self.seed_head + np.array(back)
        self.seed_pivot_P = self.flat(self.seed_pivot)

    def _tabulate_options(self, end_angles: np.ndarray) -> None:
        continuity = self.settings.continuity
        turn_PN = np.stack([turn_weights(a, end_angles, continuity) for a in self.angle_P])
        most = int((turn_PN > 0).sum(axis=1).max())
        # Stable: the options that remain stay in the order of the circle's pixels.
        chosen = np.argsort(turn_PN == 0, axis=1, kind="stable")[:, :most]
        self.option_PO = chosen + SEEDS
        self.option_end_PO = self.flat(self._ends_N2)[chosen]
        self.option_turn_PO = np.take_along_axis(turn_PN, chosen, axis=1)

    def _empty(self) -> tuple[np.ndarray, np.ndarray]:
        """Return occupancy, and room for ends, of a field with nothing but its border."""
        free = self.pad + self.settings.padding
        taken = np.full((self.width, self.width), 255, np.uint8)
        taken[free:-free, free:-free] = 0
        return taken, 255 - ndimage.grey_dilation(taken, footprint=disc(self.margin))

    def seed_fits(self, degree: int, tails: np.ndarray) -> np.ndarray:
        """Return whether head and pivot of a seed lie in the image: (...) bool for tails (..., 2)."""
        size = self.settings.resolution
        ends = np.stack([tails + self.seed_head[degree], tails + self.seed_pivot[degree]])
        return ((ends >= 0) & (ends < size)).all(axis=(0, -1))

    def free_tails(self, clear: np.ndarray, degree: int) -> np.ndarray:
        """Find the places for the tail of a seed: flat indices, ascending.

        clear: (width, width) bool.  A place is free if it is clear and so are all pixels of the image
        that the mask covers fully.  These are runs in rows, and whether a run is clear follows from two
        overlapping ones whose length is a power of two.
        """
        size = self.settings.resolution
        if degree not in self._seed_runs:
            covered = self.mask_PSS[degree] == 255
            covered[self.half, self.half] = True
            self._seed_runs[degree] = _runs(covered)
        free = np.zeros((self.width, self.width), bool)
        inside = free[self.pad : self.pad + size, self.pad : self.pad + size]
        inside[:] = True
        clear_runs = [clear | self.outside]
        for dy, dx, count in self._seed_runs[degree]:
            level = count.bit_length() - 1
            while len(clear_runs) <= level:
                known, shift = clear_runs[-1], 1 << (len(clear_runs) - 1)
                clear_runs.append(known[:, :-shift] & known[:, shift:])
            top = self.pad + dy - self.half
            for left in {dx, dx + count - (1 << level)}:
                left += self.pad - self.half
                inside &= clear_runs[level][top : top + size, left : left + size]
        return np.flatnonzero(free)


def _runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """Find the unbroken runs of True in the rows of a bool image: (row, first column, length)."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(edges == 1)
    _, beyond = np.nonzero(edges == -1)
    return [(int(y), int(a), int(b - a)) for y, a, b in zip(rows, first, beyond, strict=True)]
