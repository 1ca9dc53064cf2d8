"""Model-parallel shards: cut as the release cuts them, and joined to the same model."""

import pytest
import torch

from megalodon_tasks.models.released.names import config_to_released, load_released, shard_axis
from megalodon_tasks.models.released.shards import merge_shards, split_shards
from tests.models.released.test_names import GOLDEN

# What each device of two holds, from the release's parallel layers.
LOCAL_SHAPES = {
    "embed.weight": (40, 12),
    "rope.freqs": (4,),
    "layers.1.mega.timenorm.weight": (12,),
    "layers.1.mega.cema.gamma": (12, 4, 2),
    "layers.1.mega.rmsnorm.weight": (24,),
    "layers.1.mega.wv.weight": (16, 24),
    "layers.1.mega.wz.bias": (8,),
    "layers.1.mega.wh1.weight": (12, 24),
    "layers.1.mega.wh2.weight": (24, 16),
    "layers.1.mega.gamma": (2, 8),
    "layers.1.nffn.norm.bias": (24,),
    "layers.1.nffn.fc2.weight": (24, 20),
    "layers.1.nffn.fc3.weight": (20, 24),
    "output.final_norm.bias": (12,),
    "output.output.weight": (40, 12),
}


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN, weights_only=True)


@pytest.mark.parametrize("name", LOCAL_SHAPES)
def test_shapes_on_a_device(golden, name):
    shards = split_shards(golden["state"], 2)
    assert [tuple(shard[name].shape) for shard in shards] == [LOCAL_SHAPES[name]] * 2


@pytest.mark.parametrize("count", [1, 2, 4])
def test_joined_shards_are_the_whole(golden, count):
    merged = merge_shards(split_shards(golden["state"], count))
    assert merged.keys() == golden["state"].keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in golden["state"].items())


def test_joined_shards_give_the_logits(golden):
    model = load_released(merge_shards(split_shards(golden["state"], 2)), golden["config"])
    torch.testing.assert_close(model(golden["tokens"])[0], golden["logits"], rtol=1e-4, atol=1e-4)


def test_each_tensor_that_grows_with_the_model_is_cut(golden):
    whole = {name for name in golden["state"] if shard_axis(name) is None}
    ends = {name.split(".", 2)[-1] if name.startswith("layers") else name for name in whole}
    assert ends == {"rope.freqs", "mega.rmsnorm.weight", "nffn.norm.weight", "nffn.norm.bias"}


def test_shards_that_do_not_fit_are_refused(golden):
    first, second = split_shards(golden["state"], 2)
    name = "layers.2.mega.wz.weight"
    without = {n: t for n, t in second.items() if n != name}
    with pytest.raises(ValueError, match=f"{name} is missing in shard 1"):
        merge_shards([first, without])
    with pytest.raises(ValueError, match=rf"{name} has shapes \[\(3, 24\), \(8, 24\)\]"):
        merge_shards([first, second | {name: torch.zeros(3, 24)}])
    name = "layers.0.mega.rmsnorm.weight"
    with pytest.raises(ValueError, match=f"{name} must be the same in every shard"):
        merge_shards([first, second | {name: torch.ones(24)}])
    with pytest.raises(ValueError, match="5 shards do not divide embed.weight"):
        split_shards(golden["state"], 5)


def test_the_configuration_comes_back(golden):
    config = config_to_released(load_released(golden["state"], golden["config"]))
    known = {key: value for key, value in golden["config"].items() if key in config}
    assert {key: config[key] for key in known} == known
    load_released(golden["state"], config)


@pytest.mark.parametrize("key", ["vocab_size", "norm_num_groups", "num_layers", "chunk_size"])
def test_a_configuration_without_sizes_is_refused(golden, key):
    config = {k: v for k, v in golden["config"].items() if k != key}
    with pytest.raises(ValueError, match=f"the released configuration lacks {key}"):
        load_released(golden["state"], config)


def test_full_attention_has_no_released_form(golden):
    model = load_released(golden["state"], golden["config"])
    model.config.chunk_size = None
    with pytest.raises(ValueError, match="the released model has no full attention"):
        config_to_released(model)
