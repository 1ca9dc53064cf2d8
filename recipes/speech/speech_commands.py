"""Speech Commands v0.02 (arXiv 1804.03209) in the layout of its release: its words, clips and splits.

<word>/<speaker>_nohash_<n>.wav              16 kHz, mono, 16 bits, up to a second
validation_list.txt, testing_list.txt        <word>/<file>: the official splits
_background_noise_/                          minutes of noise, not read
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from megalodon_tasks.data.finding import folders_in, not_recognised
from megalodon_tasks.data.sources import Origin, Rejects, check_source, listing
from megalodon_tasks.files import read_text

SAMPLE_RATE = 16_000
SPLITS = ("train", "valid", "test")
# In the order of the labels in S4's and Mega's code.
TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ALL_WORDS = (
    "bed", "cat", "down", "five", "forward", "go", "house", "left", "marvin", "no", "on", "right",
    "sheila", "tree", "up", "visual", "yes", "backward", "bird", "dog", "eight", "follow", "four",
    "happy", "learn", "nine", "off", "one", "seven", "six", "stop", "three", "two", "wow", "zero",
)  # fmt: skip
WORDS = {10: TEN_WORDS, 35: ALL_WORDS}
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}

_NAME = "speech_commands_v0.02"


class Clip(NamedTuple):
    """One wav file; ``name`` is ``<word>/<file>`` as the official lists have it."""

    path: Path
    name: str
    label: int


def find_release(source: Path, words: Sequence[str]) -> Path | None:
    """Find the folder of the word folders: ``source`` or one below; None if there is none.

    Raises ``ValueError`` if some of the ``words`` have no folder there, but most have.
    """
    check_source(source, f"the folder {_NAME}, or Mega's speech_commands")
    for folder in folders_in(source):
        missing = [word for word in words if not (folder / word).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(words) / 2:
            raise ValueError(
                f"{folder / missing[0]} is missing, the folder of a word "
                f"({len(missing)} of {len(words)} are: {', '.join(missing)}); unpack the archive again"
            )
    return None


def no_clips(source: Path) -> ValueError:
    """Make the error for a folder that holds neither the release nor processed tensors."""
    return not_recognised(
        source,
        "a folder of each word and processed tensors",
        f"get {_NAME}.tar.gz (Warden, Speech Commands) and unpack it, or take speech_commands of Mega's "
        "processed files",
    )


def list_clips(folder: Path, words: Sequence[str], rejects: Rejects) -> list[Clip]:
    """List every ``*.wav`` of ``words``, word by word and by name, in any order of the file system.

    If two names differ only in case, which many file systems and the official lists ignore, the first is
    taken and the other goes to ``rejects``.  Hidden files are ignored.  Raises ``ValueError`` for a word
    without a clip.
    """
    clips = []
    for label, word in enumerate(words):
        taken: dict[str, str] = {}
        for path in listing(folder / word):
            if path.suffix.lower() != ".wav":
                continue
            first = taken.setdefault(path.name.casefold(), path.name)
            if first != path.name:
                rejects.add(path, f"has the name of {first}, but for capitals")
            else:
                clips.append(Clip(path, f"{word}/{path.name}", label))
        if not taken:
            raise ValueError(f"{folder / word} has no *.wav; unpack the archive again")
    return clips


def origins_of(folder: Path, clips: Iterable[Clip], official: bool) -> dict[str, Origin]:
    """Return the files that the data depends on: the clips of each word, and the official lists.

    Raises ``ValueError`` for a list that is needed and missing.
    """
    words: dict[str, list[Path]] = {}
    for clip in clips:
        words.setdefault(clip.name.split("/")[0], []).append(clip.path)
    origins = {word: Origin(word, paths) for word, paths in words.items()}
    for name in LISTS.values() if official else ():
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, which the official splits need; unpack the archive again, or take "
                "--splits stratified"
            )
        origins[name] = Origin.of_file(path)
    return origins


def stratified_splits(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Split 70 / 15 / 15 % of each word's clips, by the calls and seeds of S4's and Mega's code.

    Theirs starts from the order of an unsorted directory listing, and differs between machines; this
    starts from the order of ``clips``.  Raises ``ValueError`` for a word with too few clips.
    """
    labels = np.asarray([clip.label for clip in clips])
    places = np.arange(len(clips))
    try:
        train, rest = train_test_split(places, train_size=0.7, random_state=0, stratify=labels)
        valid, test = train_test_split(rest, train_size=0.5, random_state=1, stratify=labels[rest])
    except ValueError as error:
        raise ValueError(
            f"{len(clips)} clips of {len(set(labels))} words cannot be split in three: {error}"
        ) from None
    parts = zip(SPLITS, (train, valid, test), strict=True)
    return {name: [clips[place] for place in sorted(chosen)] for name, chosen in parts}


def official_splits(
    folder: Path, found: Iterable[Clip], usable: Sequence[Clip]
) -> dict[str, list[Clip]]:
    """Split by the release's lists: what is in neither is for training.

    ``found`` are all clips of the words that are used, ``usable`` those to assign.  Entries of the other
    words are not used.  Raises ``ValueError`` for an entry of these words without a clip, one that names
    no word, a clip in both lists, and an empty split.
    """
    present = {clip.name.casefold() for clip in found}
    of_words = {name.split("/")[0] for name in present}
    split_of: dict[str, str] = {}
    for split, list_name in LISTS.items():
        for number, name in _entries(folder / list_name):
            word = name.split("/")[0]
            if word not in of_words and word in ALL_WORDS:
                continue
            if name not in present:
                raise ValueError(
                    f"{folder / list_name}, line {number}: {name!r} matches no clip; the clips are not "
                    "complete or the list is of other data: unpack the archive again"
                )
            if split_of.setdefault(name, split) != split:
                raise ValueError(
                    f"{name} is in both {' and '.join(LISTS.values())} of {folder}: validation and test "
                    "must not share a clip"
                )
    splits: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for clip in usable:
        splits[split_of.get(clip.name.casefold(), "train")].append(clip)
    for name, chosen in splits.items():
        if not chosen:
            raise ValueError(
                f"by the lists of {folder} no clip is left for the split {name!r}; copy them again, or "
                "take --splits stratified"
            )
    return splits


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and entry of each line, in small letters, as ``<word>/<file>``.

    A byte order mark, a leading ``./`` and backslashes, which some tools write, are accepted.
    """
    for number, line in enumerate(read_text(path, "utf-8-sig").splitlines(), start=1):
        if name := line.strip().replace("\\", "/").removeprefix("./").casefold():
            yield number, name
