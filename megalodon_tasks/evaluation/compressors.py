"""What general compressors make of the same text, in bits per byte."""

import bz2
import lzma
from collections.abc import Callable

_XZ = 9 | lzma.PRESET_EXTREME


def _bz2(data: bytes) -> int:
    return len(bz2.compress(data, 9))


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=_XZ))


COMPRESSORS: dict[str, Callable[[bytes], int]] = {"bz2 -9": _bz2, "xz -9e": _xz}


def bits_per_byte(data: bytes, seen: bytes) -> dict[str, float]:
    """Of ``data`` alone, and of ``data`` behind ``seen`` (the increase that it causes)."""
    result = {}
    for name, size in COMPRESSORS.items():
        result[name] = 8 * size(data) / len(data)
        result[f"{name} after the training split"] = (
            8 * (size(seen + data) - size(seen)) / len(data)
        )
    return result
