"""The benchmark of compiled blocks runs, at a size that says nothing about speed."""

import json

import pytest
import torch

from benchmarks.compiled_blocks import CASES, main
from megalodon_tasks.models.stack import _compiled


def test_each_case_prints_a_line(capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    _compiled.cache_clear()
    try:
        main(["--tiny", "--repeats", "1"])
    finally:
        _compiled.cache_clear()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == list(CASES)
    assert all(line["ratio"] > 0 for line in lines)


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["text"])
    assert "there is no case text; choose of listops, language_model" in capsys.readouterr().err
