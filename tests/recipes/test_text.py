"""Text: the IMDB reviews in their released layout, what is damaged in them, and the choice of splits."""

import os

import numpy as np
import pytest

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.text import prepare as prepare_text
from megalodon_tasks.recipes.lra.text import release as text
from megalodon_tasks.recipes.lra.text.prepare import Options
from megalodon_tasks.recipes.lra.text_tokens import VOCABULARY
from tests.data.prepared import text_of, write_random

PER_FOLDER = 12
STARS = {"neg": (1, 2, 3, 4), "pos": (7, 8, 9, 10)}


@pytest.fixture(autouse=True)
def small_release(monkeypatch):
    """The release has 12,500 reviews in each folder; these tests have a dozen."""
    monkeypatch.setattr(text, "RELEASED_PER_FOLDER", PER_FOLDER)


def review(split, class_, number):
    return f"{split} {class_} {number}: it was {'good' if class_ == 'pos' else 'bad'}.<br />"


def write_reviews(folder, per_folder=PER_FOLDER):
    for split in ("train", "test"):
        for class_, stars in STARS.items():
            below = folder / split / class_
            below.mkdir(parents=True)
            for number in range(per_folder):
                path = below / f"{number}_{stars[number % 4]}.txt"
                path.write_text(review(split, class_, number))
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("without a label")
    (folder / "train" / "labeledBow.feat").write_text("0:9 1:1")
    (folder / "imdb.vocab").write_text("the\n")
    return folder


def prepare(source, out, rejects=None, **options):
    rejects = Rejects() if rejects is None else rejects
    return prepare_text.prepare(source, out, Options(**options), rejects)


def items_of(split):
    """Pairs (class, text) in the order of the file."""
    names = split.spec.classes
    return [
        (names[label], text_of(split.sequence("inputs", index)).decode())
        for index, label in enumerate(split.labels)
    ]


def all_of(split):
    numbers = range(PER_FOLDER)
    return [(c, review(split, c, number)) for c in ("neg", "pos") for number in numbers]


@pytest.mark.parametrize("below", ["", "aclImdb", "imdb/aclImdb"])
def test_reviews_become_bytes(tmp_path, below):
    write_reviews(tmp_path / "raw" / below)
    assert prepare(tmp_path / "raw", tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert (dataset.spec.benchmark, dataset.spec.kind) == ("text", "tokens")
    assert dataset.spec.vocabulary == VOCABULARY
    assert dataset.spec.classes == ("neg", "pos")
    assert items_of(dataset.split("train")) == all_of("train")
    assert items_of(dataset.split("test")) == all_of("test")
    dataset.manifest.verify()


def test_one_byte_is_stored_for_each_byte(tmp_path):
    prepare(write_reviews(tmp_path / "raw"), tmp_path / "out")
    stored = tmp_path / "out" / "train.inputs.bin"
    assert stored.stat().st_size == sum(len(t) + 1 for _, t in all_of("train"))


def test_reviews_are_validated_on_the_test_split_as_in_the_literature(tmp_path):
    prepare(write_reviews(tmp_path / "raw"), tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert items_of(dataset.split("valid")) == items_of(dataset.split("test"))


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.01, 1)])
def test_held_out_reviews_are_of_each_class_and_not_trained_on(tmp_path, share, count):
    raw = write_reviews(tmp_path / "raw")
    prepare(raw, tmp_path / "out", validation="held-out", held_out=share)
    dataset = PreparedDataset(tmp_path / "out")
    train, valid = items_of(dataset.split("train")), items_of(dataset.split("valid"))
    assert dataset.split("valid").info.class_counts == [count, count]
    assert sorted(train + valid) == sorted(all_of("train"))
    assert items_of(dataset.split("test")) == all_of("test")
    prepare(raw, tmp_path / "again", validation="held-out", held_out=share)
    assert items_of(PreparedDataset(tmp_path / "again").split("valid")) == valid


def test_a_long_review_is_cut(tmp_path):
    raw = write_reviews(tmp_path / "raw")
    prepare(raw, tmp_path / "out", max_bytes=9)
    split = PreparedDataset(tmp_path / "out").split("train")
    assert split.lengths("inputs").tolist() == [10] * len(split)
    assert items_of(split)[0] == ("neg", "train neg")


def test_other_options_and_other_files_are_prepared_again(tmp_path):
    raw, out = write_reviews(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out)
    assert not prepare(raw, out)
    assert prepare(raw, out, validation="held-out")
    assert not prepare(raw, out, validation="held-out")
    assert prepare(raw, out)
    path = raw / "test" / "pos" / "3_10.txt"
    os.utime(path, ns=(1, 1))
    assert not prepare(raw, out), "another time, the same review"
    path.write_text(review("test", "pos", 3).upper())
    assert prepare(raw, out), "the same size, another review"


DAMAGE = [
    (b"", "is empty"),
    (b"\n ", "is empty"),
    (b"caf\xe9", "is not UTF-8 text: byte 0xe9 at place 4"),
    (b"cut short\0\0\0", "has a zero byte at place 10"),
]


