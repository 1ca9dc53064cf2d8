"""The benchmark of the language model runs, at a size that says nothing about speed."""

import json

import pytest
import torch

from benchmarks.lm_step import TINY, Sizes, main, paper_model, read, transformer
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.training.model_flops import training_flops


def test_every_measurement_prints_a_line(capsys):
    threads = torch.get_num_threads()
    main(["train", "lengths", "decode", "--tiny", "--repeats", "1", "--threads", str(threads)])
    train, lengths, decode = map(json.loads, capsys.readouterr().out.splitlines())
    assert train["ratio"] > 0
    assert lengths["us_per_token"].keys() == {"16", "32"}
    assert lengths["spread"] >= 1
    assert decode["positions"] == [16, 200]
    ways = ["ordinary", "prepared", "ordinary, 3 beams", "prepared, 3 beams"]
    for rates in (decode["tokens_per_s"], decode["fastest_tokens_per_s"]):
        assert list(rates) == ways
        assert all(min(pair) > 0 for pair in rates.values())
    assert decode["state_bytes"][0] == decode["state_bytes"][1] > 0


def test_both_models_are_causal():
    torch.manual_seed(0)
    tokens = torch.randint(TINY.vocab, (1, 20))
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % TINY.vocab
    for model in (CausalLM(TINY.config, TINY.vocab), transformer(TINY.config, TINY.vocab)):
        one, other = (model.nll(t[:, :-1], tokens[:, 1:])[0] for t in (tokens, changed))
        assert torch.equal(one[:, :12], other[:, :12])
        assert (one[:, 12:] - other[:, 12:]).abs().max() > 0


def test_the_far_state_is_that_of_all_tokens_before_it():
    lm = CausalLM(TINY.config, TINY.vocab).eval()
    state = read(lm, TINY, 200, torch.device("cpu"))
    assert state.norm.count.tolist() == [200]
    assert state.blocks[0].attention.key.shape[1] == 200 % TINY.chunk


def test_figure_4_is_drawn_as_bars(capsys):
    main(["paper", "--tiny", "--repeats", "1", "--threads", str(torch.get_num_threads())])
    *bars, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["size"] == "small"
    assert [(bar["length"], bar["model"]) for bar in found["bars"]] == [
        (8, "Megalodon"), (8, "Llama-style"), (16, "Megalodon"), (16, "Llama-style"),
    ]  # fmt: skip
    for drawn, bar in zip(bars, found["bars"], strict=True):
        assert f"{bar['tokens_per_s']:,} tokens/s  MFU" in drawn
        assert 0 < bar["mfu"] < 1
    assert max(drawn.count("#") for drawn in bars) == 40


def test_a_preset_is_built_and_its_work_is_counted():
    size, config, vocab = paper_model("7b", Sizes(), torch.device("cpu"))
    assert (size, config.chunk_size, vocab) == ("7b", 4096, 32_000)
    with torch.device("meta"):
        ours, theirs = CausalLM(config, vocab), transformer(config, vocab)
    for lm in (ours, theirs):
        parameters = sum(p.numel() for p in lm.parameters()) - vocab * config.model_dim
        short, long = (training_flops(lm, n) / (6 * parameters) for n in (4096, 32768))
        assert 0.99 < short < 1.4
        assert (long == short) == (lm is ours)
    # 32 layers, queries and values 4,096 wide each, half of the keys seen on average
    assert long - short == pytest.approx(32 * 8192 * (32768 - 4096) / 2 / parameters, rel=1e-3)
