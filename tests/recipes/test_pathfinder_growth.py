"""The tables and blocks that Pathfinder snakes grow with, against the rules read aloud."""

import math
from dataclasses import replace

import numpy as np
import pytest

from megalodon_tasks.recipes.lra.pathfinder.geometry import (
    FREE,
    Geometry,
    circle_pixels,
    draw_disc,
    turn_weights,
)
from megalodon_tasks.recipes.lra.pathfinder.growth import Fields, grow
from megalodon_tasks.recipes.lra.pathfinder.settings import settings_for
from tests.recipes import pathfinder_literal as literal

SMALL = settings_for(32)
# As Path-X, in an image so small that a literal computation is quick and borders matter.
DENSE = replace(settings_for(128), resolution=56, seed_distance=10, continuity=1.2)
THICK = replace(settings_for(64), resolution=50, seed_distance=8, paddle_thickness=2.5)
CASES = [(SMALL, 1), (DENSE, 2), (DENSE, 3), (THICK, 1)]


@pytest.fixture(scope="module")
def geometries():
    return {(settings.folder, margin): Geometry(settings, margin) for settings, margin in CASES}


@pytest.fixture(params=CASES, ids=["small", "dense-2", "dense-3", "thick"])
def case(request, geometries):
    settings, margin = request.param
    return settings, margin, geometries[settings.folder, margin]


def inside(geometry, field):
    """The image's part of a padded field, as 0 to 1."""
    pad = geometry.pad
    return field[pad:-pad, pad:-pad] / 255


def test_paddles_are_lines_and_masks_are_lines_dilated_by_the_margin(case):
    settings, margin, geometry = case
    middle = settings.resolution // 2
    window = slice(middle - geometry.half, middle + geometry.half + 1)
    wider = slice(middle - geometry.half - margin, middle + geometry.half + margin + 1)
    for paddle in range(0, len(geometry.angle_P), 23):
        angle = geometry.angle_P[paddle] + (math.pi if paddle >= 360 else 0)
        raster, mask = literal.paddle(settings, margin, (middle, middle), angle)
        np.testing.assert_array_equal(geometry.raster_PSS[paddle] / 255, raster[window, window])
        np.testing.assert_array_equal(geometry.mask_PSS[paddle] / 255, mask[window, window])
        room = 1 - literal.dilate(mask, literal.disc_offsets(margin))[wider, wider]
        np.testing.assert_allclose(geometry.room_PSS[paddle] / 255, room, atol=1e-12)


def random_seeds(settings, geometry, rng, snakes):
    """Random seeds whose head and pivot are in the image, near its border too."""
    seeds = []
    while len(seeds) < snakes:
        degree, tail = int(rng.integers(360)), rng.integers(1, settings.resolution - 1, 2)
        if geometry.seed_fits(degree, tail):
            seeds.append((degree, tail))
    return seeds


def start_of(geometry, attempts):
    """Paddles and flat tails of lists of seeds, both (A, S)."""
    seed_AS = np.array([[degree for degree, _ in seeds] for seeds in attempts])
    tail_AS2 = np.array([[tail for _, tail in seeds] for seeds in attempts])
    return seed_AS, geometry.flat(tail_AS2 + geometry.pad)


def test_growth_follows_the_literal_rules(case):
    settings, margin, geometry = case
    rng = np.random.default_rng(1)
    attempts = [random_seeds(settings, geometry, rng, 2) for _ in range(40)]
    draws_ALST = rng.random((len(attempts), 3, 2, 3))
    seed_AS, tail_AS = start_of(geometry, attempts)
    fields = Fields(geometry, len(attempts))
    successes = 0
    for attempt, seeds in enumerate(attempts):
        fields.reset(geometry.empty_taken, geometry.empty_room)
        grown = grow(fields, seed_AS, tail_AS, draws_ALST, np.array([attempt]))
        expected = literal.grow(
            settings,
            margin,
            literal.bordered(settings),
            [(degree - 180, (int(tail[0]), int(tail[1]))) for degree, tail in seeds],
            draws_ALST[attempt],
        )
        assert (grown is None) == (expected is None)
        if grown is None:
            continue
        successes += 1
        snakes, mask = expected
        for snake, (paddles, starts) in enumerate(
            zip(grown.paddle_SL, grown.start_SL, strict=True)
        ):
            assert geometry.places(starts).tolist() == [list(start) for start, _ in snakes[snake]]
            angles = [angle for _, angle in snakes[snake]]
            np.testing.assert_allclose(geometry.angle_P[paddles], angles, atol=1e-12)
        np.testing.assert_array_equal(inside(geometry, fields.taken[attempt]), mask)
        room = 1 - literal.dilate(mask, literal.disc_offsets(margin))
        np.testing.assert_allclose(inside(geometry, fields.room[attempt]), room, atol=1e-12)
    assert 3 < successes < 37, "the seeds should give both outcomes"


