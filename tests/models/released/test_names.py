"""The released format: a model computed by other people's code is reproduced, and bad files refused."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.models.released.names import load_released, released_name, to_released

GOLDEN = Path(__file__).parents[2] / "data" / "lm_single_chunk.pt"


@pytest.fixture(scope="module")
def golden() -> dict:
    return torch.load(GOLDEN, weights_only=True)


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def test_golden_logits_loss_and_gradients(golden):
    model = load_released(golden["state"], golden["config"])
    logits, _ = model(golden["tokens"])
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-4)
    loss = loss_of(logits, golden["tokens"])
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-5)
    loss.backward()
    ours = {released_name(n): p.grad for n, p in model.named_parameters()}
    assert ours.keys() == golden["grads"].keys()
    for name, expected in golden["grads"].items():
        error = (ours[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def test_golden_in_pieces(golden):
    model = load_released(golden["state"], golden["config"])
    outputs, state = [], None
    for piece in golden["tokens"].split([5, 1, 30, 12], dim=1):
        logits, state = model(piece, state)
        outputs.append(logits)
    torch.testing.assert_close(torch.cat(outputs, 1), golden["logits"], rtol=1e-4, atol=1e-4)


def test_round_trip(golden):
    back = to_released(load_released(golden["state"], golden["config"]))
    assert back.keys() == golden["state"].keys()
    for name, tensor in golden["state"].items():
        torch.testing.assert_close(back[name], tensor)


def test_optional_keys_may_be_absent(golden):
    optional = ("dropout", "attention_dropout", "hidden_dropout", "head_dim", "attention_window")
    config = {k: v for k, v in golden["config"].items() if k not in (*optional, "rope_base")}
    logits, _ = load_released(golden["state"], config)(golden["tokens"])
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-4)


def test_tied_embeddings_stay_tied(golden):
    state = golden["state"] | {"output.output.weight": golden["state"]["embed.weight"]}
    model = load_released(state, golden["config"] | {"share_emb": True})
    assert model.output.weight is model.embedding.weight
    with pytest.raises(ValueError, match="share_emb=True, but embed.weight"):
        load_released(golden["state"], golden["config"] | {"share_emb": True})


@pytest.mark.parametrize("left_out", ["output.output.weight", "embed.weight"])
def test_a_tied_matrix_may_be_listed_once(golden, left_out):
    state = golden["state"] | {"output.output.weight": golden["state"]["embed.weight"]}
    config = golden["config"] | {"share_emb": True}
    expected, _ = load_released(state, config)(golden["tokens"])
    del state[left_out]
    model = load_released(state, config)
    assert model.output.weight is model.embedding.weight
    torch.testing.assert_close(model(golden["tokens"])[0], expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"missing {left_out}"):
        load_released(state, golden["config"])


def test_a_checkpoint_without_the_tied_matrix_is_refused(golden):
    state = {
        n: t
        for n, t in golden["state"].items()
        if not n.endswith(("embed.weight", "output.weight"))
    }
    with pytest.raises(ValueError, match="missing embed.weight; missing output.output.weight"):
        load_released(state, golden["config"] | {"share_emb": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.1.mega.wz.bias"), "missing layers.1.mega.wz.bias"),
        (lambda s: s.update({"layers.9.x": torch.zeros(1)}), "surplus layers.9.x"),
        (
            lambda s: s.update({"embed.weight": torch.zeros(3, 24)}),
            r"embed.weight has shape \(3, 24\), expected \(40, 24\)",
        ),
        (
            lambda s: s.update({"rope.freqs": torch.ones(4)}),
            "rope.freqs does not belong to rope_base",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(golden, change, message):
    state = dict(golden["state"])
    change(state)
    with pytest.raises(ValueError, match=message):
        load_released(state, golden["config"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 3}, "unknown keys in the released configuration: colour"),
        ({"norm_affine": False}, "norm_affine=False"),
        ({"attention_window": 7}, "attention_window=7"),
        ({"output_size": 9}, "output_size=9 differs from vocab_size=40"),
        ({"num_heads": 3}, "model.num_heads=3 does not divide"),
    ],
)
def test_configurations_that_cannot_be_honoured_are_refused(golden, change, message):
    with pytest.raises(ValueError, match=message):
        load_released(golden["state"], golden["config"] | change)
