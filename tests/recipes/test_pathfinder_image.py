"""The distribution of Pathfinder images: labels, markers, snakes, overlaps, brightness."""

import math
from dataclasses import replace

import numpy as np
import pytest

from megalodon_tasks.recipes.lra.pathfinder.drawing import PathfinderPainter, stretch
from megalodon_tasks.recipes.lra.pathfinder.generator import image_rng
from megalodon_tasks.recipes.lra.pathfinder.geometry import FREE, OVERLAP
from megalodon_tasks.recipes.lra.pathfinder.settings import settings_for
from tests.recipes import pathfinder_literal as literal

EASY = settings_for(32, "easy")


@pytest.fixture(scope="module")
def painter():
    return PathfinderPainter(EASY)


@pytest.fixture(scope="module")
def images(painter):
    return [painter.paint(image_rng(5, 0, index)) for index in range(300)]


def test_labels_are_balanced_and_markers_sit_on_the_right_snakes(images):
    labels = np.array([image.label for image in images])
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(labels))
    tails_of_first = 0
    for image in images:
        tails = [snake.starts[0].tolist() for snake in image.targets]
        marked = tails.index(image.markers[0].tolist())
        ended = marked if image.label else 1 - marked
        assert image.markers[1].tolist() == image.targets[ended].starts[-1].tolist()
        tails_of_first += marked == 0
    assert abs(tails_of_first / len(images) - 0.5) < 4 * 0.5 / math.sqrt(len(images))


def test_number_and_length_of_snakes(images):
    counts = [len(image.distractors) for image in images]
    assert max(counts) <= EASY.num_distractors
    assert np.mean(counts) > 0.8 * EASY.num_distractors
    for image in images:
        assert [len(snake.paddles) for snake in image.targets] == [6, 6]
        assert {len(snake.paddles) for snake in image.distractors} <= {2}


def test_targets_begin_where_they_should(images):
    turns = []
    for image in images:
        first, second = (snake.starts[0] for snake in image.targets)
        assert ((first >= 2 * EASY.seed_distance) & (first < 32 - 2 * EASY.seed_distance)).all()
        assert abs(math.dist(first, second) - EASY.seed_distance) <= math.sqrt(0.5)
        turns.append(math.atan2(*(second - first)))
    quarters = np.histogram(turns, bins=4, range=(-math.pi, math.pi))[0]
    assert (abs(quarters - len(turns) / 4) < 4 * math.sqrt(len(turns) * 3 / 16)).all()


