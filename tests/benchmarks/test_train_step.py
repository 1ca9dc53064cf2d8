"""A training step beside a Transformer's, on the smallest sizes."""

import json

import pytest
import torch

from benchmarks import shares, train_step
from megalodon_tasks.models.classifier import ClassifierInputs


@pytest.fixture
def tiny(monkeypatch):
    pixels = ClassifierInputs("pixels", 2)
    task = train_step.Task("megalodon_lra_pathx", 32, 2, 16, pixels)
    monkeypatch.setattr(train_step, "TASKS", {"tiny": task})


def test_a_line_for_each_task(tiny, capsys, monkeypatch):
    threads = str(torch.get_num_threads())
    command = ["train_step", "tiny", "--repeats", "1", "--threads", threads]
    monkeypatch.setattr("sys.argv", command)
    train_step.main()
    record = json.loads(capsys.readouterr().out)
    assert record["ratio"] == pytest.approx(
        record["tokens_per_s"] / record["transformer_tokens_per_s"], rel=0.02, abs=0.01
    )
    found = record["percent_of_time"]
    assert abs(sum(found.values()) - 100) <= len(found)
    assert all(found[kind] > 0 for kind in ("CEMA", "norms", "matrix products", shares.OTHER))


def test_what_an_event_calls_counts_for_its_kind():
    weight = torch.randn(300, 300, requires_grad=True)

    def step():
        for _ in range(20):
            torch.nn.functional.layer_norm(weight @ weight, (300,)).sum().backward()

    found = shares.shares(step)
    assert found["matrix products"] > 50
    assert found["norms"] > 0
    assert found["CEMA"] == 0
