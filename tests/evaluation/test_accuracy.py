"""Predictions of a classifier as tables and as a picture."""

import csv

import numpy as np
import pytest
from matplotlib import image

from megalodon_tasks.evaluation import accuracy
from megalodon_tasks.evaluation.classifier import Predictions


def answers(size: int, items: int = 400, right: float = 0.7, lengths: int = 60) -> Predictions:
    generator = np.random.default_rng(0)
    labels = generator.integers(size, size=items)
    wrong = generator.integers(size, size=items)
    predicted = np.where(generator.random(items) < right, labels, wrong)
    length = generator.integers(1, lengths + 1, size=items)
    names = tuple(f"class {number}" for number in range(size))
    chance = generator.random(items)
    return Predictions(np.arange(items), labels, predicted, chance, length, names)


def rows(path, delimiter=","):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_ranges_of_length_hold_all_items_and_about_as_many_each():
    found = answers(10)
    groups = accuracy.by_length(found)
    assert len(groups) == 10
    assert sum(group.count for group in groups) == 400
    assert sum(group.correct for group in groups) == found.correct.sum()
    assert all(25 <= group.count <= 55 for group in groups)
    ends = [tuple(int(end) for end in group.name.split("-")) for group in groups]
    assert all(low[1] < high[0] for low, high in zip(ends, ends[1:], strict=False))
    low, high = ends[3]
    inside = (found.length >= low) & (found.length <= high)
    assert groups[3].correct == found.correct[inside].sum()


def test_few_lengths_have_a_range_each_and_one_length_none():
    assert [group.name for group in accuracy.by_length(answers(3, lengths=2))] == ["1", "2"]
    assert accuracy.by_length(answers(3, lengths=1)) == []


def test_the_interval_is_that_of_wilson():
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    low, high = accuracy.Group("a", 263, 81).interval
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)
    assert accuracy.Group("empty", 0, 0).interval == (0.0, 100.0)


def test_accuracy_by_class_counts_the_true_class():
    labels, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0])
    ones = np.ones(5)
    found = Predictions(np.arange(5), labels, predicted, ones, ones, ("a", "b", "c"))
    groups = accuracy.by_class(found)
    assert [(g.name, g.count, g.correct) for g in groups] == [("a", 2, 1), ("b", 3, 2), ("c", 0, 0)]
    lines = accuracy.table("class", groups)
    assert lines[1].split() == ["a", "2", "50.00", "9.45", "-", "90.55"]
    assert lines[3].split() == ["c", "0", "-"]


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t")])
def test_predictions_are_written_one_row_per_item(tmp_path, name, delimiter):
    found = answers(4, items=20)
    accuracy.report(found, "toy", {"predictions": tmp_path / "new" / name})
    table = rows(tmp_path / "new" / name, delimiter)
    assert list(table[0]) == list(accuracy.PREDICTION_COLUMNS)
    assert [int(row["id"]) for row in table] == list(range(20))
    assert [int(row["correct"]) for row in table] == found.correct.astype(int).tolist()
    assert table[7]["label_name"] == f"class {found.labels[7]}"
    assert table[7]["prediction_name"] == f"class {found.predicted[7]}"
    assert float(table[7]["probability"]) == pytest.approx(found.probability[7], abs=1e-6)


def test_equal_lengths_have_no_table(tmp_path, capsys):
    files = {"by_length": tmp_path / "l.csv", "by_class": tmp_path / "c.csv"}
    written = accuracy.report(answers(3, lengths=1), "toy", files)
    assert written == {"by_class": tmp_path / "c.csv"}
    assert list(tmp_path.iterdir()) == [tmp_path / "c.csv"]
    assert "all items have length 1: no accuracy by length" in capsys.readouterr().out


def test_groups_are_written_with_their_interval(tmp_path):
    groups = [accuracy.Group("1-9", 263, 81)]
    accuracy.write_groups("length", groups, tmp_path / "g.csv")
    (row,) = rows(tmp_path / "g.csv")
    assert row["length"] == "1-9"
    assert float(row["accuracy"]) == pytest.approx(100 * 81 / 263, abs=1e-4)
    assert float(row["low_95"]) == pytest.approx(25.53, abs=0.01)


@pytest.mark.parametrize("size", [2, 10, 35, 1000])
def test_the_picture_has_a_readable_size(tmp_path, size):
    found = answers(size, items=5000)
    accuracy.draw_confusion(found, "toy, test", tmp_path / "confusion.png")
    pixels = image.imread(tmp_path / "confusion.png")
    height, width = pixels.shape[:2]
    assert 400 < height < 3200
    assert 600 < width < 3400
    if size > accuracy.LISTED_CLASSES:
        assert width > size  # at least a pixel for each class
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_a_split_without_some_classes_has_a_picture(tmp_path):
    zeros, ones = np.zeros(3, int), np.ones(3)
    found = Predictions(np.arange(3), zeros, zeros, ones, ones, tuple("abc"))
    accuracy.draw_confusion(found, "one class", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
