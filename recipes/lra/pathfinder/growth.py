"""Grow snakes, many independent attempts side by side.

Most attempts at two long snakes in a small image run into a dead end: the 128 x 128 images of Long
Range Arena take some three hundred each.  As attempts are independent, a block of them grows in step
with array operations, and the first one *in order* that succeeds is the result: the same as if they
had been made one after the other, whatever the size of the block.

Axes: A attempts, S snakes that grow in turn into one field, L paddles of a snake, T tries of a
paddle, O options for the next paddle.
"""

from dataclasses import dataclass

import numpy as np

from megalodon_tasks.recipes.lra.pathfinder.geometry import Geometry

#: Total weight of the options (one free pixel straight ahead is 255) below which there are none.
_DEAD_END = 1e-4 * 255


@dataclass(frozen=True, slots=True)
class Grown:
    """The attempt that succeeded, and its snakes: rows of a ``Geometry`` and flat places."""

    attempt: int
    paddle_SL: np.ndarray
    start_SL: np.ndarray


class Fields:
    """What is occupied, for A attempts: (A, width, width) uint8 each, 255 = fully.

    ``taken`` is the pixelwise maximum of the masks of all paddles, ``room`` is 255 minus ``taken``
    dilated by the margin.  Dilation passes through a maximum, so ``room`` stays exact by taking the
    minimum with each paddle's own.
    """

    def __init__(self, geometry: Geometry, attempts: int) -> None:
        self.geometry = geometry
        width = geometry.width
        self.area = width * width
        self.taken = np.empty((attempts, width, width), np.uint8)
        self.room = np.empty((attempts, width, width), np.uint8)
        self.flat_room = self.room.reshape(-1)
        side = geometry.mask_PSS.shape[1]
        self._taken_windows = _windows(self.taken, side)
        self._room_windows = _windows(self.room, side + 2 * geometry.margin)
        self._taken_corner = geometry.half * (width + 1)
        self._room_corner = (geometry.half + geometry.margin) * (width + 1)

    def reset(self, taken: np.ndarray, room: np.ndarray) -> None:
        """Let every attempt begin with the same field, (width, width) each."""
        self.taken[:] = taken
        self.room[:] = room

    def overlaps(self, paddle: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return whether each of K paddles meets what is taken, (K,) bool.

        Places count through all fields.
        """
        windows = self._taken_windows[start - self._taken_corner]
        return (windows > self.geometry.limit_PSS[paddle]).any(axis=(1, 2))

    def occupy(self, paddle: np.ndarray, start: np.ndarray) -> None:
        """Add K paddles, at most one to an attempt."""
        at = start - self._taken_corner
        windows = self._taken_windows
        windows[at] = np.maximum(windows[at], self.geometry.mask_PSS[paddle])
        at = start - self._room_corner
        windows = self._room_windows
        windows[at] = np.minimum(windows[at], self.geometry.room_PSS[paddle])


def _windows(fields: np.ndarray, side: int) -> np.ndarray:
    """Return a view of all windows (side, side) by the flat index of their upper left pixel."""
    width = fields.shape[-1]
    count = fields.size - (side - 1) * (width + 1)
    return np.lib.stride_tricks.as_strided(
        fields, (count, side, side), (1, width, 1), writeable=True
    )


def grow(
    fields: Fields,
    seed_AS: np.ndarray,
    tail_AS: np.ndarray,
    draws_ALST: np.ndarray,
    attempts: np.ndarray,
) -> Grown | None:
    """Grow S snakes from their seeds to L paddles each, one paddle of each in turn.

    fields:     what every attempt starts with; afterwards that of the attempt that succeeded has all
                its paddles, and those of the others are undefined.
    seed_AS, tail_AS: (A, S) int64, the first paddles and the flat places of their tails.
    draws_ALST: (A, L - 1, S, T) uniform in [0, 1), one per try of each paddle.
    attempts:   numbers of the attempts to make, ascending.

    The rule: the pivot moves on by the length and two margins along the last paddle.  An end on the
    circle about it is drawn with a weight of (1 - occupancy near it) cos^2(turn).  The paddle from
    there back to the pivot must not overlap what is taken, else another end is drawn, T times in all.
    A paddle joins the field once the next one of its snake is found, since neighbours may touch; the
    last ones join at the end.  Returns the first attempt that succeeds, or None.
    """
    growth = _Growth(fields, seed_AS, tail_AS, attempts)
    for draws_AST in draws_ALST.swapaxes(0, 1):
        for snake in range(seed_AS.shape[1]):
            growth.extend(snake, draws_AST[:, snake])
            if not len(growth.attempts):
                return None
    return growth.first() if len(growth.attempts) else None


class _Growth:
    """The attempts that are still alive, K of them, and what each has grown.

    Of each snake it holds the last paddle, where that starts and its pivot, (K,) each.  Places count
    through all fields, so that they say which field they are in.
    """

    def __init__(
        self, fields: Fields, seed_AS: np.ndarray, tail_AS: np.ndarray, attempts: np.ndarray
    ) -> None:
        self.fields, self.attempts = fields, attempts
        geometry = fields.geometry
        self.paddle = list(seed_AS[attempts].T)
        self.start = list((tail_AS[attempts] + attempts[:, None] * fields.area).T)
        self.pivot = [
            start + geometry.seed_pivot_P[paddle]
            for start, paddle in zip(self.start, self.paddle, strict=True)
        ]
        # All paddles so far: the attempts that were alive then, their paddles and where these start.
        self.grown = [[(attempts, *seed)] for seed in zip(self.paddle, self.start, strict=True)]

    def extend(self, snake: int, draws_AT: np.ndarray) -> None:
        """Find the next paddle of a snake; attempts that find none die."""
        geometry, fields = self.fields.geometry, self.fields
        pivot = self.pivot[snake] + geometry.next_pivot_P[self.paddle[snake]]
        end_KO = pivot[:, None] + geometry.option_end_PO[self.paddle[snake]]
        turn_KO = geometry.option_turn_PO[self.paddle[snake]]
        sum_KO = (fields.flat_room.take(end_KO) * turn_KO).cumsum(axis=1)
        able = sum_KO[:, -1] >= _DEAD_END
        if not able.all():
            self._keep(able)
            pivot, end_KO, sum_KO = pivot[able], end_KO[able], sum_KO[able]
        draw_KT = draws_AT[self.attempts] * sum_KO[:, -1:]
        paddle, end, found = self._choose(self.paddle[snake], end_KO, sum_KO, draw_KT)
        if not found.all():
            self._keep(found)
            pivot, paddle, end = pivot[found], paddle[found], end[found]
        fields.occupy(self.paddle[snake], self.start[snake])
        self.paddle[snake], self.start[snake], self.pivot[snake] = paddle, end, pivot
        self.grown[snake].append((self.attempts, paddle, end))

    def _choose(
        self, last: np.ndarray, end_KO: np.ndarray, sum_KO: np.ndarray, draw_KT: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw options until they fit: paddles, places of their ends, and whether one was found."""
        rows, missing = np.arange(len(last)), None
        for number in range(draw_KT.shape[1]):
            option = (sum_KO[rows] <= draw_KT[rows, number, None]).sum(axis=1)
            paddle = self.fields.geometry.option_PO[last[rows], option]
            end = end_KO[rows, option]
            overlaps = self.fields.overlaps(paddle, end)
            if missing is None:
                paddles, ends, missing = paddle, end, overlaps
            else:
                paddles[rows], ends[rows], missing[rows] = paddle, end, overlaps
            rows = rows[overlaps]
            if not len(rows):
                break
        return paddles, ends, ~missing

    def _keep(self, alive: np.ndarray) -> None:
        self.attempts = self.attempts[alive]
        self.paddle = [paddle[alive] for paddle in self.paddle]
        self.start = [start[alive] for start in self.start]
        self.pivot = [pivot[alive] for pivot in self.pivot]

    def first(self) -> Grown:
        """Return the first attempt that is alive, after adding the last paddles of its snakes."""
        attempt = int(self.attempts[0])
        snakes = []
        for snake, grown in enumerate(self.grown):
            self.fields.occupy(self.paddle[snake][:1], self.start[snake][:1])
            rows = [int(np.searchsorted(attempts, attempt)) for attempts, _, _ in grown]
            parts = zip(rows, grown, strict=True)
            snakes.append([(paddle[row], start[row]) for row, (_, paddle, start) in parts])
        paddle_SL, start_SL = np.array(snakes).transpose(2, 0, 1)
        return Grown(attempt, paddle_SL, start_SL - attempt * self.fields.area)
