"""Passages of the demos of Text and Retrieval: no two that training cannot tell apart."""

import random
import zlib

import pytest

from megalodon_tasks.recipes.lra import demo_texts
from megalodon_tasks.recipes.lra.retrieval.release import FILES

LONG = "a" * 126
# Two passages that are the same in what is read of them.
ALIKE = {
    "the whole": ("x" * 100, "x" * 100),
    "the beginning": (LONG + "1", LONG + "2"),
    "escaped characters": ("\n" * 63 + "1", "\n" * 63 + "2"),
    "another quotation mark": (LONG + "'", LONG + "2"),
}


def name_in(fifth):
    """A document of this fifth of all."""
    return next(n for n in map(str, range(99)) if zlib.crc32(n.encode()) % 5 == fifth)


def pairs_written(monkeypatch, folder, documents):
    """The texts of each split, cut as they are read, where these are the documents of each kind."""
    found = iter(documents.values())
    monkeypatch.setattr(demo_texts, "read_documents", lambda *_: next(found))
    demo_texts.write_retrieval(folder, 128)
    texts = {}
    for split, name in FILES.items():
        fields = [line.split(b"\t") for line in (folder / name).read_bytes().splitlines()]
        texts[split] = {text[2:128] for line in fields for text in line[3:]}
    return texts


@pytest.mark.parametrize("kind", ["prose", "c++"])
@pytest.mark.parametrize("alike", ALIKE)
def test_passages_that_are_read_alike_are_in_one_split(monkeypatch, tmp_path, kind, alike):
    rng = random.Random(alike)
    documents = {
        name: {
            name_in(fifth): [f"{rng.random()} {name} {fifth}" * 6 for _ in range(3)]
            for fifth in range(3)
        }
        for name in ("prose", "python", "c++")
    }
    for fifth, text in zip((0, 2), ALIKE[alike], strict=True):
        documents[kind][name_in(fifth)].append(text)
    texts = pairs_written(monkeypatch, tmp_path, documents)
    assert all(texts.values())
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["valid"]


def test_passages_are_compared_whole_where_all_is_read():
    kinds = {"pos": {name_in(0): [LONG + "1"], name_in(2): [LONG + "2", LONG + "1"]}}
    splits = demo_texts.by_split(kinds, {0: "test"})
    assert splits == {"test": {"pos": [LONG + "1"]}, "train": {"pos": [LONG + "2"]}}
