"""Answers of a classifier as tables and as a picture."""

import csv

import numpy as np
import pytest
import torch
from matplotlib import image

from megalodon_tasks.evaluation import confusion, predictions
from megalodon_tasks.evaluation.predictions import Collector, Predictions


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


def sample(ids, target, **net_input):
    return {"id": torch.tensor(ids), "target": target, "net_input": net_input, "ntokens": 12}


def test_the_collector_orders_answers_by_id():
    collector = Collector()
    for ids, target, scores, first, second in (
        ([3, 1], [0, 1], [[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [5, 2], [4, 7]),
        ([0], [2], [[0.0, 0.0, 9.0]], [8], [1]),
    ):
        collector.hook(torch.nn.Identity(), (), torch.tensor(scores))
        lengths = {"lengths": torch.tensor(first), "lengths2": torch.tensor(second)}
        collector.add(sample(ids, torch.tensor(target), **lengths))
    found = collector.result(("a", "b", "c"))
    assert found.ids.tolist() == [0, 1, 3]
    assert found.labels.tolist() == [2, 1, 0]
    assert found.predicted.tolist() == [2, 2, 0]
    assert found.length.tolist() == [8, 7, 5]
    wanted = torch.softmax(torch.tensor([2.0, 0.0, 0.0]), 0)[0].item()
    assert found.probability[2] == pytest.approx(wanted)
    assert found.best_constant == pytest.approx(100 / 3)
    assert collector.result(None).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("target", "scores"),
    [
        (torch.rand(2, 3), torch.rand(2, 3)),
        (torch.zeros(2, 5, dtype=torch.int64), torch.rand(2, 5, 3)),
        (torch.zeros(2, dtype=torch.int64), (torch.rand(2, 3), None)),
    ],
    ids=["soft targets", "language model", "no scores"],
)
def test_what_is_not_one_class_per_item_is_not_collected(target, scores):
    collector = Collector()
    collector.hook(torch.nn.Identity(), (), scores)
    collector.add(sample([0, 1], target))
    assert collector.result(None) is None


def test_items_without_lengths_have_those_of_their_tokens():
    collector = Collector()
    collector.hook(torch.nn.Identity(), (), torch.rand(2, 3))
    collector.add(sample([0, 1], torch.tensor([0, 1])))
    assert collector.result(None).length.tolist() == [6, 6]


def test_ranges_of_length_hold_all_items_and_about_as_many_each():
    found = answers(10)
    groups = predictions.by_length(found)
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
    assert [group.name for group in predictions.by_length(answers(3, lengths=2))] == ["1", "2"]
    assert predictions.by_length(answers(3, lengths=1)) == []


def test_the_interval_is_that_of_wilson():
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    low, high = predictions.Group("a", 263, 81).interval
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)
    assert predictions.Group("empty", 0, 0).interval == (0.0, 100.0)


def test_accuracy_by_class_counts_the_true_class():
    labels, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0])
    ones = np.ones(5)
    found = Predictions(np.arange(5), labels, predicted, ones, ones, ("a", "b", "c"))
    groups = predictions.by_class(found)
    assert [(g.name, g.count, g.correct) for g in groups] == [("a", 2, 1), ("b", 3, 2), ("c", 0, 0)]
    lines = predictions.table("class", groups)
    assert lines[1].split() == ["a", "2", "50.00", "9.45", "-", "90.55"]
    assert lines[3].split() == ["c", "0", "-"]


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t")])
def test_predictions_are_written_one_row_per_item(tmp_path, name, delimiter):
    found = answers(4, items=20)
    predictions.write_predictions(found, tmp_path / "new" / name)
    table = rows(tmp_path / "new" / name, delimiter)
    assert list(table[0]) == list(predictions.PREDICTION_COLUMNS)
    assert [int(row["id"]) for row in table] == list(range(20))
    assert [int(row["correct"]) for row in table] == found.correct.astype(int).tolist()
    assert table[7]["label_name"] == f"class {found.labels[7]}"
    assert table[7]["prediction_name"] == f"class {found.predicted[7]}"
    assert float(table[7]["probability"]) == pytest.approx(found.probability[7], abs=1e-6)


def test_groups_are_written_with_their_interval(tmp_path):
    groups = [predictions.Group("1-9", 263, 81)]
    predictions.write_groups("length", groups, tmp_path / "g.csv")
    (row,) = rows(tmp_path / "g.csv")
    assert row["length"] == "1-9"
    assert float(row["accuracy"]) == pytest.approx(100 * 81 / 263, abs=1e-4)
    assert float(row["low_95"]) == pytest.approx(25.53, abs=0.01)


@pytest.mark.parametrize("size", [2, 10, 35, 1000])
def test_the_picture_has_a_readable_size(tmp_path, size):
    found = answers(size, items=5000)
    confusion.draw(found, "toy, test", tmp_path / "confusion.png")
    pixels = image.imread(tmp_path / "confusion.png")
    height, width = pixels.shape[:2]
    assert 400 < height < 3200
    assert 600 < width < 3400
    if size > confusion.NUMBERED:
        assert width > size  # at least a pixel for each class
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_a_split_without_some_classes_has_a_picture(tmp_path):
    zeros, ones = np.zeros(3, int), np.ones(3)
    found = Predictions(np.arange(3), zeros, zeros, ones, ones, tuple("abc"))
    confusion.draw(found, "one class", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
