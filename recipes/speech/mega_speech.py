"""Mega's processed tensors of Speech Commands, which S4's code writes too.

    processed_data/raw/{train,val,test}_X.pt     float, (clips, 1, samples)
    processed_data/raw/{train,val,test}_y.pt     int64, (clips,)

(``raw_all_classes`` for 35 words.)  Values are standardised already, each time step by its own mean and
deviation.  The files are mapped into memory and read clip by clip.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megalodon_tasks.data.finding import find_files, folders_named
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import DatasetSpec, Item, ValueScale
from megalodon_tasks.data.sources import Origin, Rejects

FILE_NAMES = {"train": "train", "valid": "val", "test": "test"}

_FOLDERS = {10: "raw", 35: "raw_all_classes"}
_PORTION = 512  # clips that are read together


def find_tensors(source: Path, words: int) -> dict[str, Origin] | None:
    """Find the six files below ``source``, as ``train_X``, ``train_y`` ...; None if there is none.

    Raises ``ValueError`` if only some of them are there.
    """
    files = {f"{s}_{part}": f"{name}_{part}.pt" for s, name in FILE_NAMES.items() for part in "Xy"}
    folders = folders_named(source, (_FOLDERS[words],))
    found = find_files(folders, files, "copy the folder of processed data again")
    return None if found is None else {key: Origin.of_file(path) for key, path in found.items()}


class MegaTensors:
    """The clips of each split.  A clip with a NaN or an infinity goes to ``rejects``.

    Raises ``ValueError``, naming the file, for one that is damaged or holds other tensors.
    """

    def __init__(self, origins: dict[str, Origin], classes: int, rejects: Rejects) -> None:
        self.rejects = rejects
        self._paths = {key: origin.paths[0] for key, origin in origins.items()}
        self.clips = {split: self._clips(split) for split in FILE_NAMES}
        self.labels = {split: self._labels(split, classes) for split in FILE_NAMES}
        self.samples = self.clips["train"].shape[2]
        for split, clips in self.clips.items():
            if clips.shape[2] != self.samples:
                raise ValueError(
                    f"{self._paths[f'{split}_X']} has clips of {clips.shape[2]} samples, "
                    f"{self._paths['train_X'].name} of {self.samples}"
                )

    def _clips(self, split: str) -> torch.Tensor:
        path = self._paths[f"{split}_X"]
        clips = _load(path)
        if not clips.is_floating_point() or clips.dim() != 3 or clips.shape[1] != 1:
            raise ValueError(
                f"{path} holds {clips.dtype} {tuple(clips.shape)}, expected floats (clips, 1, samples): "
                "raw clips, neither MFCC features nor clips with dropped samples and their mask"
            )
        return clips

    def _labels(self, split: str, classes: int) -> torch.Tensor:
        path, clips = self._paths[f"{split}_y"], len(self.clips[split])
        labels = _load(path)
        if labels.dtype != torch.int64 or tuple(labels.shape) != (clips,):
            raise ValueError(
                f"{path} holds {labels.dtype} {tuple(labels.shape)}, expected int64 ({clips},), a label "
                "for each clip"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
            )
        return labels

    def complete(self, spec: DatasetSpec, inside: Path) -> DatasetSpec:
        """Add one mean and one deviation for all values of the training clips to ``spec``."""
        count, total, squares = 0, 0.0, 0.0
        for _, values_NL in self._portions("train"):
            values_NL = values_NL[np.isfinite(values_NL).all(axis=1)].astype(np.float64)
            count += values_NL.size
            total += values_NL.sum()
            squares += np.square(values_NL).sum()
        variance = squares / count - (total / count) ** 2 if count else 0.0
        if not variance > 0:
            raise ValueError(f"{self._paths['train_X']} is the same value throughout")
        scale = ValueScale(divisor=1.0, mean=float(total / count), std=float(variance**0.5))
        return replace(spec, scale=scale)

    def items(self, split: str, first: int, on_bytes: OnBytes) -> Iterator[Item | None]:
        """Yield the label and the values (samples,) float32 of the clips from number ``first`` on."""
        path = self._paths[f"{split}_X"]
        share = path.stat().st_size // len(self.clips[split])
        on_bytes(self._paths[f"{split}_y"].stat().st_size + first * share)
        for start, values_NL in self._portions(split, first):
            for place, values_L in enumerate(values_NL, start):
                on_bytes(share)
                if np.isfinite(values_L).all():
                    yield int(self.labels[split][place]), {"inputs": values_L}
                else:
                    self.rejects.add(f"{path}, clip {place}", "holds values that are not finite")
                    yield None

    def _portions(self, split: str, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(first, len(self.clips[split]), _PORTION):
            yield start, self.clips[split][start : start + _PORTION, 0].float().numpy()


def _load(path: Path) -> torch.Tensor:
    """Load a tensor, mapped where the format allows; raise ``ValueError`` if the file holds none."""
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # the format of torch before 1.6
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path} is not a saved tensor ({what}): the copy was cut short, or it is another file"
        ) from None
    if not isinstance(found, torch.Tensor) or not len(found.shape) or not len(found):
        raise ValueError(
            f"{path} holds {type(found).__name__}, expected a tensor with at least one item"
        )
    if found.layout != torch.strided or found.is_complex():
        raise ValueError(
            f"{path} holds a tensor of {found.dtype} and layout {found.layout}, expected a dense one of "
            "real numbers"
        )
    return found.detach()  # one that was saved as a parameter has no numpy()
