"""How long CEMA remembers at the start of training."""

import pytest
import torch

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.real_ema import RealEMA
from megalodon_tasks.models.stack import MegalodonStack


def time_constants(layer: ComplexEMA) -> torch.Tensor:
    """Steps after which the response to an impulse has fallen by a factor e, (rows, h), sorted."""
    forgotten = torch.sigmoid(layer.alpha.double()) * torch.sigmoid(layer.delta.double())
    return (-1 / torch.log1p(-forgotten))[..., 0].sort(dim=1).values


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("memory", [4, 64, 4096])
@pytest.mark.parametrize("layer_type", [ComplexEMA, RealEMA])
def test_spread_reaches_from_four_steps_to_the_memory(layer_type, bidirectional, memory):
    tau = time_constants(layer_type(6, 16, bidirectional, memory=memory))
    expected = torch.linspace(4, memory, 16, dtype=torch.float64)
    torch.testing.assert_close(tau, expected.expand_as(tau), rtol=1e-3, atol=0.0)


def test_response_to_an_impulse_lasts_as_long_as_the_memory():
    torch.manual_seed(0)
    x = torch.zeros(1, 400, 8)
    x[:, 0] = 1.0
    late = []
    for memory in (None, 64):
        layer = ComplexEMA(8, 16, False, memory=memory)
        torch.nn.init.zeros_(layer.omega)
        y = layer(x)[0].detach().abs().mean(dim=(0, 2))
        late.append(float(y[64] / y[0]))
    assert late[0] < 1e-6 < 1e-2 < late[1]


def test_components_of_a_feature_have_their_memories_in_orders_of_their_own():
    delta = ComplexEMA(32, 16, False, memory=64).delta[..., 0]
    longest = delta.argmin(dim=1)
    assert len(longest.unique()) > 4


def test_other_parameters_do_not_depend_on_the_memory():
    layers = []
    for memory in (None, 64):
        torch.manual_seed(3)
        layers.append(ComplexEMA(6, 4, True, memory=memory))
    released, spread = (layer.state_dict() for layer in layers)
    differ = {name for name in released if not torch.equal(released[name], spread[name])}
    assert differ == {"delta"}


def test_stack_takes_it_from_the_configuration():
    sizes = {"model_dim": 16, "num_layers": 2, "z_dim": 8, "value_dim": 16, "ffn_hidden_dim": 16}
    config = MegalodonConfig(**sizes, cema_init="spread", cema_memory=100)
    for block in MegalodonStack(config).blocks:
        tau = time_constants(block.attention.cema)
        torch.testing.assert_close(tau[:, -1], torch.full_like(tau[:, -1], 100), rtol=1e-3, atol=0)
    # the authors' start stays reachable by name, whatever the memory says
    config.cema_init = "released"
    stack = MegalodonStack(config)
    assert time_constants(stack.blocks[0].attention.cema).max() < 10
