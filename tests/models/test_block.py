"""One block: residuals, feed-forward layer, and stochastic depth against its definition and timm's."""

import pytest
import torch
from timm.layers import drop_path as timm_drop_path
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.block import MegalodonBlock, drop_path

SIZES = {"model_dim": 8, "z_dim": 4, "value_dim": 8, "ffn_hidden_dim": 12, "cema_ndim": 2}


def make_block(**changes):
    torch.manual_seed(0)
    return MegalodonBlock(MegalodonConfig(**SIZES, num_layers=2, **changes), layer_index=1)


def test_feed_forward_residual_is_two_hop():
    """Without its feed-forward branch a block returns its input, not what its attention half gave."""
    block = make_block()
    torch.nn.init.zeros_(block.feed_forward.fc2.weight)
    x = torch.randn(3, 6, 8)
    assert torch.equal(block(x)[0], x)


@pytest.mark.parametrize(
    ("choice", "activation"),
    [
        ({}, lambda x_BLD: F.rms_norm(x_BLD, (8,), eps=1e-5)),
        ({"cema_activation": "rmsnorm"}, lambda x_BLD: F.rms_norm(x_BLD, (8,), eps=1e-5)),
        ({"cema_activation": "silu"}, F.silu),
    ],
)
def test_what_follows_cema(choice, activation):
    """Seen through the skip branch, with the attended values switched off."""
    layer = make_block(**choice).attention
    torch.nn.init.zeros_(layer.out_proj.weight)
    x_BLD = torch.randn(2, 7, 8)
    averaged_BLD, _ = layer.cema(layer.norm(x_BLD)[0])
    expected = layer.skip_proj(activation(averaged_BLD))
    torch.testing.assert_close(layer(x_BLD)[0], expected, rtol=1e-5, atol=1e-6)


def test_silu_after_cema_has_no_weight():
    names = dict(make_block(cema_activation="silu").named_parameters())
    assert len(dict(make_block().named_parameters())) == len(names) + 1
    assert not any("cema_norm" in name for name in names)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_feed_forward_by_its_definition(swiglu, rescale):
    layer = make_block(swiglu=swiglu, rescale_nffn=rescale).feed_forward
    y = torch.randn(3, 6, 8)
    normed = F.layer_norm(y, (8,))
    hidden = F.silu(normed @ layer.fc1.weight.T)
    if swiglu:
        hidden = hidden * (normed @ layer.fc3.weight.T)
    scale = 0.1 * 0.5 if rescale else 1.0
    torch.testing.assert_close(layer(y), scale * hidden @ layer.fc2.weight.T)


def test_drop_path_drops_whole_samples_and_preserves_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(4000, 3, 2)
    result = drop_path(branch, 0.25, training=True)
    survived = result[:, 0, 0] > 0
    torch.testing.assert_close(result, survived.view(-1, 1, 1) / 0.75 * branch)
    assert result.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_agrees_with_timm():
    branch = torch.randn(64, 3, 2)
    torch.manual_seed(1)
    expected = timm_drop_path(branch, 0.3, training=True)
    torch.manual_seed(1)
    torch.testing.assert_close(drop_path(branch, 0.3, training=True), expected)


def test_drop_path_grows_along_the_depth():
    config = MegalodonConfig(num_layers=5, drop_path=0.2)
    assert [config.drop_path_at(i) for i in range(5)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert MegalodonConfig(num_layers=1, drop_path=0.2).drop_path_at(0) == 0


def test_each_branch_of_a_block_is_dropped_independently():
    block = make_block(drop_path=0.5)
    x = torch.randn(1, 6, 8).expand(200, 6, 8)
    changes = (block(x)[0] - x).flatten(1)
    unchanged = (changes.abs().amax(1) == 0).float().mean().item()
    assert unchanged == pytest.approx(0.5, abs=0.12)
    # Of the other samples, some had their attention branch and some had not.
    assert len(torch.unique(changes.detach().round(decimals=4), dim=0)) == 3
    assert torch.equal(*block.eval()(x[:2])[0])
