"""The predictions of a classifier, batch by batch."""

import pytest
import torch

from megalodon_tasks.evaluation.classifier import join, predict


def sample(ids, target, **net_input):
    return {"id": torch.tensor(ids), "target": target, "net_input": net_input, "ntokens": 12}


def test_batches_are_joined_by_id():
    batches = []
    for ids, target, scores, first, second in (
        ([3, 1], [0, 1], [[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [5, 2], [4, 7]),
        ([0], [2], [[0.0, 0.0, 9.0]], [8], [1]),
    ):
        lengths = {"lengths": torch.tensor(first), "lengths2": torch.tensor(second)}
        batches.append(predict(sample(ids, torch.tensor(target), **lengths), torch.tensor(scores)))
    found = join(batches, ("a", "b", "c"))
    assert found.ids.tolist() == [0, 1, 3]
    assert found.labels.tolist() == [2, 1, 0]
    assert found.predicted.tolist() == [2, 2, 0]
    assert found.length.tolist() == [8, 7, 5]
    expected = torch.softmax(torch.tensor([2.0, 0.0, 0.0]), 0)[0].item()
    assert found.probability[2] == pytest.approx(expected)
    assert found.best_constant == pytest.approx(100 / 3)
    assert found.classes == ("a", "b", "c")
    assert join(batches).classes == ("0", "1", "2")
    assert join([*batches, None]) is None


@pytest.mark.parametrize(
    ("target", "scores"),
    [
        (torch.rand(2, 3), torch.rand(2, 3)),
        (torch.zeros(2, 5, dtype=torch.int64), torch.rand(2, 5, 3)),
        (torch.zeros(2, dtype=torch.int64), (torch.rand(2, 3), None)),
    ],
    ids=["soft targets", "language model", "no scores"],
)
def test_items_without_a_single_class_have_no_predictions(target, scores):
    assert predict(sample([0, 1], target), scores) is None


def test_items_without_lengths_have_those_of_their_tokens():
    found = predict(sample([0, 1], torch.tensor([0, 1])), torch.rand(2, 3))
    assert found.length.tolist() == [6, 6]
