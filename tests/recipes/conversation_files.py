"""Small files of conversations, and their preparation."""

import json
from pathlib import Path

from megalodon_tasks.recipes.lm import prepare_instruct

QUESTIONS = ("copy this", "and this too", "why", "what for, if not for that", "so")


def conversation(*texts: str, system: str = "") -> dict[str, list[dict[str, str]]]:
    """A line of questions and answers in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    before = [{"role": "system", "content": system}] if system else []
    return {"messages": before + said}


def write_conversations(folder: Path, count: int = 12) -> Path:
    """``train.jsonl``, ``valid.jsonl`` and ``test.jsonl`` of one to three turns."""
    folder.mkdir(parents=True)
    for split, lines in {"train": count, "valid": 4, "test": 4}.items():
        with open(folder / f"{split}.jsonl", "w") as stream:
            for number in range(lines):
                asked = [QUESTIONS[(number + turn) % 5] for turn in range(1 + number % 3)]
                texts = [text for question in asked for text in (question, question[:4])]
                system = "be brief" if number % 4 == 3 else ""
                stream.write(json.dumps(conversation(*texts, system=system)) + "\n")
    return folder


def prepare_conversations(folder: Path, *arguments: str) -> Path:
    """Write such files, and prepare them as bytes unless ``arguments`` say otherwise."""
    source = write_conversations(folder / "source")
    return prepare_instruct.main([str(source), str(folder / "data"), *arguments])
