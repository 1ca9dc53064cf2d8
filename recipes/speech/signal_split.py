"""A prepared split as the model's input: normalised, and at the sampling rate of the settings."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchaudio.transforms import Resample

from megalodon_tasks.data.sequences import ColumnSpec, PreparedSplit

#: From stored samples to the model's input, (L,) float32.
Normalise = Callable[[np.ndarray], np.ndarray]
RESAMPLING = ("subsample", "lowpass")

_PORTION = 1024  # clips that are summed together
_EPS = 1e-5  # added to the deviation of a time step, as in S4's and Mega's code


class EverySample:
    """Takes every ``step``-th sample of a signal, without a filter, as S4's code halves the rate."""

    def __init__(self, step: int) -> None:
        self.step = step

    def length(self, samples: int) -> int:
        """Return how many of ``samples`` samples remain."""
        return -(-samples // self.step)

    def __call__(self, samples_L: np.ndarray) -> np.ndarray:
        """Resample (L,) samples to (length(L),)."""
        return samples_L[:: self.step]


class LowPass:
    """Resamples a signal with torchaudio, which removes what the new rate cannot represent."""

    def __init__(self, rate: int, new_rate: int) -> None:
        self.rate, self.new_rate = rate, new_rate
        self._resample = Resample(rate, new_rate)

    def length(self, samples: int) -> int:
        """Return how many samples ``samples`` become."""
        return -(-samples * self.new_rate // self.rate)

    def __call__(self, samples_L: np.ndarray) -> np.ndarray:
        """Resample (L,) float32 samples to (length(L),) float32."""
        return self._resample(torch.from_numpy(samples_L)).numpy()


def resampler(rate: int, new_rate: int, how: str) -> EverySample | LowPass:
    """Make what brings a signal from ``rate`` to ``new_rate`` samples a second.

    Raises ``ValueError`` for a ``how`` that is not in ``RESAMPLING``, a rate above the data's, and one
    that does not divide it where samples are taken as they are.
    """
    if how not in RESAMPLING:
        raise ValueError(f"task.resampling={how!r} is none of {', '.join(RESAMPLING)}")
    if not 1 <= new_rate <= rate:
        raise ValueError(
            f"task.sample_rate={new_rate} must be from 1 to {rate}, the rate of the prepared data"
        )
    if how == "lowpass" and new_rate != rate:
        return LowPass(rate, new_rate)
    if rate % new_rate:
        raise ValueError(
            f"task.sample_rate={new_rate} does not divide {rate}, the rate of the prepared data; choose "
            "a divisor, or task.resampling=lowpass"
        )
    return EverySample(rate // new_rate)


def unchanged(stored_L: np.ndarray) -> np.ndarray:
    """Return stored samples (L,) as float32."""
    return stored_L.astype(np.float32)


class PerStep:
    """Normalises each time step by its own mean and deviation over ``split``, as S4 and Mega do.

    ``divisions`` is how often samples are first divided by full scale.  Their code does it to samples
    that torchaudio has divided already, which with the 1e-5 below leaves about a tenth of unit size.
    """

    def __init__(self, split: PreparedSplit, divisions: int = 1) -> None:
        length = split.spec.columns["inputs"].length
        self.divisor = split.spec.scale.divisor**divisions
        total_L, squares_L = np.zeros(length), np.zeros(length)
        for first in range(0, len(split), _PORTION):
            places = range(first, min(first + _PORTION, len(split)))
            stored_NL = np.stack([split.sequence("inputs", place) for place in places])
            values_NL = stored_NL / self.divisor
            total_L += values_NL.sum(axis=0)
            squares_L += np.square(values_NL).sum(axis=0)
        count = len(split)
        mean_L = total_L / count
        # the deviation of a sample, as torch computes it
        variance_L = np.maximum(squares_L - count * mean_L**2, 0.0) / max(count - 1, 1)
        self.mean_L = mean_L.astype(np.float32)
        self.factor_L = (1 / (np.sqrt(variance_L) + _EPS)).astype(np.float32)

    def __call__(self, stored_L: np.ndarray) -> np.ndarray:
        """Normalise stored samples (L,) to (L,) float32."""
        values_L = stored_L.astype(np.float32) / np.float32(self.divisor)
        return (values_L - self.mean_L) * self.factor_L


class SignalSplit(PreparedSplit):
    """A split whose sequences go through ``normalise`` and then ``resample``."""

    def __init__(
        self, split: PreparedSplit, normalise: Normalise, resample: EverySample | LowPass
    ) -> None:
        columns = {
            name: ColumnSpec("float32", resample.length(column.length))
            for name, column in split.spec.columns.items()
        }
        spec = replace(split.spec, columns=columns, scale=None)
        super().__init__(split.folder, split.name, spec, split.info)
        self.split, self.normalise, self.resample = split, normalise, resample

    def __getstate__(self) -> dict[str, Any]:
        mine = {name: self.__dict__[name] for name in ("split", "normalise", "resample")}
        return super().__getstate__() | mine

    def sequence(self, column: str, index: int) -> np.ndarray:
        """Return the input of item ``index``, 1-D float32."""
        return self.resample(self.normalise(self.split.sequence(column, index)))
