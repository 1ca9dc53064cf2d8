"""Find places for the snakes of one Pathfinder image: two long targets, then short distractors.

Where the description of the data leaves a choice: the last paddles of *both* targets keep
distractors away (the public generator forgets that of the first), and a seed's mask is laid on its
tail without the public generator's shift by one pixel.

Axes as in ``pathfinder_growth``; a last axis of 2 is (y, x).
"""

from dataclasses import dataclass

import numpy as np

from megalodon_tasks.recipes.lra.pathfinder.geometry import FREE, SEEDS, Geometry
from megalodon_tasks.recipes.lra.pathfinder.growth import Fields, Grown, grow
from megalodon_tasks.recipes.lra.pathfinder.settings import PathfinderSettings

#: Share of free pixels below which no further distractor is tried.
_FULL = 0.01
#: Attempts at targets that are made side by side are about as many as an image takes: fewer make
#: more calls of numpy, more are made in vain.  Their fields should stay in the processor's cache.
_FEWEST, _MOST_BYTES = 16, 8_000_000


@dataclass(frozen=True, slots=True)
class Snake:
    """Paddles of a snake from the tail on.

    paddles: (L,) int64, rows of the ``Geometry`` of the image's margin, the first a seed.
    starts:  (L, 2) int64, where each line starts: the tail of the seed, and the far end of every
             other paddle.
    """

    paddles: np.ndarray
    starts: np.ndarray


