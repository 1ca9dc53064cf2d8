"""Prepare Speech Commands: from the wav files of its release, or from Mega's tensors.

    megalodon prepare speech/sc_raw SOURCE OUT
    ... --words 35 --splits official --lengths fit

SOURCE is ``speech_commands_v0.02`` or Mega's ``speech_commands`` (or a folder above one of them), OUT
the data folder of the task ``speech_commands``.  Clips are stored as the 16-bit samples that they are,
with the mean and deviation of all training samples.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalodon_tasks.data import preparing
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.option_types import real, whole
from megalodon_tasks.recipes.speech import speech_commands
from megalodon_tasks.recipes.speech.clips import ClipForm
from megalodon_tasks.recipes.speech.mega_speech import MegaTensors, find_tensors
from megalodon_tasks.recipes.speech.speech_commands import SAMPLE_RATE, SPLITS, WORDS
from megalodon_tasks.recipes.speech.wav_clips import WavClips

BENCHMARK = "sc_raw"
SPLIT_RULES = {
    "stratified": "70/15/15 % of the clips of each word, with S4's seeds",
    "official": "the release's lists",
}
LENGTH_RULES = ("exact", "fit")
# The ten words in the literature: clips of exactly a second, split 70 / 15 / 15.
LITERATURE = {"train": 24_482, "valid": 5_246, "test": 5_247}

_TITLE = "Speech Commands"


@dataclass(frozen=True)
class Options:
    """How to prepare clips.

    words: 10 or 35.  splits, lengths: one of ``SPLIT_RULES`` and ``LENGTH_RULES``, for wav files.
    sample_rate and seconds: of the prepared clips.
    """

    words: int = 10
    splits: str = "stratified"
    lengths: str = "exact"
    sample_rate: int = SAMPLE_RATE
    seconds: float = 1.0

    @property
    def form(self) -> ClipForm:
        """Rate and length of the prepared clips."""
        return ClipForm(self.sample_rate, round(self.sample_rate * self.seconds))

    @property
    def as_published(self) -> bool:
        """Whether the counts should be those of the literature."""
        return self == Options()


def prepare(
    source: Path,
    out: Path,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
    workers: int = 1,
    rejects: Rejects | None = None,
) -> bool:
    """Check and prepare the clips; return False if ``out`` already holds them, from the same files.

    Where there are both wav files and processed tensors, the former are taken.  Raises ``ValueError``
    for bad files and leaves ``out`` as it was then.
    """
    rejects = Rejects() if rejects is None else rejects
    folder = speech_commands.find_release(source, WORDS[options.words])
    if folder is not None:
        preparation = _from_wav(folder, options, workers, rejects)
    else:
        preparation = _from_mega(source, options, rejects)
    return preparation.write(out)


def _spec(
    options: Options, column: ColumnSpec, origin: str, split_rule: str, **settings: Any
) -> DatasetSpec:
    literature = asdict(Options())
    return DatasetSpec(
        benchmark=BENCHMARK,
        kind="waveform",
        columns={"inputs": column},
        classes=WORDS[options.words],
        source={
            "origin": origin,
            "split_rule": split_rule,
            "settings": settings | {"words": options.words},
            "published": {
                "settings": {name: value for name, value in literature.items() if name in settings}
                | {"words": Options.words},
                "counts": {"items": LITERATURE},
            },
        },
    )


def _from_wav(
    folder: Path, options: Options, workers: int, rejects: Rejects
) -> preparing.Preparation:
    spec = _spec(
        options,
        ColumnSpec("int16", options.form.samples),
        origin_of(folder, "release"),
        SPLIT_RULES[options.splits],
        form="wav",
        splits=options.splits,
        lengths=options.lengths,
        sample_rate=options.sample_rate,
        seconds=options.seconds,
    )
    clips = WavClips(
        folder,
        WORDS[options.words],
        options.form,
        rejects,
        workers=workers,
        fit=options.lengths == "fit",
        official=options.splits == "official",
    )
    return preparing.Preparation(
        _TITLE,
        spec,
        speech_commands.origins_of(folder, clips.found, clips.official),
        {name: functools.partial(clips.items, name) for name in SPLITS},
        rejects,
        clips.complete,
        total=sum(clip.path.stat().st_size for clip in clips.found),
    )


def _from_mega(source: Path, options: Options, rejects: Rejects) -> preparing.Preparation:
    origins = find_tensors(source, options.words)
    if origins is None:
        raise speech_commands.no_clips(source)
    if options != Options(words=options.words):
        raise ValueError(
            f"{origins['train_X'].paths[0].parent} holds processed tensors, whose splits and form are "
            "settled; leave --splits, --lengths, --sample-rate and --seconds out"
        )
    tensors = MegaTensors(origins, options.words, rejects)
    spec = _spec(
        options,
        ColumnSpec("float32", tensors.samples),
        "mega",
        "the files",
        form="mega",
        sample_rate=SAMPLE_RATE,
    )
    splits = {name: functools.partial(tensors.items, name) for name in SPLITS}
    return preparing.Preparation(_TITLE, spec, origins, splits, rejects, tensors.complete)


def report(dataset: PreparedDataset, options: Options) -> list[str]:
    """Return lines that say what was prepared, how it differs from the literature, and its scale."""
    spec = dataset.spec
    expected = LITERATURE if options.as_published else {}
    lines = preparing.describe_splits(dataset, "clips", expected)
    scale, wav = spec.scale, spec.source["settings"]["form"] == "wav"
    if other := spec.source.get("other_lengths"):
        done = "were cut, or filled up with zeros" if options.lengths == "fit" else "were left out"
        samples = spec.columns["inputs"].length
        lines.append(
            f"{len(other)} clips have not {samples} samples and {done} (named in manifest.json)"
        )
    unit = "amplitude" if wav else "value"
    lines.append(
        f"{unit} of all training clips: mean {scale.mean:.6g}, deviation {scale.std:.6g} "
        "(task.normalisation=global)"
    )
    if not wav and not 0.9 < scale.std < 1.1:
        lines.append(
            f"the tensors' own deviation is {scale.std:.3g} where standardised ones have 1: their audio "
            "was divided by 2^15 twice (see the README); training takes them as they are, as the "
            "published runs did, and task.normalisation=global makes up for it"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = preparing.command_line(
        "speech/sc_raw",
        "Check Speech Commands and bring it into the form that the task speech_commands reads.",
        "folder speech_commands_v0.02 of the release, or Mega's speech_commands, or one above",
    )
    add = parser.add_argument
    add("--words", type=int, choices=tuple(WORDS), default=10, help="default: %(default)s")
    add(
        "--splits",
        choices=tuple(SPLIT_RULES),
        default="stratified",
        help="70/15/15 %% of all clips, or the release's lists (default: %(default)s)",
    )
    add(
        "--lengths",
        choices=LENGTH_RULES,
        default="exact",
        help="leave out clips of another length than --seconds, or cut them and fill them up with zeros "
        "(default: %(default)s)",
    )
    add(
        "--sample-rate",
        type=whole(1),
        default=SAMPLE_RATE,
        metavar="HZ",
        help="of the prepared clips; files of other rates are resampled (default: %(default)s)",
    )
    add(
        "--seconds", type=real(0, 3600), default=1.0, help="length of a clip (default: %(default)s)"
    )
    preparing.add_workers_option(parser)
    preparing.add_rejects_options(parser)
    options = parser.parse_args(arguments)
    names = ("words", "splits", "lengths", "sample_rate", "seconds")
    choices = Options(**{name: getattr(options, name) for name in names})

    def run() -> bool:
        rejects = preparing.rejects_of(options)
        return prepare(
            options.source, options.out, choices, workers=options.workers, rejects=rejects
        )

    return preparing.run(parser, options, run, functools.partial(report, options=choices))
