"""English text that comes with Python, as text files: the help topics of ``pydoc_data``.

Some eighty documents of 200 bytes to 60 kB, in ``OUT/{train,validation,test}`` as PG-19 has its books,
or with ``--words`` in ``OUT/wiki.{train,valid,test}.tokens`` as WikiText-103 has its articles.  Every
tenth by size goes to the test split and another to the validation split: both have long and short ones.
The text depends on the version of Python.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

from megalodon_tasks.files import atomic_file

EVERY = 10
TEST, VALIDATION = 2, 7  # rank by size modulo EVERY
_WORD = re.compile(r"\w+|[^\w\s]")


def splits() -> dict[str, list[tuple[str, str]]]:
    """Return name and text of the topics of each split, by decreasing size."""
    result: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    ranked = sorted(topics.topics.items(), key=lambda item: (-len(item[1]), item[0]))
    for rank, topic in enumerate(ranked):
        split = {TEST: "test", VALIDATION: "validation"}.get(rank % EVERY, "train")
        result[split].append(topic)
    return result


def write_documents(out: Path) -> None:
    """Write a file per topic."""
    for split, documents in splits().items():
        for name, text in documents:
            _write(out / split / f"{name}.txt", text)


def write_words(out: Path) -> None:
    """Write a file per split: titled articles of words and signs between spaces."""
    for split, documents in splits().items():
        name = {"validation": "valid"}.get(split, split)
        _write(out / f"wiki.{name}.tokens", "".join(_article(*topic) for topic in documents))


def _article(name: str, text: str) -> str:
    return "".join(f"{line}\n" for line in (" ", f" = {name} = ", " ", *_lines(text)))


def _lines(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        words = _WORD.findall(paragraph)
        yield f" {' '.join(words)} " if words else " "


def _write(path: Path, text: str) -> None:
    data = text.encode("utf-8")
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(data)


def main(arguments: Sequence[str]) -> None:
    """Write the files into the folder that is given, in the form of WikiText-103 with ``--words``."""
    out, *options = arguments
    (write_words if "--words" in options else write_documents)(Path(out))
    counts = ", ".join(f"{split} {len(documents)}" for split, documents in splits().items())
    print(f"{out}: help topics of Python: {counts}")
