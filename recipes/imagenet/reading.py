"""Reading one image file as 8-bit RGB: what is converted, and what counts as damaged."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from megalodon_tasks.files import size_of

# Far beyond any photograph; a narrower one, resized to a shorter side of 256, would need gigabytes.
SMALLEST_SIDE = 2
LARGEST_ASPECT = 100
# What Pillow's decoders raise for files of all kinds.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class DamagedImage(ValueError):
    """A file that gives no image; the message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


def read_image(path: Path) -> Image.Image:
    """Decode all of the image, in RGB, 8 bits a channel; raise :class:`DamagedImage`."""
    return read_with_mode(path)[0]


def read_with_mode(path: Path) -> tuple[Image.Image, str]:
    """Read the image, and the mode that Pillow found in the file (``L``, ``CMYK`` ...)."""
    try:
        size_of(path)  # raises for what is no file
        with Image.open(path) as image:
            _check_size(path, image.size)
            image.load()
            return to_rgb(image, path), image.mode
    except DamagedImage:
        raise
    except FileNotFoundError:
        raise DamagedImage(path, "does not exist") from None
    except _DECODING_ERRORS as error:
        raise DamagedImage(path, f"cannot be decoded ({error or type(error).__name__})") from None


def _check_size(path: Path, size: tuple[int, int]) -> None:
    short, long = min(size), max(size)
    if short < SMALLEST_SIDE or long > LARGEST_ASPECT * short:
        raise DamagedImage(path, f"has {size[0]} x {size[1]} pixels, too narrow to crop from")


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert any mode of Pillow's to RGB.

    Grey is repeated, a palette looked up, CMYK converted as Pillow does (torchvision and timm likewise),
    transparency dropped.  Grey of 16 bits keeps its upper 8; Pillow's ``convert`` would clip almost all
    of it to white.  Raises :class:`DamagedImage` for numbers without a known range.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DamagedImage(path, f"is of mode {image.mode}, with values beyond 16 bits")
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DamagedImage(path, "has floating-point values, whose range is not known")
    if "transparency" in image.info:  # else Pillow warns that it drops it
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
