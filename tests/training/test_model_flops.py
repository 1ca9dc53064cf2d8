"""Model FLOPs: counted by hand, only in training, and recorded with the utilisation."""

import json

import pytest
import torch
from torch import nn

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegaConfig, MegalodonConfig
from megalodon_tasks.models.mega import MegaSequenceClassifier
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack
from megalodon_tasks.training.model_flops import FlopCounter, block_flops, peak_flops
from tests.models.lm_cases import SIZES, make_model, make_tokens
from tests.recipes.lm_data import preprocess, train

BATCH, LENGTH = 2, 12
D, Z, V, F, N, H = 16, 8, 24, 20, 4, 4  # of SIZES, whose chunk is H
MATRICES = D * (V + Z + V + D) + V * D + 2 * D * F


def flops_per_step(keys, directions):
    return 2 * MATRICES + 2 * keys * (Z + V) + 12 * N * D * directions


@pytest.mark.parametrize(
    ("causal", "chunk", "keys"), [(True, 4, 2.5), (True, None, 6.5), (False, 4, 4), (False, 99, 12)]
)
def test_a_block_counts_matrices_attention_and_cema(causal, chunk, keys):
    config = MegalodonConfig(**(SIZES | {"chunk_size": chunk, "causal": causal}))
    model = SequenceClassifier(config, ClassifierInputs("tokens", 3, vocab_size=11))
    expected = flops_per_step(keys, 1 if causal else 2)
    assert block_flops(model.stack.blocks[0], LENGTH) == expected
    counter = FlopCounter(model)
    model.train()(make_tokens(BATCH, LENGTH))
    assert counter.take() == 3 * 2 * BATCH * LENGTH * expected
    assert counter.take() == 0
    model.eval()(make_tokens(BATCH, LENGTH))
    assert counter.take() == 0


def test_mega_counts_its_real_average():
    sizes = {name: SIZES[name] for name in SIZES if name not in ("num_heads", "norm_num_groups")}
    model = MegaSequenceClassifier(
        MegaConfig(**sizes), ClassifierInputs("tokens", 3, vocab_size=11)
    )
    block = model.stack.blocks[0]
    matrices = D * V + D * (D + Z + V + D) + V * D + 2 * D * F
    assert block_flops(block, LENGTH) == 2 * matrices + 2 * H * (Z + V) + 5 * 2 * D * N
    counter = FlopCounter(model)
    model.train()(make_tokens(BATCH, LENGTH))
    assert counter.take() > 0


@pytest.mark.parametrize(("causal", "keys"), [(True, 4 - 4 * 3 / 24), (False, 4)])
def test_a_transformer_counts_its_window(causal, keys):
    block = TransformerStack(TransformerConfig(**(SIZES | {"causal": causal}))).blocks[0]
    ffn = block.ffn.fc1.out_features
    assert block_flops(block, LENGTH) == 2 * (4 * D * D + 3 * D * ffn) + 2 * keys * 2 * D


@pytest.mark.parametrize(("cutoffs", "rows"), [(None, 11), ("6,9", 6 + 2)])
def test_the_output_of_a_language_model_counts(cutoffs, rows):
    model = make_model(adaptive_cutoffs=cutoffs)
    counter = FlopCounter(model)
    model.train()(make_tokens(BATCH, LENGTH))
    per_step = 2 * flops_per_step(2.5, 1) + 2 * rows * D
    assert counter.take() == 3 * BATCH * LENGTH * per_step


def test_other_models_count_nothing():
    model = nn.Linear(3, 3)
    counter = FlopCounter(model)
    model.train()(torch.ones(1, 3))
    assert counter.take() == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4", 312e12),
        ("X", None),
    ],
)
def test_known_devices(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("given", [(), ("--peak-flops", "1e9")])
def test_training_records_its_speed(tmp_path, given):
    data = preprocess(tmp_path / "corpus", 20)
    train(data, tmp_path / "run", "--log-interval", "2", *given)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    speeds = [line for line in lines if line["event"] == "train_inner"]
    assert len(speeds) == 3
    for line in speeds:
        assert line["model_flops_per_second"] > 0
        assert line.get("mfu") == (
            pytest.approx(line["model_flops_per_second"] / 1e9) if given else None
        )
