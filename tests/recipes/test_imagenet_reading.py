"""One image file: what is converted to RGB, what is damaged, and why."""

import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from megalodon_tasks.recipes.imagenet.reading import DamagedImage, read_image, read_with_mode
from tests.recipes.image_files import damaged_images, noise, odd_images

ODD = [
    "grey.jpg", "cmyk.jpg", "palette.png", "bits16.png", "alpha.png", "grey_alpha.png",
    "bilevel.png", "animated.gif.png", "webp.webp", "transparent_palette.png",
]  # fmt: skip
DAMAGED = [
    "empty.jpg", "truncated.jpg", "head.jpg", "text.png", "zeros.jpg", "one_wide.png",
    "one_high.png", "thread.png", "float.tif", "missing.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_all_kinds_become_rgb_without_a_warning(tmp_path, name):
    path = odd_images(tmp_path)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 16))


def test_values_are_kept(tmp_path):
    paths = odd_images(tmp_path)
    plain = tmp_path / "plain.png"
    Image.fromarray(noise(1)).save(plain)
    assert (np.asarray(read_image(plain)) == noise(1)).all()
    assert (np.asarray(read_image(paths["alpha.png"])) == noise(1)).all()
    looked_up = np.asarray(read_image(paths["palette.png"]))
    assert (looked_up == np.asarray(read_image(paths["transparent_palette.png"]))).all()
    wide = np.arange(16 * 20).reshape(16, 20) * 200
    assert (np.asarray(read_image(paths["bits16.png"])) == (wide // 256)[..., None]).all()


def test_modes_are_reported(tmp_path):
    paths = odd_images(tmp_path)
    modes = {
        name: read_with_mode(paths[name])[1] for name in ("grey.jpg", "cmyk.jpg", "palette.png")
    }
    assert modes == {"grey.jpg": "L", "cmyk.jpg": "CMYK", "palette.png": "P"}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_with_path_and_reason(tmp_path, name):
    path, reason = damaged_images(tmp_path)[name]
    with pytest.raises(DamagedImage, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path} ")
    # it crosses the border of a process
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.reason) == (path, caught.value.reason)


def test_a_bomb_is_damage(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(noise(5, 60, 60)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DamagedImage, match="decompression bomb"):
        read_image(path)
