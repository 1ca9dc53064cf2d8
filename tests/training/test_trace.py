"""``common.profile``: a trace of a few updates, as browsers read it."""

import gzip
import json
import os
from types import SimpleNamespace

import pytest

from megalodon_tasks.training import trace
from tests.toy_plugin import runs


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(trace.VARIABLE, "1")  # so that it is restored
    monkeypatch.delenv(trace.VARIABLE)


@pytest.mark.parametrize("asked", [True, False])
def test_takes_over_from_fairseq(asked):
    cfg = SimpleNamespace(common=SimpleNamespace(profile=asked))
    trace.request(cfg)
    assert cfg.common.profile is False
    assert (trace.VARIABLE in os.environ) == asked


def test_three_updates_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv(trace.VARIABLE, "1")
    runs.train(tmp_path, "--max-update", "8")
    with gzip.open(tmp_path / trace.FILE) as stream:
        events = json.load(stream)["traceEvents"]
    names = [event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")]
    assert {f"ProfilerStep#{n}" for n in (3, 4, 5)} <= set(names)
    assert any(event.get("name") == "aten::cross_entropy_loss" for event in events)
    assert (tmp_path / trace.FILE).stat().st_size < 2_000_000


@pytest.mark.parametrize(("asked", "updates"), [(False, "8"), (True, "4")])
def test_no_trace_unless_asked_for_and_long_enough(tmp_path, monkeypatch, asked, updates):
    if asked:
        monkeypatch.setenv(trace.VARIABLE, "1")
    runs.train(tmp_path, "--max-update", updates)
    assert not (tmp_path / trace.FILE).exists()
