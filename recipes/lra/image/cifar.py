"""Read CIFAR-10 in the layout of its release for Python.

    cifar-10-batches-py/data_batch_{1..5}, test_batch    10,000 images each, pickled
    cifar-10-batches-py/batches.meta                     names of the classes, pickled

A batch is a dictionary with ``data``, (images, 3072) uint8, the red plane before the green and the
blue one, each row by row, and ``labels``.  The files are pickles, so nothing is built from them but
numbers and arrays: whatever else they name is refused before it is called.
"""

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megalodon_tasks.data.finding import find_files, folders_in
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sources import Origin

SIDE = 32
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"

# What pickled arrays are made of, under the names that different numpy versions write.
_ARRAY_PARTS = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
_ARRAY_MODULES = (
    "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
)  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    """Unpickle arrays, and refuse all else that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of this name; raise ``UnpicklingError`` unless arrays are made of it."""
        if module in _ARRAY_MODULES and name in _ARRAY_PARTS:
            return _ARRAY_PARTS[name]
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def find_batches(source: Path) -> dict[str, Origin] | None:
    """Find the six files in ``source`` or below it by their names; None if there is none.

    Raises ``ValueError`` if only some of them are there.
    """
    files = {name: name for name in (*TRAIN, TEST)}
    found = find_files(folders_in(source), files, "unpack the archive once more")
    return found and {key: Origin.of_file(path) for key, path in found.items()}


def read_batch(origin: Origin, on_bytes: OnBytes) -> tuple[np.ndarray, np.ndarray]:
    """Return grey images (n, 1024) uint8 and classes (n,) int64 of one file.

    Grey is that of PIL (ITU-R 601-2), as in the code of Long Range Arena's followers.  Raises
    ``ValueError`` naming the file where it is cut short, no pickle of a batch, or has other shapes.
    """
    ((path, data),) = origin.contents(on_bytes)
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{path} is no batch of CIFAR-10 ({type(error).__name__}: {error}): the download was cut "
            "short or it is another file; unpack the archive once more"
        ) from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(f"{path}: labels {labels.dtype} {labels.shape}, expected whole numbers")
    expected = (len(labels), 3 * SIDE * SIDE)
    if images.dtype != np.uint8 or images.shape != expected:
        raise ValueError(f"{path}: images {images.dtype} {images.shape}, expected uint8 {expected}")
    if not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(
            f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to {len(CLASSES) - 1}"
        )
    return np.stack([_grey(image) for image in images]), labels.astype(np.int64)


def _grey(planes: np.ndarray) -> np.ndarray:
    colours = planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0)
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L")).reshape(-1)
