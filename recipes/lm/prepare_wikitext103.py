"""Prepare WikiText-103: ``wiki.{train,valid,test}.tokens`` as ``fairseq-preprocess --only-source`` does.

    python -m megalodon_tasks.recipes.lm.prepare_wikitext103 SOURCE OUT

The dictionary and the binarised files are byte for byte those of that command: a word is what stands
between spaces, an end token closes each line and counts as a word.  Beside them ``corpus.json`` says
where the articles begin.  A split that was finished before an interruption is not done again.

Counts to expect (Mega's README and Baevski & Auli, arXiv 1809.10853): 267,744 dictionary entries, and
103,227,021 / 217,646 / 245,569 words with the end tokens.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.tasks.fairseq_task import FairseqTask

from megalodon_tasks.data.corpus import DICTIONARY, Corpus, SplitInfo
from megalodon_tasks.data.corpus_writer import is_current, publish, unfinished_folder
from megalodon_tasks.data.preparing import add_workers_option
from megalodon_tasks.data.progress import progress_bar
from megalodon_tasks.files import atomic_file
from megalodon_tasks.recipes.lm import prepare_text, text_files

NAME = "wikitext103"
FILES = {split: f"wiki.{split}.tokens" for split in ("train", "valid", "test")}
PUBLISHED = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
PUBLISHED_VOCABULARY = 267_744
WORDS_RULE = "words between spaces and one end token a line"
# ` = Title = ` alone between empty lines; sections have more signs
_TITLE = re.compile(r" = (?!= )[^\n]*(?<! =) = ?")


def find_files(source: Path) -> dict[str, Path]:
    """The three files.  Raises ``ValueError`` naming what is missing."""
    for folder in (source, source / "wikitext-103"):
        files = {split: folder / name for split, name in FILES.items()}
        missing = [path for path in files.values() if not path.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise ValueError(f"{missing[0]} is missing beside the other files of WikiText-103")
    raise ValueError(f"{source} holds no {', '.join(FILES.values())}")


def prepare(source: Path, out: Path, workers: int = 1, *, hidden: bool = False) -> bool:
    """Prepare WikiText-103 in ``out``; return False if it is there already, from the same files.

    Raises ``ValueError`` for files that are missing, empty or not UTF-8.
    """
    files = find_files(source)
    settings = {"files": text_files.identity_of({s: [p] for s, p in files.items()})}
    identity = {"name": NAME, "settings": settings}
    if is_current(out, identity):
        return False
    total = 3 * sum(path.stat().st_size for path in files.values())
    bar = progress_bar(
        total=total, label="preparing WikiText-103", unit="B", scale=True, hidden=hidden
    )
    with bar, unfinished_folder(out, identity) as inside:
        infos = {s: _measure(inside, s, p, bar.update) for s, p in files.items()}
        dictionary = _dictionary(inside, files["train"], workers)
        bar.update(total // 3)
        for split, path in files.items():
            _binarise(inside, split, path, dictionary, workers)
            _count_tokens(inside, split, infos[split])
            bar.update(path.stat().st_size)
        about = {**identity, "tokenizer": {"kind": "words"}}
        publish(out, inside, about, dictionary, infos)
    return True


def _measure(inside: Path, split: str, path: Path, on_bytes: Callable[[int], None]) -> SplitInfo:
    """Count characters and lines, and find the articles.  Raises ``ValueError`` for damaged text."""
    info = SplitInfo(items=0, tokens=0, documents=0, first_items=[], words_rule=WORDS_RULE)
    info.characters = info.bytes = 0
    before, before_that = "", ""
    with open(path, "rb") as stream:
        for number, data in enumerate(stream):
            line, damage = text_files.decoded(data)
            if damage is not None and damage != "is empty":
                raise ValueError(f"{path}, line {number + 1} {damage}")
            if not line.strip() and _TITLE.fullmatch(before) and not before_that.strip():
                info.first_items.append(max(number - 2, 0))
            before_that, before = before, line.rstrip("\n")
            info.characters += len(data.decode("utf-8"))
            info.bytes += len(data)
            info.items = number + 1
            on_bytes(len(data))
    if not info.items:
        raise ValueError(f"{path} is empty; copy it again")
    if info.first_items[:1] != [0]:
        info.first_items.insert(0, 0)
    info.documents = len(info.first_items)
    return info


def _dictionary(inside: Path, train: Path, workers: int) -> Dictionary:
    path = inside / DICTIONARY
    if not path.is_file():
        built = FairseqTask.build_dictionary([str(train)], workers=workers)
        with atomic_file(path, "w") as stream:
            built.save(stream)
    return Dictionary.load(str(path))


def _binarise(inside: Path, split: str, path: Path, dictionary: Dictionary, workers: int) -> None:
    finished = inside / f"{split}.finished"
    if finished.exists():
        return
    binarizer = VocabularyDatasetBinarizer(dictionary, append_eos=True)
    FileBinarizer.multiprocess_dataset(
        str(path), "mmap", binarizer, str(inside / split),
        vocab_size=len(dictionary), num_workers=workers,
    )  # fmt: skip
    finished.touch()


def _count_tokens(inside: Path, split: str, info: SplitInfo) -> None:
    index = MMapIndexedDataset.Index(str(inside / f"{split}.idx"))  # its arrays die with it
    sizes = np.array(index.sizes, np.int64)
    info.tokens = info.words = int(sizes.sum())
    if len(sizes) != info.items:
        raise ValueError(
            f"split {split}: fairseq found {len(sizes)} lines where {info.items} were counted; does the "
            "text have line separators other than \\n?"
        )


def report(corpus: Corpus) -> list[str]:
    """Lines that say what the prepared corpus holds and where that differs from the release."""
    lines = prepare_text.report(corpus)
    found = corpus.description["vocabulary"]
    if found != PUBLISHED_VOCABULARY:
        lines.append(f"dictionary: {found:,} entries, the release gives {PUBLISHED_VOCABULARY:,}")
    for split, words in PUBLISHED.items():
        if corpus.info(split).tokens != words:
            lines.append(
                f"{split}: {corpus.info(split).tokens:,} words, the release has {words:,}: figures are "
                "not comparable with published ones"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lm.prepare_wikitext103",
        description="Prepare WikiText-103 for language modelling.",
    )
    parser.add_argument("source", type=Path, help="folder with wiki.{train,valid,test}.tokens")
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    add_workers_option(parser)
    options = parser.parse_args(arguments)
    prepare_text.run(
        parser, options.out, lambda: prepare(options.source, options.out, options.workers), report
    )


if __name__ == "__main__":
    main()
