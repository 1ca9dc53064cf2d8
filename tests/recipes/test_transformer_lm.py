"""The Transformer language model in every command that a Megalodon has: training to pictures."""

import json

import pytest
import torch
from matplotlib.image import imread

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint
from megalodon_tasks.evaluation.model_pictures import observed
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack
from tests.recipes.lm_data import eval_lm, preprocess, train

ARCH = ("--arch", "transformer_decoder_lm", "--chunk-size", "8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return preprocess(tmp_path_factory.mktemp("corpus"), 80)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run on streams, with a checkpoint in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(data, folder, *ARCH, "--stream", "--max-update", "7", "--save-interval-updates", "4")
    return folder


def test_a_resumed_run_on_streams_is_the_uninterrupted_one(data, run, tmp_path):
    middle = run / "checkpoint_1_4.pt"
    train(data, tmp_path, *ARCH, "--stream", "--max-update", "7", "--restore-file", str(middle))
    one, other = (
        torch.load(folder / "checkpoint_last.pt", weights_only=True) for folder in (tmp_path, run)
    )
    torch.testing.assert_close(one["model"], other["model"], rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_depend_on_pieces_and_is_that_of_fairseq(data, run):
    path, losses = run / "checkpoint_last.pt", []
    for piece in ("5", "64"):
        assert main(["evaluate-lm", "--cpu", str(path), "--piece", piece, "--segments", "1"]) == 0
        losses.append(json.loads((run / "results.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    of_fairseq = eval_lm(data, path, "--eval-streams", "1")
    assert of_fairseq["loss"] == pytest.approx(losses[0], rel=1e-4)


def test_a_longer_window_and_full_attention_are_options_of_evaluation(run):
    path, losses = run / "checkpoint_last.pt", []
    for size in ("1", "8", "full"):
        words = ["--chunk-size", size, "--segments", "1"]
        assert main(["evaluate-lm", "--cpu", str(path), *words]) == 0
        record = json.loads((run / "results.jsonl").read_text().splitlines()[-1])
        assert record["chunk_size"] == 8
        losses.append(record["loss"])
    assert len(set(losses)) == 3


def test_text_is_drawn_from_it(run, capsys):
    command = [
        "sample",
        "--cpu",
        str(run / "checkpoint_last.pt"),
        "--prompt",
        "alpha",
        "--tokens",
        "20",
    ]
    assert main([*command, "--temperature", "0"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("alpha")
    assert main([*command, "--temperature", "0", "--piece", "1"]) == 0
    assert capsys.readouterr().out == first


def test_inspect_draws_its_attention_only(run, tmp_path, capsys):
    assert main(["inspect", str(run / "checkpoint_last.pt"), "--output", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]
    assert imread(tmp_path / "attention.png").std() > 0
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_observed_weights_give_the_attended_values(causal, chunk_size):
    torch.manual_seed(0)
    config = TransformerConfig(
        model_dim=12, num_layers=2, attention_heads=2, chunk_size=chunk_size, causal=causal
    )
    stack = TransformerStack(config).double().eval()
    block, x_BLD = stack.blocks[0], torch.randn(1, 20, 12, dtype=torch.float64)
    with observed(stack) as (first, _), torch.no_grad():
        stack(x_BLD)
        normed_BLD = block.attention_norm(x_BLD)
        value = block.attention.qkv_proj(normed_BLD).unflatten(-1, (3, 2, 6))[0, :, 2]
    steps, attended = first.chunk_steps, []
    for start in range(0, 20, steps):
        weights_HLS = first.attention(0, start // steps)
        stop = min(start + steps, 20)
        seen = value[stop - weights_HLS.shape[2] : stop].transpose(0, 1)
        attended.append((weights_HLS @ seen).transpose(0, 1).flatten(1))
    expected, _ = block.attention(normed_BLD)
    torch.testing.assert_close(block.attention.out_proj(torch.cat(attended))[None], expected)


def test_what_it_cannot_be_is_refused_by_name(data, run, tmp_path):
    path = run / "checkpoint_last.pt"
    with pytest.raises(UserError, match="model._name=transformer_decoder_lm is not a Megalodon"):
        main(["convert", "to-released", str(path), str(tmp_path / "released")])
    with pytest.raises(UserError, match="no causal stack of Megalodon"):
        train(data, tmp_path / "two", *ARCH, "--chunk-parallel", "2", "--tokens-per-sample", "16")
    assert checkpoint.load(path, device=torch.device("cpu")).language_model.stack.causal
