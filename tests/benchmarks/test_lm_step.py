"""The benchmark of the language model runs, at a size that says nothing about speed."""

import json

import torch

from benchmarks.lm_step import TINY, Transformer, main, read
from megalodon_tasks.models.language_model import CausalLM


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
    for model in (CausalLM(TINY.config, TINY.vocab), Transformer(TINY)):
        one, other = (model.nll(t[:, :-1], tokens[:, 1:])[0] for t in (tokens, changed))
        assert torch.equal(one[:, :12], other[:, :12])
        assert (one[:, 12:] - other[:, 12:]).abs().max() > 0


def test_the_far_state_is_that_of_all_tokens_before_it():
    lm = CausalLM(TINY.config, TINY.vocab).eval()
    state = read(lm, TINY, 200, torch.device("cpu"))
    assert state.norm.count.tolist() == [200]
    assert state.blocks[0].attention.key.shape[1] == 200 % TINY.chunk
