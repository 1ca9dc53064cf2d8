"""Stochastic depth against its definition, and where a block applies it."""

import pytest
import torch

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.block import MegalodonBlock
from megalodon_tasks.models.layers.drop_path import drop_path

SIZES = {"model_dim": 8, "z_dim": 4, "value_dim": 8, "ffn_hidden_dim": 12, "cema_ndim": 2}


def test_keeps_or_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(4000, 3, 2)
    dropped = drop_path(branch, 0.25, training=True)
    kept = dropped[:, 0, 0] > 0
    torch.testing.assert_close(dropped, kept.view(-1, 1, 1) / 0.75 * branch)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.9, False)])
def test_is_nothing_outside_training_or_at_zero(probability, training):
    branch = torch.randn(5, 3)
    assert drop_path(branch, probability, training) is branch


def test_agrees_with_timm():
    from timm.layers import drop_path as timm_drop_path

    branch = torch.randn(64, 3, 2)
    torch.manual_seed(1)
    expected = timm_drop_path(branch, 0.3, training=True)
    torch.manual_seed(1)
    torch.testing.assert_close(drop_path(branch, 0.3, training=True), expected)


def test_grows_along_the_depth():
    config = MegalodonConfig(num_layers=5, drop_path=0.2)
    assert [config.drop_path_at(i) for i in range(5)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert MegalodonConfig(num_layers=1, drop_path=0.2).drop_path_at(0) == 0


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=f"model.drop_path={value} is not a probability"):
        MegalodonConfig(drop_path=value).validate()


def test_each_branch_of_a_block_is_dropped_by_itself():
    torch.manual_seed(0)
    config = MegalodonConfig(**SIZES, num_layers=2, drop_path=0.5)
    block = MegalodonBlock(config, layer_index=1).train()
    x = torch.randn(1, 6, 8).expand(200, 6, 8)
    changes = (block(x)[0] - x).flatten(1)
    untouched = (changes.abs().amax(1) == 0).float().mean().item()
    # of the others, those whose attention was kept differ from those whose attention was dropped
    kinds = torch.unique(changes.detach().round(decimals=4), dim=0)
    assert untouched == pytest.approx(0.5, abs=0.12)
    assert len(kinds) == 3
