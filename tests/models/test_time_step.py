"""Classifying a signal at a fraction of the sampling rate of training."""

import pytest
import torch

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.rotary import RotaryEmbedding

LENGTH = 512


def slow_signal(length: int = LENGTH) -> torch.Tensor:
    """(1, length) of two slow sines."""
    t = torch.arange(length, dtype=torch.float64)
    return (torch.sin(t / 40) + 0.5 * torch.cos(t / 75)).unsqueeze(0)


def layer(bidirectional: bool) -> ComplexEMA:
    torch.manual_seed(0)
    return ComplexEMA(6, 4, bidirectional).double()


def held(signal: torch.Tensor, factor: int) -> torch.Tensor:
    """Average each ``factor`` samples: the same signal at the lower rate."""
    return signal.unflatten(1, (-1, factor)).mean(dim=2)


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("factor", [2, 4])
def test_cema_of_a_slower_sampled_signal_is_that_of_the_signal(bidirectional, factor):
    cema = layer(bidirectional)
    x_BLD = slow_signal().unsqueeze(-1).repeat(1, 1, 6)
    expected = held(cema(x_BLD)[0], factor)
    plain = cema(held(x_BLD, factor))[0]
    cema.time_step = factor
    adapted = cema(held(x_BLD, factor))[0]
    assert adapted.shape == expected.shape
    assert relative(adapted, expected) < 0.02
    # what it would be without the change
    assert relative(plain, expected) > 5 * relative(adapted, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_response_to_a_constant_does_not_change(bidirectional):
    cema = layer(bidirectional)
    with torch.no_grad():
        cema.alpha.fill_(1.0)
        cema.delta.fill_(1.0)  # |q| = 0.47: settled well within the sequence
    x_BLD = torch.ones(1, 256, 6, dtype=torch.float64)
    expected = cema(x_BLD)[0][:, 128]
    cema.time_step = 2
    torch.testing.assert_close(cema(x_BLD[:, :128])[0][:, 64], expected)


def test_padding_and_state_are_those_of_the_held_steps():
    cema = layer(False)
    cema.time_step = 2
    x_BLD = torch.randn(2, 20, 6, dtype=torch.float64)
    mask_BL = torch.arange(20) >= torch.tensor([[13], [20]])
    y_BLD, _ = cema(x_BLD, mask_BL)
    assert not y_BLD[mask_BL].any()
    whole, last = cema(x_BLD)
    first, state = cema(x_BLD[:, :7])
    second, state = cema(x_BLD[:, 7:], None, state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(state, last)


def test_a_step_advances_rope_by_so_many_positions():
    rotary = RotaryEmbedding(8, 10_000.0)
    x_BLHK = torch.randn(1, 10, 1, 8)
    spread = torch.zeros(1, 20, 1, 8)
    spread[:, ::2] = x_BLHK
    expected = rotary(spread, 0, 20)[:, ::2]
    rotary.time_step = 2
    torch.testing.assert_close(rotary(x_BLHK, 0, 10), expected)


def classifier(chunk_size: int | None) -> SequenceClassifier:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "model_dim": 8, "value_dim": 16, "z_dim": 8, "ffn_hidden_dim": 20}
    config = MegalodonConfig(**sizes, num_heads=1, cema_ndim=4, chunk_size=chunk_size)
    return SequenceClassifier(config, ClassifierInputs("waveform", num_classes=5)).double().eval()


@pytest.mark.parametrize("chunk_size", [None, 64])
def test_scores_at_half_the_rate_are_nearly_those_at_the_full_rate(chunk_size):
    model = classifier(chunk_size)
    signal = slow_signal()
    with torch.no_grad():
        expected = model(signal)
        plain = model(held(signal, 2))
        model.set_time_step(2)
        adapted = model(held(signal, 2))
        model.set_time_step(1)
        assert torch.equal(model(signal), expected)
    assert relative(adapted, expected) < 0.05
    assert relative(plain, expected) > 3 * relative(adapted, expected)


@pytest.mark.parametrize("factor", [0, -1, 3])
def test_impossible_factors_are_refused(factor):
    with pytest.raises(ValueError, match=f"time step {factor} must be at least 1 and divide"):
        classifier(64).set_time_step(factor)


def test_symbols_have_no_sampling_rate():
    config = MegalodonConfig(model_dim=8, value_dim=16, z_dim=8, ffn_hidden_dim=20, num_layers=1)
    model = SequenceClassifier(config, ClassifierInputs("tokens", num_classes=2, vocab_size=9))
    with pytest.raises(
        ValueError, match="time step 2: only models of pixels or waveforms have one"
    ):
        model.set_time_step(2)
