"""The rules of growing Pathfinder snakes, read aloud: whole images of floats, one attempt at a time.

Slow, and written without any of the tables of the generator, so that its shortcuts can be compared
with it.  Places are (y, x), angles radians; whole pixels are taken after rounding to nine decimals.
"""

import math

import numpy as np
from PIL import Image, ImageDraw


def dilate(image, offsets):
    """Maximum over a pixel and those at all offsets from it; nothing comes from outside."""
    height, width = image.shape
    reach = max(abs(part) for offset in [(0, 0), *offsets] for part in offset)
    padded, result = np.pad(image, reach), image
    for dy, dx in offsets:
        shifted = padded[reach + dy :, reach + dx :][:height, :width]
        result = np.maximum(result, shifted)
    return result


def disc_offsets(radius):
    reach = range(-radius, radius + 1)
    return [(dy, dx) for dy in reach for dx in reach if dy * dy + dx * dx <= radius * radius]


def advance(place, angle, length):
    """A step from a place, both coordinates rounded up."""
    y = place[0] + length * math.sin(angle)
    x = place[1] + length * math.cos(angle)
    return math.ceil(round(y, 9)), math.ceil(round(x, 9))


def lanczos(image, size):
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) / 255


def paddle(settings, margin, start, angle):
    """Raster and mask of a line from ``start`` along ``angle``, on whole images, 0 to 1."""
    reach = settings.paddle_length + math.ceil(settings.paddle_thickness) + margin
    scale = settings.antialias_scale
    side, middle = 2 * reach * scale + 1, reach * scale
    blown = Image.new("L", (side, side))
    y, x = advance((middle, middle), angle, settings.paddle_length * scale)
    thickness = round(settings.paddle_thickness * scale)
    ImageDraw.Draw(blown).line([(middle, middle), (x, y)], fill=255, width=thickness)
    line = np.array(blown)
    pictures = []
    for small in (line, dilate(line, disc_offsets(margin * scale))):
        whole = np.zeros((settings.resolution, settings.resolution))
        for (dy, dx), value in np.ndenumerate(lanczos(small, (2 * reach + 1, 2 * reach + 1))):
            y, x = start[0] + dy - reach, start[1] + dx - reach
            if 0 <= y < settings.resolution and 0 <= x < settings.resolution:
                whole[y, x] = value
        pictures.append(whole)
    return pictures


def bordered(settings):
    """Occupancy of an image with nothing but its border."""
    mask = np.ones((settings.resolution, settings.resolution))
    mask[settings.padding : -settings.padding, settings.padding : -settings.padding] = 0
    return mask


def options(settings, margin, pivot, angle, mask):
    """Possible ends, their directions, and the weight of each."""
    radius, size = settings.paddle_length + margin, settings.resolution
    ends = set()
    for degrees in np.arange(0, 360, 360 / (2 * math.pi * radius)):
        y = pivot[0] + radius * math.sin(math.radians(degrees))
        x = pivot[1] + radius * math.cos(math.radians(degrees))
        end = math.floor(round(y, 9)), math.floor(round(x, 9))
        if 0 <= end[0] < size and 0 <= end[1] < size:
            ends.add(end)
    dilated = dilate(mask, disc_offsets(margin))
    found = []
    for end in sorted(ends):
        direction = math.atan2(end[0] - pivot[0], end[1] - pivot[1])
        turn = min(abs(direction - angle), 2 * math.pi - abs(direction - angle))
        weight = math.cos(min(settings.continuity * turn, math.pi / 2)) ** 2
        found.append((end, direction, (1 - dilated[end]) * weight))
    return found


def grow(settings, margin, mask, seeds, draws):
    """Snakes as lists of (start, direction), and the occupancy at the end; None at a dead end.

    seeds: [(degree, tail)].   draws: [step][snake][try] uniform.
    """
    mask = mask.copy()
    snakes, pivots, latest = [], [], []
    for degree, tail in seeds:
        angle = math.radians(degree)
        head = advance(tail, angle, settings.paddle_length)
        pivots.append(advance(head, angle + math.pi, settings.paddle_length + margin))
        snakes.append([(tail, angle)])
        latest.append(paddle(settings, margin, tail, angle)[1])
    for step in draws:
        for snake, tries in enumerate(step):
            angle = snakes[snake][-1][1]
            pivot = advance(pivots[snake], angle, settings.paddle_length + 2 * margin)
            found = options(settings, margin, pivot, angle, mask)
            total = sum(weight for _, _, weight in found)
            if total < 1e-4:
                return None
            for draw in tries:
                below = np.cumsum([weight for _, _, weight in found]) <= draw * total
                end, direction, _ = found[int(below.sum())]
                new = paddle(settings, margin, end, direction + math.pi)[1]
                if round(float((mask + new).max()), 9) < 1.8:
                    break
            else:
                return None
            mask = np.maximum(mask, latest[snake])
            latest[snake], pivots[snake] = new, pivot
            snakes[snake].append((end, direction))
    return snakes, np.maximum(mask, np.max(latest, axis=0))


def free_places(settings, margin, mask, degree):
    """Tails where neither they nor the pixels that a seed covers fully have more than 0.3."""
    middle = settings.resolution // 2
    shape = paddle(settings, margin, (middle, middle), math.radians(degree))[1]
    offsets = [(y - middle, x - middle) for y, x in np.argwhere(shape == 1)]
    return dilate(mask, offsets) <= 0.3


def disc(size, centre, radius, scale):
    """A disc drawn on a whole image."""
    y, x = np.mgrid[: size * scale, : size * scale]
    inside = (y - centre[0] * scale) ** 2 + (x - centre[1] * scale) ** 2 <= (radius * scale) ** 2
    return lanczos(inside.astype(np.uint8) * 255, (size, size))
