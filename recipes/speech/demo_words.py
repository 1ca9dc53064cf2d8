"""Ten words spoken by espeak-ng in many voices, in the layout of Speech Commands: the demo's stand-in.

A voice is an accent and a variant of espeak-ng, and speaks each word at several speeds and pitches.  The
variants of ``validation_list.txt`` and ``testing_list.txt`` are in no other split.  The same version of
espeak-ng writes the same files each time.
"""

import argparse
import functools
import hashlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from megalodon_tasks.data.parallel import map_in_order, usable_cores
from megalodon_tasks.data.preparing import ending_with_messages, progress_bar
from megalodon_tasks.files import atomic_file, sole_writer
from megalodon_tasks.option_types import PROCESSES, whole
from megalodon_tasks.recipes.speech.clips import DamagedClip, read_clip
from megalodon_tasks.recipes.speech.speech_commands import LISTS, SAMPLE_RATE, TEN_WORDS

SPEAKER = "espeak-ng"
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = {
    "train": ("m1", "m2", "m4", "m5", "m7", "f1", "f3", "f4", "klatt", "klatt2", "klatt4", "croak"),
    "valid": ("m6", "f5"),
    "test": ("m3", "f2", "klatt3"),
}
TAKES = {"train": 3, "valid": 2, "test": 3}

_QUIET = 0.01 * 2**15  # below a hundredth of full scale is silence
_LATEST = SAMPLE_RATE // 12  # a word begins at most so many samples into its clip


class Utterance(NamedTuple):
    """One word by one voice, the ``take``-th time."""

    split: str
    word: str
    voice: str
    take: int

    @property
    def name(self) -> str:
        """``<word>/<speaker>_nohash_<take>.wav``, the speaker a number made from the voice."""
        speaker = hashlib.blake2b(self.voice.encode(), digest_size=4).hexdigest()
        return f"{self.word}/{speaker}_nohash_{self.take}.wav"


def utterances() -> list[Utterance]:
    """List all that is spoken."""
    return [
        Utterance(split, word, f"{accent}+{variant}", take)
        for split, variants in VARIANTS.items()
        for word, accent, variant in itertools.product(TEN_WORDS, ACCENTS, variants)
        for take in range(TAKES[split])
    ]


def check_speaker() -> None:
    """Raise ``ValueError`` that says how to install espeak-ng, if it is missing."""
    if shutil.which(SPEAKER) is None:
        raise ValueError(
            f"{SPEAKER}, which speaks the words of the demo, is not on PATH; install it (Debian: "
            f"apt-get install {SPEAKER}; Fedora: dnf install {SPEAKER}; macOS: brew install {SPEAKER})"
        )


def write_words(out: Path, workers: int = 1) -> int:
    """Write the missing clips, and the two lists last; return the number of clips.

    Raises ``ValueError`` if espeak-ng is missing or fails.
    """
    all_words = utterances()
    with sole_writer(out):
        missing = [one for one in all_words if not (out / one.name).exists()]
        if missing:
            check_speaker()
        for word in TEN_WORDS:
            (out / word).mkdir(exist_ok=True)
        spoken = map_in_order(functools.partial(_speak, out), missing, workers)
        bar = progress_bar(spoken, total=len(missing), label="speaking", unit="word")
        for _ in bar:
            pass
        for split, name in LISTS.items():
            with atomic_file(out / name, "w") as stream:
                stream.writelines(f"{one.name}\n" for one in all_words if one.split == split)
    return len(all_words)


def _speak(out: Path, one: Utterance) -> None:
    """Write the clip of one utterance."""
    with tempfile.TemporaryDirectory() as folder:
        samples_L = _spoken(one, Path(folder) / "word.wav")
    with atomic_file(out / one.name) as stream:
        soundfile.write(stream, samples_L, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def _spoken(one: Utterance, file: Path) -> np.ndarray:
    """Return one second of int16 samples in which the word begins soon."""
    seed = int.from_bytes(hashlib.blake2b(one.name.encode(), digest_size=8).digest(), "little")
    random = np.random.default_rng(seed)
    speed, pitch = random.integers(150, 230), random.integers(20, 80)
    settings = ["-v", one.voice, "-s", str(speed), "-p", str(pitch)]
    done = subprocess.run(
        [SPEAKER, *settings, "-w", str(file), one.word], capture_output=True, text=True
    )
    try:
        if done.returncode:
            raise DamagedClip(f"was not written: {done.stderr.strip()}")
        spoken_L = read_clip(file, SAMPLE_RATE)
    except DamagedClip as error:
        raise ValueError(f"{SPEAKER} {' '.join(settings)} {one.word}: its file {error}") from None
    (loud,) = np.nonzero(np.abs(spoken_L.astype(np.int32)) > _QUIET)
    begin = int(random.integers(0, _LATEST))
    word_L = spoken_L[loud[0] : loud[-1] + 1][: SAMPLE_RATE - begin]
    return np.pad(word_L, (begin, SAMPLE_RATE - begin - len(word_L)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="demo_words",
        description="Let espeak-ng speak ten words, in the layout of Speech Commands.",
    )
    parser.add_argument("out", type=Path, help="folder for the words")
    parser.add_argument(
        "--workers", type=whole(1, PROCESSES), default=usable_cores(), help="processes"
    )
    options = parser.parse_args(arguments)
    with ending_with_messages(parser):
        count = write_words(options.out, options.workers)
    print(f"{options.out}: {count} clips of {len(TEN_WORDS)} words")
