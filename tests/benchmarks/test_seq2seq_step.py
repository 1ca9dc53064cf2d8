"""The benchmark of the encoder-decoder, at a size that says nothing about speed."""

import json

import torch

from benchmarks.seq2seq_step import MEASUREMENTS, build_megalodon, build_transformer, main


def test_each_measurement_prints_a_line(capsys):
    threads = str(torch.get_num_threads())
    main([*MEASUREMENTS, "--tiny", "--layers", "1", "--repeats", "1", "--threads", threads])
    wmt, long = map(json.loads, capsys.readouterr().out.splitlines())
    assert (wmt["measured"], wmt["batch"], wmt["length"]) == ("wmt", 2, 5)
    assert (long["measured"], long["length"]) == ("long", 12)
    for record in (wmt, long):
        assert record["ratio"] > 0
        assert record["cpu_ratio"] > 0


def test_the_models_are_of_equal_size():
    with torch.device("meta"):
        models = build_transformer(32_768, 6), build_megalodon(32_768, 6, None)
    theirs, ours = (sum(p.numel() for p in model.parameters()) for model in models)
    assert abs(ours - theirs) < 0.02 * theirs
