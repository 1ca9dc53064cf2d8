"""Ways in which a file can be wrong."""

import ctypes
import itertools
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

SPARSE_BYTES = 10 << 30
BOMB_BYTES = 2 << 30  # of each of two records
BOMB = Path()  # where write_bomb wrote it
IMAGES = (".png", ".jpg", ".jpeg")


def cut(path: Path) -> None:
    """Leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Leave nothing."""
    os.truncate(path, 0)


def zeroed(path: Path) -> None:
    """Put zeros in place of all bytes, as some file systems do after a crash."""
    path.write_bytes(bytes(path.stat().st_size))


def noise(path: Path) -> None:
    """Put other bytes in place of all."""
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def page(path: Path) -> None:
    """Put the page of a failed download in its place."""
    path.write_text("<html><head><title>404 Not Found</title></head></html>\n")


def picture(path: Path) -> None:
    """Put a file of another type in its place."""
    _write_png(path, 1, itertools.repeat(b"\0\0", 1))


def fifo(path: Path) -> None:
    """Put a pipe in its place, into which nobody writes."""
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    """Put a symbolic link to itself in its place."""
    path.unlink()
    path.symlink_to(path.name)


def missing(path: Path) -> None:
    """Remove it."""
    path.unlink()


def unreadable(path: Path) -> None:
    """Take away the permission to read it, from the superuser too."""
    path.chmod(0)
    _drop_capabilities()


def sparse(path: Path) -> None:
    """Let it go on with 10 GB of zeros, which take no room on the disk."""
    os.truncate(path, SPARSE_BYTES)


def bomb(path: Path) -> None:
    """Put a small archive in its place, or a small picture, that unpacks to gigabytes."""
    if path.suffix.lower() in IMAGES:
        side = 30_000
        _write_png(path, side, itertools.repeat(bytes(1 + side // 8), side))
    else:
        shutil.copyfile(BOMB, path)


def write_bomb(path: Path) -> None:
    """Write an archive with records named as in a checkpoint and in the archive of enwik8."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("archive/data.pkl", "enwik8"):
            with archive.open(name, "w", force_zip64=True) as stream:
                for _ in range(BOMB_BYTES >> 24):
                    stream.write(bytes(1 << 24))


DAMAGES: dict[str, Callable[[Path], None]] = {
    f.__name__: f
    for f in (
        cut, empty, zeroed, noise, page, picture, fifo, folder, loop, missing, unreadable, sparse, bomb,
    )
}  # fmt: skip


def _write_png(path: Path, side: int, rows) -> None:
    """Write a square black-and-white picture row by row."""
    squeeze = zlib.compressobj(1)
    data = b"".join(map(squeeze.compress, rows)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    with open(path, "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            check = struct.pack(">I", zlib.crc32(kind + body))
            stream.write(struct.pack(">I", len(body)) + kind + body + check)


def _drop_capabilities() -> None:
    """Give up what lets the superuser read any file (capset(2), version 3 of its structures)."""
    header = struct.pack("Ii", 0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")