class SnakeFinder:
    """Finds snakes for images of one margin; keeps its shapes and working memory."""

    def __init__(self, settings: PathfinderSettings, margin: int) -> None:
        self.settings = settings
        self.geometry = Geometry(settings, margin)
        self._tries = settings.max_paddle_retrial + 1
        self._found, self._needed = 1, _FEWEST
        self._many, self._one = Fields(self.geometry, _FEWEST), Fields(self.geometry, 1)
        self._most = max(_MOST_BYTES // (2 * self._one.area), _FEWEST)
        circle = np.radians(np.arange(360))
        offsets = settings.seed_distance * np.stack([np.sin(circle), np.cos(circle)], axis=1)
        self._second_tails = np.rint(offsets).astype(np.int64)
        self._tabulate_first_tails()

    def find(
        self, target_rng: np.random.Generator, distractor_rng: np.random.Generator
    ) -> tuple[list[Snake], list[Snake]]:
        """Find the two targets, and the distractors that fit.

        Attempts at targets are drawn in blocks of any size and may leave draws unused, which is why
        they have a stream of their own.  Raises ``ValueError`` if the targets do not fit after
        ``max_restarts`` new attempts.
        """
        targets, taken, room = self._find_targets(target_rng)
        self._one.reset(taken, room)
        return targets, self._find_distractors(distractor_rng)

    def _tabulate_first_tails(self) -> None:
        """List where the first seed of an image can be, by its direction; the same in every image."""
        geometry = self.geometry
        border = geometry.pad + 2 * self.settings.seed_distance
        clear = np.zeros((geometry.width, geometry.width), bool)
        clear[border:-border, border:-border] = True
        tails = [geometry.free_tails(clear, degree) for degree in range(SEEDS)]
        self._tail_count = np.array([len(some) for some in tails])
        self._tail_begin = self._tail_count.cumsum() - self._tail_count
        self._first_tails = geometry.places(np.concatenate([*tails, [0]]))

    def _find_targets(self, rng: np.random.Generator) -> tuple[list[Snake], np.ndarray, np.ndarray]:
        """Find the targets and the field with them: what is taken and the room for ends."""
        settings, made = self.settings, 0
        while (left := settings.max_restarts + 1 - made) > 0:
            block = min(max(self._needed // self._found, _FEWEST), self._most, left)
            if len(self._many.taken) < block:
                self._many = Fields(self.geometry, block)
            draws = rng.random((block, 2 * self._tries * (settings.contour_length + 1)))
            grown = self._attempt_targets(draws)
            self._needed += block if grown is None else grown.attempt + 1
            made += block
            if grown is not None:
                self._found += 1
                taken, room = self._many.taken[grown.attempt], self._many.room[grown.attempt]
                return self._snakes(grown), taken, room
        raise ValueError(
            f"resolution={settings.resolution}: two snakes of contour_length="
            f"{settings.contour_length} did not fit in {made} attempts (paddle_length="
            f"{settings.paddle_length}, margin={self.geometry.margin}); choose a smaller "
            "contour_length, shorter paddles or a larger image, or raise max_restarts"
        )

    def _snakes(self, grown: Grown) -> list[Snake]:
        starts_SL2 = self.geometry.places(grown.start_SL)
        return [Snake(*parts) for parts in zip(grown.paddle_SL, starts_SL2, strict=True)]

    def _attempt_targets(self, draws_AD: np.ndarray) -> Grown | None:
        geometry, tries, count = self.geometry, self._tries, len(draws_AD)
        seeding, growing = np.split(draws_AD, [4 * tries], axis=1)
        seed_AS, tail_AS2, seeded = self._seed_targets(seeding.reshape(count, 2, 2, tries))
        self._many.reset(geometry.empty_taken, geometry.empty_room)
        return grow(
            self._many,
            seed_AS,
            geometry.flat(tail_AS2 + geometry.pad),
            growing.reshape(count, -1, 2, tries),
            np.flatnonzero(seeded),
        )

    def _seed_targets(self, draws_A22T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the first paddles of the two targets: seeds (A, 2), tails (A, 2, 2), success (A,) bool.

        draws_A22T: uniform; for each target T directions, then T places.
        """
        rows = np.arange(len(draws_A22T))
        degree_AT = (draws_A22T[:, 0, 0] * SEEDS).astype(np.int64)
        count_AT = self._tail_count[degree_AT]
        which_AT = self._tail_begin[degree_AT] + (draws_A22T[:, 0, 1] * count_AT).astype(np.int64)
        tail_AT2 = self._first_tails[which_AT]
        fits_AT = self.geometry.seed_fits(degree_AT, tail_AT2) & (count_AT > 0)
        # A direction without any place ends the attempt, a place that does not do only the try.
        first = np.argmax(fits_AT | (count_AT == 0), axis=1)
        seed, tail, success = degree_AT[rows, first], tail_AT2[rows, first], fits_AT[rows, first]

        degree_AT = (draws_A22T[:, 1, 0] * SEEDS).astype(np.int64)
        around_AT = (draws_A22T[:, 1, 1] * len(self._second_tails)).astype(np.int64)
        tail_AT2 = tail[:, None] + self._second_tails[around_AT]
        fits_AT = self.geometry.seed_fits(degree_AT, tail_AT2)
        first = np.argmax(fits_AT, axis=1)
        seeds = np.stack([seed, degree_AT[rows, first]], axis=1)
        tails = np.stack([tail, tail_AT2[rows, first]], axis=1)
        return seeds, tails, success & fits_AT[rows, first]

    def _find_distractors(self, rng: np.random.Generator) -> list[Snake]:
        settings = self.settings
        kinds = [
            (settings.num_distractors, settings.distractor_length, settings.max_distractor_retrial),
            (settings.single_paddles, 1, settings.max_paddle_retrial),
        ]
        found: list[Snake] = []
        for count, length, retrial in kinds:
            for _ in range(count):
                for _ in range(retrial + 1):
                    if self._full():
                        return found
                    if (snake := self._attempt_distractor(rng, length)) is not None:
                        found.append(snake)
                        break
        return found

    def _full(self) -> bool:
        """Return whether less than 1 % of the image is free."""
        pad, size = self.geometry.pad, self.settings.resolution
        inside = self._one.taken[0, pad : pad + size, pad : pad + size]
        return np.count_nonzero(inside <= FREE) < _FULL * size * size

    def _attempt_distractor(self, rng: np.random.Generator, length: int) -> Snake | None:
        """Try to add a snake to the field; the field stays as it was if there is none."""
        seeded = self._seed_distractor(rng)
        if seeded is None:
            return None
        before = self._one.taken[0].copy(), self._one.room[0].copy()
        seed_AS, tail_AS = np.array(seeded).reshape(2, 1, 1)
        draws = rng.random((1, length - 1, 1, self._tries))
        grown = grow(self._one, seed_AS, tail_AS, draws, np.arange(1))
        if grown is None:
            self._one.reset(*before)
            return None
        return self._snakes(grown)[0]

    def _seed_distractor(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Choose direction and flat place of a seed anywhere free; None if a direction has no place."""
        clear = self._one.taken[0] <= FREE
        for _ in range(self._tries):
            degree = int(rng.integers(SEEDS))
            tails = self.geometry.free_tails(clear, degree)
            if not len(tails):
                return None
            tail = int(tails[rng.integers(len(tails))])
            if self.geometry.seed_fits(degree, self.geometry.places(tail)):
                return degree, tail
        return None
