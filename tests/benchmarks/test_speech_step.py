"""The benchmark of raw speech and ImageNet, at a size that says nothing about speed."""

import json

import pytest
import torch

from benchmarks.speech_step import CASES, AuthorsEMA, build, main, tiny, with_authors_cema


def test_each_case_prints_a_line(capsys):
    threads = torch.get_num_threads()
    main([*CASES, "--tiny", "--repeats", "1", "--threads", str(threads)])
    speech, images = map(json.loads, capsys.readouterr().out.splitlines())
    assert (speech["case"], speech["length"]) == ("sc_raw", 200)
    assert (images["case"], images["length"]) == ("imagenet", 4)
    for record in (speech, images):
        assert record["ratio"] > 0
        assert record["memory_mb"]["saved"] > 0


@pytest.mark.parametrize("name", CASES)
def test_both_models_are_one_function(name):
    case, sizes = tiny(name)
    torch.manual_seed(0)
    model = build(case, sizes)
    other = with_authors_cema(model)
    assert sum(isinstance(module, AuthorsEMA) for module in other.modules()) == 2
    assert not any(isinstance(module, AuthorsEMA) for module in model.modules())
    inputs = torch.randn(case.shape)
    torch.testing.assert_close(model(inputs), other(inputs), rtol=1e-3, atol=1e-4)


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["speech"])
    assert "there is no case speech; choose of sc_raw, imagenet" in capsys.readouterr().err
