"""Checkpoints and corpora of small language models, without training."""

from pathlib import Path

import torch

from megalodon_tasks.evaluation.checkpoint import untrained_checkpoint
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.recipes.lm import prepare_text
from tests.models.lm_cases import make_lm

CHUNK = 16
LENGTHS = {"train": (300, 200), "validation": (90,), "test": (150, 40, 500)}
TEXT = "Über the hill and far away, the horse\nran on. " * 40


def write_text(folder: Path) -> Path:
    """Documents of these lengths, in characters, in the folders of PG-19."""
    for split, lengths in LENGTHS.items():
        (folder / split).mkdir(parents=True)
        for number, length in enumerate(lengths):
            (folder / split / f"{number}.txt").write_text(TEXT[number : number + length])
    return folder


def write_corpus(folder: Path, *arguments: str) -> Path:
    """A corpus of bytes unless the arguments of ``prepare_text`` say otherwise."""
    source = write_text(folder / "text")
    prepare_text.main([str(source), str(folder / "data"), "--workers", "1", *arguments])
    return folder / "data"


def write_checkpoint(path: Path, data: Path, vocab_size: int = 260, **changes: object) -> CausalLM:
    """Save a random model as a checkpoint that fairseq loads."""
    model = make_lm(vocab_size, **{"chunk_size": CHUNK} | changes).float()
    torch.save(untrained_checkpoint(model, data), path)
    return model