def test_a_block_of_attempts_returns_the_first_that_succeeds_alone(geometries):
    geometry = geometries[SMALL.folder, 1]
    rng = np.random.default_rng(2)
    attempts = [random_seeds(SMALL, geometry, rng, 2) for _ in range(32)]
    seed_AS, tail_AS = start_of(geometry, attempts)
    draws = rng.random((32, 4, 2, 3))
    fields = Fields(geometry, 32)

    def outcome(numbers):
        fields.reset(geometry.empty_taken, geometry.empty_room)
        return grow(fields, seed_AS, tail_AS, draws, np.array(numbers))

    alone = [outcome([number]) for number in range(32)]
    succeeding = [number for number, grown in enumerate(alone) if grown is not None]
    assert len(succeeding) > 1
    assert succeeding[0] > 0
    block = outcome(range(32))
    assert block.attempt == succeeding[0]
    np.testing.assert_array_equal(block.start_SL, alone[succeeding[0]].start_SL)
    np.testing.assert_array_equal(block.paddle_SL, alone[succeeding[0]].paddle_SL)


def test_free_places_of_a_seed(case):
    settings, margin, geometry = case
    rng = np.random.default_rng(3)
    for degree in (0, 17, 90, 211, 359):
        taken = geometry.empty_taken.copy()
        for _ in range(6):
            y, x = rng.integers(0, settings.resolution, 2) + geometry.pad
            taken[y : y + 4, x : x + 3] = rng.integers(0, 256)
        free = np.zeros(taken.size, np.uint8)
        free[geometry.free_tails(taken <= FREE, degree)] = 255
        found = inside(geometry, free.reshape(taken.shape)) == 1
        mask = inside(geometry, taken)
        expected = literal.free_places(settings, margin, mask, degree - 180)
        np.testing.assert_array_equal(found, expected)
        assert 0 < found.sum() < found.size


@pytest.mark.parametrize("radius", [1.5, 2.5, 3.0, 5.0])
@pytest.mark.parametrize("centre", [(20, 17), (0, 0), (1, 30), (31, 2), (29, 31)])
def test_discs_are_drawn_as_on_a_whole_image(centre, radius):
    picture = np.zeros((32, 32), np.float32)
    draw_disc(picture, centre, radius, scale=2)
    np.testing.assert_allclose(picture, literal.disc(32, centre, radius, 2), atol=1e-6)


def test_turns_on_a_free_field_follow_cos_squared():
    settings = settings_for(128, continuity=1.4)
    geometry = Geometry(settings, 2)
    count, seed = 4000, 180 + 37
    fields = Fields(geometry, 1)
    tail = geometry.flat(np.array([[64, 64]]) + geometry.pad)
    rng = np.random.default_rng(4)
    ends = np.zeros(len(geometry.angle_P))
    for draws in rng.random((count, 1, 1, 1, 3)):
        fields.reset(geometry.empty_taken, geometry.empty_room)
        grown = grow(fields, np.array([[seed]]), tail[None], draws, np.arange(1))
        ends[grown.paddle_SL[0, 1]] += 1
    circle = circle_pixels(settings.paddle_length + 2)
    turns = np.angle(np.exp(1j * (np.arctan2(circle[:, 0], circle[:, 1]) - math.radians(37))))
    weights = np.cos(np.minimum(1.4 * np.abs(turns), math.pi / 2)) ** 2
    expected = count * weights / weights.sum()
    observed = ends[360:]
    assert observed.sum() == count
    assert observed[expected < 1e-9].sum() == 0
    likely = expected > 5
    excess = (observed - expected)[likely] ** 2 / expected[likely]
    # Chi-squared: mean = degrees of freedom, standard deviation = sqrt(2 x that).
    freedom = likely.sum() - 1
    assert excess.sum() < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("turn", "continuity", "weight"),
    [(0, 1.8, 1), (30, 1.0, 0.75), (60, 1.0, 0.25), (25, 1.8, 0.5), (50, 1.8, 0), (179, 1.0, 0)],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_weight_of_a_turn(turn, continuity, weight, sign):
    heading = 170  # so that turns wrap around at 180 degrees
    to = np.radians([(heading + sign * turn + 180) % 360 - 180])
    assert turn_weights(math.radians(heading), to, continuity)[0] == pytest.approx(weight)
