"""What the manifest of each preparation says of its data: where it is from, and what it lacks."""

import shutil

import numpy as np
import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.manifest import Manifest
from megalodon_tasks.data.provenance import describe_data
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lm import prepare_enwik8, prepare_pg19, prepare_text
from megalodon_tasks.recipes.lra.listops import prepare as prepare_listops
from megalodon_tasks.recipes.lra.retrieval import prepare as prepare_retrieval
from tests.cli.language_models import write_text
from tests.data.prepared import write_random
from tests.recipes.image_files import build_index, write_tree
from tests.recipes.speech_files import write_tensors
from tests.recipes.test_retrieval import write_pairs

WIKI = " \n = Title = \n \n some words \n"
PUBLISHED = {
    "settings": {"longest": 4000},
    "counts": {"items": {"train": 40, "valid": 12, "test": 12}},
}


def prepared(*words):
    """Run ``megalodon prepare`` and describe the data."""
    assert main(["prepare", *map(str, words)]) == 0
    return describe_data(words[2])


def described(tmp_path, counts=(40, 12, 12), **source):
    source = {"origin": "release", "settings": {"longest": 4000}, "published": PUBLISHED} | source
    write_random(tmp_path / "data", counts, source=source)
    return describe_data(tmp_path / "data")


def test_the_published_form_has_no_differences(tmp_path):
    assert described(tmp_path)["differences"] == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"origin": "generated"}, "generated data"),
        ({"origin": "demo"}, "data made for a demo"),
        ({"origin": "text"}, "text of your own"),
        (
            {"settings": {"longest": 100}},
            "data prepared with longest 100 (published: 4000)",
        ),
        ({"counts": (39, 12, 12)}, "subset: train has 39 items, the release 40"),
        ({"counts": (40, 12, 13)}, "other data: test has 13 items, the release 12"),
        ({"published": None}, "data prepared by an earlier version"),
    ],
)
def test_each_difference_is_named(tmp_path, changes, difference):
    (found,) = described(tmp_path, **changes)["differences"]
    assert found.startswith(difference)


def test_data_without_a_manifest_is_of_unknown_origin(tmp_path):
    found = describe_data(tmp_path)
    assert (found["origin"], found["manifest"]) == ("unknown", None)
    assert "origin is not recorded" in found["differences"][0]


def test_the_digest_is_that_of_the_data_and_not_of_its_place(tmp_path):
    first = described(tmp_path)["manifest"]
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert describe_data(tmp_path / "moved")["manifest"] == first
    assert described(tmp_path, counts=(41, 12, 12))["manifest"] != first


@pytest.mark.parametrize(
    "recipe", ["lra/image", "imagenet/imagenet", "lm/wikitext103", "lm/enwik8"]
)
def test_demos_say_that_they_are_demos(tmp_path, recipe):
    found = prepared(recipe, tmp_path / "demo", tmp_path / "out", "--demo")
    assert found["origin"] == "demo"
    assert found["differences"] == ["data made for a demo"]


def test_a_demo_is_known_by_its_folder_in_later_preparations(tmp_path):
    first = prepared("lra/image", tmp_path, tmp_path / "out", "--demo")
    again = prepared("lra/image", tmp_path / "raw", tmp_path / "again", "--side", "8")
    assert again["origin"] == first["origin"] == "demo"


def test_data_that_was_recorded_otherwise_is_prepared_again(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "raw" / f"wiki.{split}.tokens").write_text(WIKI)
    words = ["lm/wikitext103", tmp_path / "raw", tmp_path / "out", "--workers", "1"]
    assert prepared(*words)["origin"] == "release"
    manifest = Manifest.read(tmp_path / "out")
    manifest.source.pop("published")
    manifest.write(tmp_path / "out")
    assert "earlier version" in describe_data(tmp_path / "out")["differences"][0]
    assert "subset" in prepared(*words)["differences"][1]


def test_small_wikitext_is_a_subset_with_another_vocabulary(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(WIKI)
    found = prepared("lm/wikitext103", tmp_path, tmp_path / "out", "--workers", "1")
    vocabulary, *subsets = found["differences"]
    assert vocabulary.startswith("vocabulary of ")
    assert vocabulary.endswith(" words (published: 267,744 words)")
    assert [text.split()[:2] for text in subsets] == [
        ["subset:", split] for split in ("train", "valid", "test")
    ]


def test_small_enwik8_is_a_subset(tmp_path):
    (tmp_path / "enwik8").write_bytes(b"some text " * 100)
    prepare_enwik8.prepare(tmp_path, tmp_path / "out", size=1000)
    found = describe_data(tmp_path / "out")["differences"]
    assert found[0] == "subset: train has 900 bytes, the release 90,000,000"


def test_pg19_with_a_vocabulary_of_ones_own_says_so(tmp_path):
    vocabulary = prepare_text.Vocabulary("bytes")
    prepare_pg19.prepare(write_text(tmp_path / "text"), tmp_path / "out", vocabulary)
    found = describe_data(tmp_path / "out")
    assert found["origin"] == "release"
    assert "(published: T5's SentencePiece model)" in found["differences"][0]


def test_text_of_ones_own(tmp_path):
    found = prepared("lm/text", write_text(tmp_path / "t"), tmp_path / "out", "--workers", "1")
    assert (found["origin"], found["differences"]) == ("text", ["text of your own"])


def test_few_pairs_and_images_are_subsets(tmp_path):
    prepare_retrieval.prepare(write_pairs(tmp_path / "tsv"), tmp_path / "a", Rejects(), max_bytes=9)
    found = describe_data(tmp_path / "a")["differences"]
    assert found[0] == "data prepared with longest 9 (published: 4000)"
    assert found[1].startswith("subset: train has 3 items, the release 147,086")
    build_index(write_tree(tmp_path / "images"), tmp_path / "b")
    found = describe_data(tmp_path / "b")["differences"]
    assert found[0] == "subset: train has 24 images, the release 1,281,167"


def test_processed_files_of_mega_are_called_so(tmp_path):
    write_tensors(tmp_path / "raw")
    found = prepared("speech/sc_raw", tmp_path, tmp_path / "out")
    assert found["origin"] == "mega"
    assert found["differences"][0].startswith("subset: train has 40 items")
    for name in ("input", "label"):
        (tmp_path / "cifar10" / name).mkdir(parents=True)
    for split in ("train", "valid", "test"):
        pixels = " ".join(map(str, np.arange(1024) % 256))
        (tmp_path / f"cifar10/input/{split}.src").write_text(f"{pixels}\n")
        (tmp_path / f"cifar10/label/{split}.label").write_text("3\n")
    found = prepared("lra/image", tmp_path / "cifar10", tmp_path / "images")
    assert (found["origin"], len(found["differences"])) == ("mega", 3)


def test_generated_expressions_keep_their_origin(tmp_path):
    sizes = [f"--{split}={count}" for split, count in (("train", 4), ("valid", 2), ("test", 2))]
    sizes += ["--min-length=5", "--max-length=20", "--workers=1"]
    prepare_listops.main([str(tmp_path), str(tmp_path / "out"), "--generate", *sizes])
    found = describe_data(tmp_path / "out")
    assert found["origin"] == "generated"
    assert found["settings"]["generated"]["seed"] == 0
    assert found["differences"] == ["generated data"]
