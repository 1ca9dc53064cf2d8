"""Equal items are counted by digest: in one split and in two, for every kind of data."""

import shutil

import numpy as np
import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.manifest import Manifest
from tests.cli.language_models import write_text
from tests.data.prepared import random_items, reader_of, spec_of, write_form, write_random
from tests.recipes.image_files import write_tree
from tests.recipes.test_text import write_reviews


def duplicates_of(folder):
    return Manifest.read(folder).source["duplicates"]


def written(folder, **items):
    spec = spec_of()
    write_form(folder, spec, {split: reader_of(records) for split, records in items.items()})
    return duplicates_of(folder)


def test_copies_are_counted_within_and_across_splits(tmp_path):
    one, other = random_items(20, spec_of(), 1, 8), random_items(9, spec_of(), 2, 8)
    assert written(tmp_path / "none", train=one, test=other) == {}
    found = written(tmp_path / "some", train=[*one, one[3], one[3]], test=[*other, one[5]])
    assert found == {"train": 2, "train, test": 1}


def test_the_label_does_not_make_an_item_another(tmp_path):
    (label, sequences), *more = random_items(3, spec_of(), 1, 8)
    items = [(label, sequences), ((label + 1) % 3, sequences), *more]
    assert written(tmp_path, train=items) == {"train": 1}


def test_pairs_are_equal_only_as_a_whole(tmp_path):
    text = np.arange(1, 5, dtype=np.uint8)
    spec = spec_of(columns=dict.fromkeys(("inputs", "inputs2"), spec_of().columns["inputs"]))
    items = [
        (0, {"inputs": text, "inputs2": text[:2]}),
        (0, {"inputs": text[:2], "inputs2": text}),
        (1, {"inputs": text, "inputs2": text[:2]}),
    ]
    write_form(tmp_path, spec, {"train": reader_of(items)})
    assert duplicates_of(tmp_path) == {"train": 1}


def test_an_interrupted_preparation_counts_all(tmp_path):
    items = random_items(6, spec_of(), 1, 8)
    items += items[:2]
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path, spec_of(), {"train": reader_of(items, stop_at=7)})
    assert written(tmp_path, train=items) == {"train": 2}


def test_the_digests_are_not_published(tmp_path):
    write_random(tmp_path)
    assert not list(tmp_path.rglob("*.digests"))


@pytest.mark.parametrize("recipe", ["lm/text", "lra/text", "imagenet/imagenet"])
def test_reports_tell_of_duplicates(tmp_path, recipe, capsys):
    if recipe == "imagenet/imagenet":
        source, options = write_tree(tmp_path / "source"), ["--decode", "all", "--workers", "1"]
        first = sorted((source / "train").glob("*/*"))[0]
        shutil.copy(first, first.with_name("copy.JPEG"))
        held_out = next((source / "val").glob("*/*"))
        shutil.copy(first, held_out)
    elif recipe == "lm/text":
        source, options = write_text(tmp_path / "source"), ["--workers", "1"]
        first = source / "train" / "0.txt"
        shutil.copy(first, source / "train" / "9.txt")
        shutil.copy(first, source / "validation" / "9.txt")
    else:
        source, options = write_reviews(tmp_path / "source", 12), ["--subset"]
        first = source / "train" / "pos" / "0_7.txt"
        shutil.copy(first, source / "train" / "pos" / "90_7.txt")
        shutil.copy(first, source / "test" / "pos" / "90_7.txt")
    assert main(["prepare", recipe, str(source), str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().err
    assert "duplicates: train has 1 items that it has already" in said
    assert "duplicates: train and valid share 1 items" in said
