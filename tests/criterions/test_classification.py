import math

import pytest
import torch
from fairseq.logging import metrics
from torch.nn import functional as F

from megalodon_tasks.criterions.classification import ClassificationCriterion

B, CLASSES = 6, 4


class Scores(torch.nn.Module):
    """Ignores its input and returns the scores that it was made with."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, inputs, lengths):
        return self.scores


def criterion_with(label_smoothing=0.0, *, training=True):
    return ClassificationCriterion(task=None, label_smoothing=label_smoothing).train(training)


def sample_with(target):
    net_input = {"inputs": torch.ones(len(target), 3), "lengths": torch.full((len(target),), 3)}
    return {"net_input": net_input, "target": target, "ntokens": 3 * len(target)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Scores(torch.randn(B, CLASSES))


def hard():
    return torch.tensor([0, 3, 1, 1, 2, 0])


def soft():
    torch.manual_seed(1)
    return torch.softmax(torch.randn(B, CLASSES), dim=-1)


@pytest.mark.parametrize("target", [hard(), soft()], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_summed_cross_entropy(model, target, smoothing):
    criterion = criterion_with(smoothing)
    loss, sample_size, log = criterion(model, sample_with(target))
    expected = F.cross_entropy(model.scores, target, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert sample_size == log["sample_size"] == log["nsentences"] == B
    assert log["ntokens"] == 3 * B
    assert not log["loss"].requires_grad

    loss.backward()
    distribution = target if target.is_floating_point() else F.one_hot(target, CLASSES)
    distribution = (1 - smoothing) * distribution + smoothing / CLASSES
    gradient = torch.softmax(model.scores.detach(), dim=-1) - distribution
    torch.testing.assert_close(model.scores.grad, gradient)


def test_smoothing_by_its_definition(model):
    log_p = torch.log_softmax(model.scores, dim=-1)
    expected = -(0.9 * log_p[torch.arange(B), hard()] + 0.1 * log_p.mean(dim=-1)).sum()
    loss, _, _ = criterion_with(0.1)(model, sample_with(hard()))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("target", [hard(), soft()], ids=["hard", "soft"])
def test_evaluation_is_without_smoothing(model, target):
    evaluated, _, _ = criterion_with(0.1, training=False)(model, sample_with(target))
    plain, _, _ = criterion_with(0.0)(model, sample_with(target))
    assert torch.equal(evaluated, plain)


@pytest.mark.parametrize("soften", [False, True])
def test_accuracy_counts_the_strongest_class(soften):
    scores = torch.eye(CLASSES)[[0, 1, 2, 3, 0, 1]]
    target = torch.tensor([0, 1, 2, 0, 0, 0])
    if soften:
        target = 0.7 * F.one_hot(target, CLASSES) + 0.3 / CLASSES
    _, _, log = criterion_with()(Scores(scores), sample_with(target))
    assert log["correct"] == 4


def test_half_precision_scores_give_a_float32_loss():
    loss, _, _ = criterion_with()(
        Scores(torch.randn(B, CLASSES, dtype=torch.bfloat16)), sample_with(hard())
    )
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            torch.zeros(B, 1, dtype=torch.int64),
            "hard targets have shape \\(6, 1\\), expected \\(6,\\)",
        ),
        (torch.zeros(B, 5), "soft targets have shape \\(6, 5\\), expected \\(6, 4\\)"),
    ],
)
def test_targets_of_another_shape_are_refused(model, target, message):
    with pytest.raises(ValueError, match=message):
        criterion_with()(model, sample_with(target))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"criterion.label_smoothing={smoothing} must be"):
        criterion_with(smoothing)


def test_metrics_of_batches_are_those_of_all_samples():
    torch.manual_seed(2)
    scores, target = torch.randn(9, CLASSES), torch.randint(CLASSES, (9,))
    logs = []
    for part in (slice(0, 4), slice(4, 9)):
        logs.append(criterion_with()(Scores(scores[part]), sample_with(target[part]))[2])
    with metrics.aggregate(new_root=True) as meters:
        ClassificationCriterion.reduce_metrics(logs)
    expected = F.cross_entropy(scores, target).item() / math.log(2)
    hits = (scores.argmax(dim=-1) == target).sum().item()
    assert meters["loss"].avg == pytest.approx(expected, rel=1e-6)
    assert meters["accuracy"].avg == pytest.approx(100 * hits / 9, rel=1e-12)
    # the best checkpoint is chosen by the rounded value
    assert meters.get_smoothed_values()["accuracy"] == round(100 * hits / 9, 4)
    # else a checkpoint, which holds these, could not be loaded safely
    assert {type(meters[key].avg) for key in ("loss", "accuracy")} == {float}
    assert ClassificationCriterion.logging_outputs_can_be_summed()


@pytest.mark.parametrize("classes", [5, 7])
def test_top5_is_logged_where_it_says_something(classes):
    scores = torch.arange(float(classes)).repeat(2, 1)  # the best of 7 are 6, 5, 4, 3, 2
    _, _, log = criterion_with()(Scores(scores), sample_with(torch.tensor([2, 1])))
    with metrics.aggregate(new_root=True) as meters:
        ClassificationCriterion.reduce_metrics([log])
    logged = meters.get_smoothed_values()
    assert logged["accuracy"] == 0.0
    assert logged.get("top5") == (50.0 if classes == 7 else None)
