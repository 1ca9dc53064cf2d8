"""Every impossible configuration is refused with the field, the value and a remedy."""

import pytest

from megalodon_tasks.models.config import MegalodonConfig


def test_defaults_are_valid():
    MegalodonConfig().validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 0}, r"model\.chunk_size=0 .*full attention"),
        ({"chunk_size": -4}, r"model\.chunk_size=-4"),
        ({"num_heads": 3}, r"model\.num_heads=3 does not divide model\.z_dim=64"),
        ({"num_heads": 2, "z_dim": 64, "value_dim": 31}, r"does not divide model\.value_dim=31"),
        ({"num_heads": 64}, r"z_dim=64 / model\.num_heads=64 is odd"),
        ({"norm_num_groups": 7}, r"model\.norm_num_groups=7 does not divide model\.model_dim=128"),
        ({"model_dim": 0}, r"model\.model_dim=0 must be a positive integer"),
        ({"num_layers": -1}, r"model\.num_layers=-1"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0 must be in"),
        ({"attention_dropout": -0.1}, r"model\.attention_dropout=-0\.1"),
        ({"drop_path": 1.0}, r"model\.drop_path=1\.0 must be in"),
        ({"norm_eps": 0.0}, r"model\.norm_eps=0\.0 must be greater than 0"),
        ({"init_mode": "ones"}, r"model\.init_mode='ones'.*he"),
        ({"cema_activation": "relu"}, r"model\.cema_activation='relu'.*rmsnorm.*silu"),
        ({"cema_init": "s4d"}, r"model\.cema_init='s4d' is unknown.*released"),
        ({"cema_init": "spread"}, r"model\.cema_memory=None with model\.cema_init=spread"),
        ({"cema_init": "spread", "cema_memory": 3}, r"model\.cema_memory=3 .*at least 4 steps"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MegalodonConfig(**changes).validate()
