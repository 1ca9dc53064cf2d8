"""Write small data for the demos of Text and Retrieval, from texts that are installed with this project.

``text``: paragraphs of documentation in the layout of the IMDB reviews.  ``pos`` are SciPy's, ``neg``
the standard library's; both are English prose, and they differ in their words.  ``retrieval``: pairs
of passages in the layout of the AAN pairs.  Their label is whether both are of one kind: documentation,
Python code, or C++ declarations (PyTorch's).

A document is a source file, and those of validation (in Retrieval) and test are not in training.  The
result depends only on the installed versions.
"""

import ast
import importlib.util
import random
import re
import shutil
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megalodon_tasks.recipes.lra.retrieval.release import FILES

#: The passages of each document, by its name.
Documents = dict[str, list[str]]

SHORTEST, LONGEST = 100, 256
PAIRS = {"train": 6000, "valid": 500, "test": 1000}
_STARS = {"neg": 2, "pos": 9}
_OTHERS = {"test", "tests", "site-packages", "idlelib", "externals", "_lib"}
_PER_DOCUMENT = 40
_SEED = 0


def write_text(out: Path) -> None:
    """Write ``out``/aclImdb: as many paragraphs of each class, in ``train`` and in ``test``."""
    kinds = {
        "neg": read_documents(_standard_library(), "*.py", paragraphs),
        "pos": read_documents(_package("scipy"), "*.py", paragraphs),
    }
    splits = by_split(kinds, {0: "test"})
    for split, passages in splits.items():
        count = min(map(len, passages.values()))
        for kind, texts in passages.items():
            folder = out / "aclImdb" / split / kind
            folder.mkdir(parents=True)
            for number, text in enumerate(texts[:count]):
                (folder / f"{number}_{_STARS[kind]}.txt").write_bytes(text.encode())


def write_retrieval(out: Path, max_bytes: int) -> None:
    """Write the three files of pairs into ``out``, half of each label.

    ``max_bytes``: how much of each printed text the preparation reads.  No two passages are the same in
    that, apart from the quotation mark at its start.
    """
    kinds = {
        "prose": read_documents(_standard_library(), "*.py", paragraphs),
        "python": read_documents(_standard_library(), "*.py", python_code),
        "c++": read_documents(_package("torch") / "include" / "c10", "*.h", cpp_code),
    }
    splits = by_split(kinds, {0: "test", 1: "valid"}, lambda text: _printed(text)[2:max_bytes])
    for split, name in FILES.items():
        rng = random.Random(f"{_SEED} {split}")
        with open(out / name, "wb") as stream:
            for number in range(PAIRS[split]):
                stream.write(_pair(splits[split], number % 2, rng))


def _pair(passages: dict[str, list[str]], label: int, rng: random.Random) -> bytes:
    """Make a line of the released form, with texts as Python prints bytes."""
    if label:
        texts = rng.sample(passages[rng.choice(sorted(passages))], 2)
    else:
        texts = [rng.choice(passages[kind]) for kind in rng.sample(sorted(passages), 2)]
    first, second = map(_printed, texts)
    numbers = [f"{zlib.crc32(text.encode()):08x}" for text in texts]
    return "\t".join([f"{label:.1f}", *numbers, first, second]).encode() + b"\n"


def _printed(text: str) -> str:
    return repr(text.encode())


def by_split(
    kinds: dict[str, Documents],
    split_of: dict[int, str],
    part_read: Callable[[str], str] = str,
) -> dict[str, dict[str, list[str]]]:
    """Sort into split -> kind -> passages, in a random order, none of them twice.

    ``split_of``: which fifth of the documents (0 to 4) goes to which split; the others are for training.
    ``part_read``: what training reads of a passage; two that are the same in it count as one.
    """
    splits: dict[str, dict[str, list[str]]] = {}
    seen: set[str] = set()
    for kind, documents in kinds.items():
        for name, passages in documents.items():
            split = split_of.get(zlib.crc32(name.encode()) % 5, "train")
            for text in passages:
                if (part := part_read(text)) not in seen:
                    seen.add(part)
                    splits.setdefault(split, {}).setdefault(kind, []).append(text)
    for passages in splits.values():
        for texts in passages.values():
            random.Random(_SEED).shuffle(texts)
    return splits


def read_documents(
    root: Path, pattern: str, passages_of: Callable[[str], Iterator[str]]
) -> Documents:
    """Read the passages of every file below ``root``, without tests and foreign packages."""
    documents = {}
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root)
        if not _OTHERS.intersection(name.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            documents[name.as_posix()] = list(passages_of(text))[:_PER_DOCUMENT]
    return documents


def paragraphs(source: str) -> Iterator[str]:
    """Yield paragraphs of prose from the docstrings of a Python file, cut at ``LONGEST`` bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for block in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(block.split())
                prose = re.match("[A-Z][a-z]", text) and text.endswith(".") and "----" not in text
                if prose and text.isascii() and len(text) >= SHORTEST:
                    yield text[:LONGEST]


def python_code(source: str) -> Iterator[str]:
    """Yield passages of a Python file without its docstrings and comments."""
    return _windows(re.sub(r'"""(?s:.*?)"""|#[^\n]*', "", source))


def cpp_code(source: str) -> Iterator[str]:
    """Yield passages of a C++ file without its comments."""
    return _windows(re.sub(r"/\*(?s:.*?)\*/|//[^\n]*", "", source))


def _windows(text: str) -> Iterator[str]:
    """Yield runs of whole lines of ``SHORTEST`` to ``LONGEST`` bytes."""
    window = ""
    for line in text.splitlines(keepends=True):
        if not line.strip():
            continue
        if len(window) + len(line) > LONGEST:
            if len(window) >= SHORTEST and window.isascii():
                yield window
            window = ""
        window += line


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin).parent


WRITERS = {"text": write_text, "retrieval": write_retrieval}


def main(arguments: Sequence[str]) -> None:
    """Write the data of the benchmark that is named first into the folder named second, if it is new.

    A third argument, for Retrieval: how many bytes of a text are read.
    """
    benchmark, out, *sizes = arguments[0], Path(arguments[1]), *map(int, arguments[2:])
    if out.exists():
        print(f"{out}: there already")
        return
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    WRITERS[benchmark](unfinished, *sizes)
    unfinished.rename(out)
    print(f"{out}: written")
