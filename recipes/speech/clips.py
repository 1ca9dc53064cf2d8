"""Reading one wav file as 16-bit samples of a given rate and length.

soundfile reads it (torchaudio's own reader needs torchcodec), channels are averaged, and torchaudio
resamples.  A 16-bit mono file of the same rate comes out bit for bit.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.transforms import Resample

FULL_SCALE = 32_768  # of 16 bits: what stands for an amplitude of 1
_INT16 = np.iinfo(np.int16)
# Programs that write to a pipe do not know the size, and state about the largest there can be.
_UNKNOWN_SIZE = 0x7FFF_0000


class DamagedClip(Exception):
    """A file that cannot be used; ``reason`` completes a sentence that begins with its name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ClipForm:
    """Form of every prepared clip: ``rate`` (samples a second) and ``samples``."""

    rate: int
    samples: int

    def __post_init__(self) -> None:
        for name in ("rate", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of the clips must be at least 1")

    def fitted(self, samples_L: np.ndarray) -> np.ndarray:
        """Cut a longer clip, and pad a shorter one with zeros at its end: (samples,) int16."""
        cut_L = samples_L[: self.samples]
        return np.pad(cut_L, (0, self.samples - len(cut_L)))


def read_clip(path: Path, rate: int) -> np.ndarray:
    """Read all samples of a wav file at ``rate``, (L,) int16.

    Raises :class:`DamagedClip` for a file that is empty, cut short, no audio, unreadable or without
    samples, or that holds a NaN or an infinity.
    """
    try:
        _check_whole(path)
        with soundfile.SoundFile(path) as file:
            found_rate = file.samplerate
            # as floats: integers from a floating-point file would come unscaled
            frames_LC = file.read(dtype="float64", always_2d=True)
    except OSError as error:
        raise DamagedClip(f"cannot be read ({error.strerror or error})") from None
    except soundfile.LibsndfileError as error:
        raise DamagedClip(f"is not audio ({error.error_string.rstrip('.')})") from None
    if not len(frames_LC):
        raise DamagedClip("has no samples")
    if not np.isfinite(frames_LC).all():
        raise DamagedClip("holds samples that are not finite")
    mono_L = frames_LC.mean(axis=1)
    if found_rate != rate:
        mono_L = _resampler(found_rate, rate)(torch.from_numpy(mono_L)).numpy()
    return np.clip(np.rint(mono_L * FULL_SCALE), _INT16.min, _INT16.max).astype(np.int16)


@functools.cache
def _resampler(rate: int, new_rate: int) -> Resample:
    return Resample(rate, new_rate, dtype=torch.float64)


def _check_whole(path: Path) -> None:
    """Compare the size that a RIFF header states with the file's: libsndfile reads what there is."""
    if path.exists() and not path.is_file():
        raise DamagedClip("cannot be read (it is a folder, a pipe or a device)")
    with open(path, "rb") as stream:
        head = stream.read(8)
        size = stream.seek(0, 2)
    if size == 0:
        raise DamagedClip("is empty")
    announced = int.from_bytes(head[4:], "little") + len(head)
    if head[:4] == b"RIFF" and size < announced < _UNKNOWN_SIZE:
        raise DamagedClip(f"is cut short: its header announces {announced} bytes, it has {size}")