@pytest.mark.parametrize(("content", "reason"), DAMAGE)
def test_a_damaged_review_is_left_out_and_named(tmp_path, capsys, content, reason):
    raw, out = write_reviews(tmp_path / "raw"), tmp_path / "out"
    path = raw / "train" / "pos" / "2_9.txt"
    path.write_bytes(content)
    for _ in range(2):  # the second time nothing is to be done, and what is left out is said again
        prepare_text.main([str(raw), str(out)])
        printed = capsys.readouterr().out.splitlines()
        assert printed[-2] == "left out as damaged: 1"
        assert printed[-1].startswith(f"  {path} {reason}")
    dataset = PreparedDataset(out)
    assert dataset.split("train").info.class_counts == [PER_FOLDER, PER_FOLDER - 1]
    assert ("pos", review("train", "pos", 2)) not in items_of(dataset.split("train"))


def test_a_damaged_review_is_refused_where_asked(tmp_path, capsys):
    raw = write_reviews(tmp_path / "raw")
    path = raw / "test" / "neg" / "0_1.txt"
    path.write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        prepare_text.main([str(raw), str(tmp_path / "out"), "--strict"])
    assert f"error: {path} is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_many_damaged_reviews_are_refused(tmp_path):
    raw = write_reviews(tmp_path / "raw")
    for path in (raw / "train" / "neg").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="more than 5 items are damaged"):
        prepare(raw, tmp_path / "out", Rejects(limit=5))
    assert not (tmp_path / "out").exists()


def damage(raw, kind):
    pos = raw / "train" / "pos"
    if kind == "file missing":
        (pos / "3_10.txt").unlink()
        return f"{pos} has 11 reviews, the release has 12: the download or the unpacking was cut"
    if kind == "file added":
        (pos / "900_9.txt").write_text("a copy")
        return f"{pos} has 13 reviews, the release has 12"
    if kind == "other name":
        (pos / "copy of 3_10.txt").write_text("a copy")
        return "copy of 3_10.txt is not named as a review of the release, <number>_<stars>.txt"
    if kind == "wrong folder":
        (pos / "3_10.txt").rename(pos / "3_4.txt")
        return "3_4.txt: a review with 4 stars lies in the folder pos, where they have 7 to 10"
    pos.rename(raw / "train" / "positive")
    return f"{pos} is missing beside the other files; unpack the archive again"


@pytest.mark.parametrize(
    "kind", ["file missing", "file added", "other name", "wrong folder", "folder missing"]
)
def test_a_release_that_is_not_whole_is_refused(tmp_path, kind):
    raw = write_reviews(tmp_path / "raw")
    message = damage(raw, kind)
    with pytest.raises(ValueError) as error:
        prepare(raw, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_subset_is_taken_where_asked(tmp_path, capsys):
    raw = write_reviews(tmp_path / "raw", per_folder=4)
    prepare_text.main([str(raw), str(tmp_path / "out"), "--subset", "--verify"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{tmp_path / 'out'}: prepared"
    assert printed[1].startswith("train: 8 reviews (the released benchmark has 25000), lengths ")
    assert printed[1].endswith("labels neg:50.0% pos:50.0%")


def test_an_empty_folder_is_refused_even_for_a_subset(tmp_path):
    raw = write_reviews(tmp_path / "raw", per_folder=0)
    with pytest.raises(ValueError, match="neg has no reviews, <number>_<stars>.txt"):
        prepare(raw, tmp_path / "out", subset=True)


def test_where_nothing_is_found_it_is_said_what_to_get(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is empty.* and unpack it"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "aclImdb_v1.tar.gz").touch()
    with pytest.raises(ValueError, match="unpack .*aclImdb_v1.tar.gz first .tar -xzf aclImdb_v1"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="aclImdb_v1.tar.gz is an archive; unpack it with 'tar"):
        prepare(tmp_path / "aclImdb_v1.tar.gz", tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere is not a folder; expected the folder aclImdb"):
        prepare(tmp_path / "nowhere", tmp_path / "out")


def test_data_of_another_benchmark_is_not_replaced(tmp_path):
    write_random(tmp_path / "out", benchmark="listops")
    with pytest.raises(ValueError, match="holds prepared data of 'listops'; choose another folder"):
        prepare(write_reviews(tmp_path / "raw"), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": "train"}, "validation='train' is none of test, held-out"),
        ({"held_out": 1.0}, "held_out=1.0 must be between 0 and 1"),
        ({"max_bytes": 0}, "max_bytes=0 must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_an_impossible_option_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare_text.main([str(tmp_path), str(tmp_path / "out"), "--held-out", "2"])
    assert capsys.readouterr().err == "error: held_out=2.0 must be between 0 and 1\n"


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    raw = write_reviews(tmp_path / "raw")
    prepare(raw, tmp_path / "out")
    labels = PreparedDataset(tmp_path / "out").split("train").labels
    np.testing.assert_array_equal(labels, [0] * PER_FOLDER + [1] * PER_FOLDER)
    numbers = [
        text.split()[2] for _, text in items_of(PreparedDataset(tmp_path / "out").split("train"))
    ]
    assert numbers == [f"{n}:" for n in range(PER_FOLDER)] * 2
