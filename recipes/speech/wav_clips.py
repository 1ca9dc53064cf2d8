"""The clips of a release, prepared on all cores: all are examined, then read split by split.

Which clips can be used decides on the splits, and those on the scale, so every file is read twice.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.data.sequences import DatasetSpec, Item, ValueScale
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.speech.clips import FULL_SCALE, ClipForm, DamagedClip, read_clip
from megalodon_tasks.recipes.speech.speech_commands import (
    Clip,
    list_clips,
    official_splits,
    stratified_splits,
)

PORTION = 64  # clips that a process reads before it sends them


class Measured(NamedTuple):
    """What reading a clip gave: all its samples, sum and sum of squares of those that are used."""

    samples: int
    total: int = 0
    squares: int = 0
    damage: str = ""


@dataclass
class WavClips:
    """The clips of ``words`` below ``folder``, brought into ``form``.

    ``fit``: cut clips of other lengths or fill them up, instead of leaving them out.  ``official``: take
    the splits of the release's lists.  Damaged files go to ``rejects``.
    """

    folder: Path
    words: Sequence[str]
    form: ClipForm
    rejects: Rejects
    workers: int = 1
    fit: bool = False
    official: bool = False
    found: list[Clip] = field(init=False)
    splits: dict[str, list[Clip]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.found = list_clips(self.folder, self.words, self.rejects)

    def complete(self, spec: DatasetSpec, inside: Path) -> DatasetSpec:
        """Examine every clip, decide on the splits, and add the scale of the training clips to ``spec``.

        Clips of other lengths are named in ``source["other_lengths"]``, with their samples.  Raises
        ``ValueError`` if no clip is left, and as the functions that split do.
        """
        measured = self._look_at_all()
        other = {n: one.samples for n, one in measured.items() if one.samples != self.form.samples}
        usable = [c for c in self.found if c.name in measured and (self.fit or c.name not in other)]
        try:
            self.splits = self._divide(usable)
        except ValueError as error:
            raise self.rejects.explain(error) from None
        scale = _scale([measured[clip.name] for clip in self.splits["train"]], self.form)
        return replace(spec, scale=scale, source={**spec.source, "other_lengths": other})

    def _divide(self, usable: Sequence[Clip]) -> dict[str, list[Clip]]:
        if not usable:
            raise ValueError(
                f"{self.folder} has no clip of {self.form.samples} samples at {self.form.rate} Hz; "
                "take --lengths fit for clips of other lengths"
            )
        if self.official:
            return official_splits(self.folder, self.found, usable)
        return stratified_splits(usable)

    def items(self, split: str, first: int, on_bytes: OnBytes) -> Iterator[Item]:
        """Yield label and samples of each clip of one split, once ``complete`` has decided on them."""
        chosen = self.splits[split]
        on_bytes(sum(clip.path.stat().st_size for clip in chosen[:first]))
        read = functools.partial(_read, self.form)
        samples = map_in_order(read, chosen[first:], self.workers, PORTION)
        for clip, samples_L in zip(chosen[first:], samples, strict=True):
            on_bytes(clip.path.stat().st_size)
            yield clip.label, {"inputs": samples_L}

    def _look_at_all(self) -> dict[str, Measured]:
        measured: dict[str, Measured] = {}
        bar = progress_bar(total=len(self.found), label="looking at", unit="clip")
        look = functools.partial(_look, self.form)
        with bar:
            looks = map_in_order(look, self.found, self.workers, PORTION)
            for clip, one in zip(self.found, looks, strict=True):
                bar.update()
                if one.damage:
                    self.rejects.add(clip.path, one.damage)
                else:
                    measured[clip.name] = one
        return measured


def _look(form: ClipForm, clip: Clip) -> Measured:
    try:
        samples_L = read_clip(clip.path, form.rate)
    except DamagedClip as error:
        return Measured(0, damage=error.reason)
    used_L = samples_L[: form.samples].astype(np.int64)
    return Measured(len(samples_L), int(used_L.sum()), int(used_L @ used_L))


def _read(form: ClipForm, clip: Clip) -> np.ndarray:
    try:
        return form.fitted(read_clip(clip.path, form.rate))
    except DamagedClip as error:
        raise ValueError(
            f"{clip.path} {error.reason}, which it was not a moment ago: do not change the files while "
            "they are prepared"
        ) from None


def _scale(clips: Sequence[Measured], form: ClipForm) -> ValueScale:
    """Return mean and deviation of all samples, exact up to the last division; full scale is 1."""
    count = len(clips) * form.samples
    total, squares = sum(one.total for one in clips), sum(one.squares for one in clips)
    # over the common denominator count^2, in whole numbers
    spread = squares * count - total**2
    if spread == 0:
        raise ValueError(
            f"the {len(clips)} training clips are silent: there is nothing to learn from them"
        )
    return ValueScale(
        divisor=float(FULL_SCALE),
        mean=total / count / FULL_SCALE,
        std=math.sqrt(spread) / count / FULL_SCALE,
    )
