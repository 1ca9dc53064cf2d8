"""Small data sets in the original layouts of Speech Commands."""

import numpy as np
import soundfile
import torch

from megalodon_tasks.recipes.speech.speech_commands import TEN_WORDS

RATE = 16_000
PER_WORD = 20


def samples(word, number, length=RATE):
    """The 16-bit samples of one clip: loud enough to matter, and no two the same."""
    rng = np.random.default_rng([TEN_WORDS.index(word) if word in TEN_WORDS else 99, number])
    return rng.integers(-8000, 8000, length, dtype=np.int16)


def clip_name(word, number):
    return f"{word}/{number:08x}_nohash_0.wav"


def write_clip(path, values, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, rate, subtype=subtype)


def write_release(folder, words=TEN_WORDS, per_word=PER_WORD, length=RATE):
    """The layout of speech_commands_v0.02: 14 / 3 / 3 clips a word by the lists."""
    for word in words:
        for number in range(per_word):
            write_clip(folder / clip_name(word, number), samples(word, number, length))
    write_clip(folder / "_background_noise_" / "pink_noise.wav", np.zeros(50_000, np.int16))
    for name, numbers in (("validation", (14, 15, 16)), ("testing", (17, 18, 19))):
        lines = [f"{clip_name(word, number)}\n" for word in words for number in numbers]
        # as there, words that nobody asks for
        other = "nine/0a_nohash_0.wav" if name == "testing" else "bed/0b_nohash_0.wav"
        lines += [] if other.split("/")[0] in words else [f"{other}\n"]
        (folder / f"{name}_list.txt").write_text("".join(lines))
    return folder


def write_tensors(folder, scale=1.0, samples=50, counts=(40, 10, 10)):
    """Mega's processed files; returns {file name: tensor}."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        values = torch.randn(count, 1, samples, generator=generator) * scale
        tensors[f"{split}_X"], tensors[f"{split}_y"] = values, torch.arange(count) % 10
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return tensors
