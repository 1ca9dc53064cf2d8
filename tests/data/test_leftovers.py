"""Files that operating systems leave are ignored by every preparation; damaged items and their limit."""

import argparse
import shutil

import numpy as np
import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.manifest import Manifest
from megalodon_tasks.data.preparing import add_rejects_options, rejects_of
from megalodon_tasks.data.sources import Rejects, is_leftover, listing
from megalodon_tasks.recipes.lra.text import release as text_release
from tests.cli.language_models import write_text
from tests.data.prepared import random_items, reader_of, spec_of, write_form
from tests.recipes.image_files import write_tree
from tests.recipes.speech_files import write_release
from tests.recipes.test_text import write_reviews

LEFTOVERS = ("._1_9.txt", "._0.wav", "._n01440764_0.JPEG", "._0.npy", ".DS_Store", "Thumbs.db")


def litter(folder):
    """Leave such files in ``folder`` and in all folders below it."""
    for below in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in LEFTOVERS:
            (below / name).write_bytes(b"\x00\x05\x16\x07 not text")
    return folder


def write_reviews_of_two(folder):
    return write_reviews(folder, per_folder=2)


SOURCES = {
    "lra/text": (write_reviews_of_two, ["--subset"]),
    "lm/text": (write_text, ["--workers", "1"]),
    "imagenet/imagenet": (write_tree, ["--workers", "1"]),
    "speech/sc_raw": (write_release, ["--splits", "official", "--workers", "1"]),
}


@pytest.mark.parametrize("recipe", SOURCES)
def test_what_operating_systems_leave_changes_nothing(tmp_path, recipe):
    write, options = SOURCES[recipe]
    clean = write(tmp_path / "clean" / "source")
    shutil.copytree(clean, tmp_path / "littered" / "source")
    litter(tmp_path / "littered" / "source")
    manifests = []
    for name in ("clean", "littered"):
        out = tmp_path / name / "out"
        assert main(["prepare", recipe, str(tmp_path / name / "source"), str(out), *options]) == 0
        manifests.append(Manifest.read(out))
    one, other = manifests
    assert one.splits == other.splits
    assert one.files == other.files
    assert other.source["left_out"] == {}


def test_listing_is_sorted_and_without_leftovers(tmp_path):
    for name in ("b.txt", "a.txt", "__MACOSX", *LEFTOVERS):
        (tmp_path / name).touch()
    assert [path.name for path in listing(tmp_path)] == ["a.txt", "b.txt"]
    assert is_leftover("THUMBS.DB")
    assert not is_leftover("thumbs.db.txt")


def options(*words):
    parser = argparse.ArgumentParser()
    add_rejects_options(parser)
    return parser.parse_args(words)


def test_the_limit_of_damaged_items_can_be_set():
    rejects = rejects_of(options("--max-rejects", "2"))
    rejects.add("one", "is empty")
    rejects.add("two", "is empty")
    with pytest.raises(ValueError, match=r"more than 2 items .*--max-rejects N"):
        rejects.add("three", "is empty")
    many = rejects_of(options("--max-rejects", "500"))
    for number in range(500):
        many.add(str(number), "is empty")
    assert len(many) == 500


def test_a_limit_below_nothing_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        options("--max-rejects", "-1")
    assert "--max-rejects: -1 must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["lra/text", "lm/text"])
def test_commands_take_the_limit(tmp_path, recipe, capsys):
    write, words = SOURCES[recipe]
    source = write(tmp_path / "source")
    damaged = sorted(source.glob("train/**/*.txt"))[:1]
    damaged[0].write_text("")
    command = ["prepare", recipe, str(source), str(tmp_path / "out"), *words, "--max-rejects"]
    with pytest.raises(SystemExit):
        main([*command, "0"])
    assert "more than 0 items are damaged" in capsys.readouterr().err
    assert main([*command, "1"]) == 0
    with pytest.raises(
        SystemExit
    ):  # data with damaged items is not taken as it is under a lower limit
        main([*command, "0"])


def test_an_empty_split_says_why_its_items_were_left_out(tmp_path):
    rejects = Rejects()
    rejects.add("item 7", "has a zero byte")
    splits = {"train": reader_of(random_items(3, spec_of())), "valid": reader_of([])}
    with pytest.raises(ValueError, match="'valid' has no items(?s:.*)item 7 has a zero byte"):
        write_form(tmp_path / "out", spec_of(), splits, rejects=rejects)


def test_empty_splits_of_texts_and_clips_say_why(tmp_path, capsys):
    source = write_text(tmp_path / "text")
    for path in (source / "validation").glob("*.txt"):
        path.write_bytes(b"\xff")
    with pytest.raises(SystemExit):
        main(["prepare", "lm/text", str(source), str(tmp_path / "a"), "--workers", "1"])
    message = capsys.readouterr().err
    assert "'valid' has no document with text" in message
    assert "validation/0.txt is not UTF-8" in message
    clips = write_release(tmp_path / "clips", per_word=3)
    for path in clips.rglob("*.wav"):
        path.write_bytes(np.zeros(10).tobytes())
    with pytest.raises(SystemExit):
        main(["prepare", "speech/sc_raw", str(clips), str(tmp_path / "b"), "--workers", "1"])
    message = capsys.readouterr().err
    assert "has no clip of 16000 samples" in message
    assert "left out as damaged: 30" in message


def test_folders_of_reviews_do_not_count_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(text_release, "RELEASED_PER_FOLDER", 12)
    source = litter(write_reviews(tmp_path / "aclImdb"))
    assert main(["prepare", "lra/text", str(source), str(tmp_path / "out")]) == 0