def test_paths_begin_in_every_direction_where_they_have_room():
    # Long paths in small images do not: positions are rounded up, which is part of the rules, so that
    # those that begin downwards and to the right end in one another or at the border more often.
    painter = PathfinderPainter(settings_for(128, contour_length=2, num_distractors=0))
    images = [painter.paint(image_rng(8, 0, index)) for index in range(240)]
    for number in (0, 1):
        quarters = np.zeros(4, int)
        for image in images:
            angle_P = painter.geometry(image.margin).angle_P
            degrees = np.rint(np.degrees(angle_P[image.targets[number].paddles[0]]))
            quarters[int(degrees) % 360 // 90] += 1
        assert (abs(quarters - len(images) / 4) < 4 * math.sqrt(len(images) * 3 / 16)).all()


def test_hard_images_have_paths_of_fourteen_and_distractors_of_four_paddles():
    settings = settings_for(32)
    painter = PathfinderPainter(settings)
    for index in range(25):
        image = painter.paint(image_rng(9, 0, index))
        assert [len(snake.paddles) for snake in image.targets] == [14, 14]
        assert {len(snake.paddles) for snake in image.distractors} <= {4}
        assert len(image.distractors) <= 5


def whole_masks(painter, image, snake):
    """Masks of a snake's paddles on the padded image, (L, width, width) int."""
    geometry = painter.geometry(image.margin)
    masks = np.zeros((len(snake.paddles), geometry.width, geometry.width), int)
    for mask, paddle, (y, x) in zip(masks, snake.paddles, snake.starts, strict=True):
        y, x = y + geometry.pad - geometry.half, x + geometry.pad - geometry.half
        side = 2 * geometry.half + 1
        mask[y : y + side, x : x + side] = geometry.mask_PSS[paddle]
    return masks[:, geometry.pad : -geometry.pad, geometry.pad : -geometry.pad]


def test_no_paddle_overlaps_what_was_there_before(painter, images):
    border = (literal.bordered(EASY) * 255).astype(int)
    for image in images[:60]:
        first, second = (whole_masks(painter, image, snake) for snake in image.targets)
        for number in range(1, 6):
            # What has joined the field: neighbours do so one paddle later.
            mine, other = first[: number - 1], second[: number - 1]
            assert (np.max([border, *mine, *other], axis=0) + first[number]).max() < OVERLAP
            mine, other = second[: number - 1], first[:number]
            assert (np.max([border, *mine, *other], axis=0) + second[number]).max() < OVERLAP
        taken = np.max([border, *first, *second], axis=0)
        for snake in image.distractors:
            masks = whole_masks(painter, image, snake)
            assert (taken[masks[0] == 255] <= FREE).all()
            for number in range(1, len(masks)):
                before = np.max([taken, *masks[: number - 1]], axis=0)
                assert (before + masks[number]).max() < OVERLAP
            taken = np.max([taken, *masks], axis=0)


def test_pixels_are_the_maximum_of_all_parts_stretched(painter, images):
    for image in images[:20]:
        geometry = painter.geometry(image.margin)
        picture = np.zeros((32, 32))
        bright = [(snake, 1.5) for snake in image.targets]
        bright += [(snake, 2.0) for snake in image.distractors]
        for snake, contrast in bright:
            for paddle, start in zip(snake.paddles, snake.starts, strict=True):
                angle = geometry.angle_P[paddle] + (math.pi if paddle >= 360 else 0)
                raster, _ = literal.paddle(EASY, 1, start.tolist(), angle)
                picture = np.maximum(picture, contrast * raster)
        for centre in image.markers:
            picture = np.maximum(picture, literal.disc(32, centre, 1.5, 2))
        expected = np.floor(picture / picture.max() * 255 + 0.5)
        assert np.abs(image.pixels.astype(int) - expected).max() <= 1


def test_stretch_uses_the_full_range():
    picture = np.array([[-1.0, 0.0], [0.5, 3.0]], np.float32)
    assert stretch(picture).tolist() == [[0, 64], [96, 255]]
    assert stretch(np.full((2, 2), 0.7)).tolist() == [[0, 0], [0, 0]]


def test_every_image_spans_the_full_range(images):
    assert {(int(image.pixels.min()), int(image.pixels.max())) for image in images} == {(0, 255)}


def test_margins_and_contrasts_are_drawn_from_their_lists():
    settings = settings_for(
        64, "easy", margins=(1, 2), snake_contrast=(0.5, 0.9), paddle_contrast=(0.4, 1.0)
    )
    painter = PathfinderPainter(settings)
    images = [painter.paint(image_rng(6, 0, index)) for index in range(40)]
    assert {image.margin for image in images} == {1, 2}
    # Discs have brightness 1, so that the stretched levels of lone parts can be told apart.
    levels = set(np.unique(np.concatenate([image.pixels.ravel() for image in images])).tolist())
    assert {round(255 * level) for level in (0.5 * 0.4, 0.9 * 0.4, 0.5, 0.9)} <= levels


def test_single_paddles_fill_the_gaps():
    settings = replace(EASY, single_paddles=5)
    image = PathfinderPainter(settings).paint(image_rng(7, 0, 0))
    lengths = [len(snake.paddles) for snake in image.distractors]
    assert 0 < lengths.count(1) <= 5
    assert lengths == sorted(lengths, reverse=True)


def test_an_image_does_not_depend_on_those_before_it(painter, images):
    again = PathfinderPainter(EASY)
    for index in (250, 3):
        np.testing.assert_array_equal(
            again.paint(image_rng(5, 0, index)).pixels, images[index].pixels
        )
