"""Small ImageFolder trees, and image files of all kinds, for the tests of ImageNet."""

from pathlib import Path

import numpy as np
from PIL import Image

from megalodon_tasks.recipes.imagenet.image_tree import ImageTree, index_of

CLASSES = ("n01440764", "n01443537", "n01484850")


def noise(seed: int, width: int = 20, height: int = 16, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_tree(
    root: Path, train: int = 8, val: int = 2, classes: tuple[str, ...] = CLASSES
) -> Path:
    """JPEG files named as ImageNet's; ``train`` and ``val`` images in each class."""
    for number, name in enumerate(classes):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(noise(1000 * number + i + (500 if split == "val" else 0)))
                file = f"{name}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i:08d}.JPEG"
                image.save(folder / file, "JPEG")
    return root


def odd_images(folder: Path) -> dict[str, Path]:
    """One readable file of each kind that is not plain RGB."""
    grey16 = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20) * 200
    rgb, grey = noise(1), noise(2, channels=1)
    rgba = Image.fromarray(np.dstack([rgb, grey]))
    palette = Image.fromarray(rgb).quantize(16)
    images = {
        "grey.jpg": Image.fromarray(grey),
        "cmyk.jpg": Image.fromarray(rgb).convert("CMYK"),
        "palette.png": palette,
        "bits16.png": Image.fromarray(grey16),
        "alpha.png": rgba,
        "grey_alpha.png": rgba.convert("LA"),
        "bilevel.png": Image.fromarray(grey).convert("1"),
        "animated.gif.png": palette,
        "webp.webp": Image.fromarray(rgb),
    }
    paths = {}
    for name, image in images.items():
        paths[name] = folder / name
        image.save(paths[name])
    paths["transparent_palette.png"] = folder / "transparent_palette.png"
    palette.save(paths["transparent_palette.png"], transparency=bytes(range(16)))
    return paths


def damaged_images(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that give no image, each with a part of the reason."""
    whole = folder / "whole.jpg"
    Image.fromarray(noise(3, 200, 200)).save(whole)
    data = whole.read_bytes()
    contents = {
        "empty.jpg": (b"", "cannot be decoded"),
        "truncated.jpg": (data[: len(data) // 2], "cannot be decoded"),
        "head.jpg": (data[:30], "cannot be decoded"),
        "text.png": (b"<html>404 not found</html>", "cannot be decoded"),
        "zeros.jpg": (bytes(1000), "cannot be decoded"),
    }
    found = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        found[name] = (folder / name, reason)
    for name, size in {
        "one_wide.png": (1, 50),
        "one_high.png": (50, 1),
        "thread.png": (2, 400),
    }.items():
        Image.fromarray(noise(4, *size)).save(folder / name)
        found[name] = (folder / name, "too narrow to crop from")
    Image.fromarray(np.ones((9, 9), np.float32)).save(folder / "float.tif")
    found["float.tif"] = (folder / "float.tif", "floating-point values")
    found["missing.jpg"] = (folder / "missing.jpg", "does not exist")
    return found


def build_index(images: Path, out: Path) -> ImageTree:
    """Index the images below ``images`` in ``out``."""
    index_of(images, out).write(out)
    return ImageTree(out)
