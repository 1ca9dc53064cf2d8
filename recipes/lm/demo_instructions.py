"""Conversations that are exact: what to do with a word of random letters, in one to three turns.

    copy badge -> badge        first badge -> b        count badge -> 5
    reverse badge -> egdab     last badge -> e         upper badge -> BADGE

A word belongs to one split, by a checksum of it, so no word of the test split occurs in training.
"""

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.data.conversations import ASSISTANT, USER
from megalodon_tasks.files import atomic_file

LETTERS, LENGTHS, TURNS = "abcdefgh", (3, 6), (1, 3)
INSTRUCTIONS = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "count": lambda word: str(len(word)),
    "upper": str.upper,
}
CONVERSATIONS = {"train": 20_000, "valid": 200, "test": 400}
SEED = 1
PARTS = 10  # of the words; one is for validation and one for test


def split_of(word: str) -> str:
    """Return the split that ``word`` belongs to."""
    return {0: "valid", 1: "test"}.get(zlib.crc32(word.encode()) % PARTS, "train")


def draw_word(draw: random.Random, split: str) -> str:
    """Draw a word of ``split``."""
    while True:
        word = "".join(draw.choices(LETTERS, k=draw.randint(*LENGTHS)))
        if split_of(word) == split:
            return word


def draw_conversation(draw: random.Random, split: str) -> list[dict[str, str]]:
    """Draw messages, each question with its answer."""
    messages = []
    for _ in range(draw.randint(*TURNS)):
        word, (name, solve) = draw_word(draw, split), draw.choice([*INSTRUCTIONS.items()])
        messages.append({"role": USER, "content": f"{name} {word}"})
        messages.append({"role": ASSISTANT, "content": solve(word)})
    return messages


def main(arguments: Sequence[str]) -> None:
    """Write ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl`` into a folder."""
    (folder,) = map(Path, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in CONVERSATIONS.items():
        draw = random.Random(f"{SEED} {split}")
        with atomic_file(folder / f"{split}.jsonl", "w") as stream:
            for _ in range(count):
                stream.write(json.dumps({"messages": draw_conversation(draw, split)}) + "\n")
