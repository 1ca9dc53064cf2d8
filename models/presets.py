"""Sizes of every named model, as data: the one table behind ``--arch`` and a YAML's ``model._name``.

Source: Mega (arXiv 2209.10655), table 8, whose architecture sizes the paper takes over (appendix C).
Feed-forward width: 2.5 d, which gives back the parameters of the update gate that Megalodon removed
and matches the widths of the authors' code after that removal.  Norm groups are published nowhere.
"""

_LRA_COMMON = {"num_heads": 1, "cema_ndim": 16}

CLASSIFIER_PRESETS: dict[str, dict[str, object]] = {
    "megalodon_lra_listops": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 80, "value_dim": 160, "z_dim": 64, "ffn_hidden_dim": 200},
    "megalodon_lra_text": _LRA_COMMON
    | {"num_layers": 4, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320},
    "megalodon_lra_retrieval": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320},
    "megalodon_lra_image": _LRA_COMMON
    | {"num_layers": 8, "model_dim": 160, "value_dim": 320, "z_dim": 96, "ffn_hidden_dim": 400},
    "megalodon_lra_pathfinder": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320},
    "megalodon_lra_pathx": _LRA_COMMON
    | {"num_layers": 4, "model_dim": 64, "value_dim": 128, "z_dim": 32, "ffn_hidden_dim": 160},
}
