"""Sizes of every named model, as data: the one table for ``--arch`` and a YAML's ``model._name``.

Source: Mega (arXiv 2209.10655), table 8, whose architecture sizes the paper takes over (appendix C).
Feed-forward width: 2.5 d, which replaces the parameters of the update gate that Megalodon removed, and
matches the widths in the authors' code after that removal.

Groups of the norm over time are not published.  One per feature is the default of the authors' code.  It
is the worst of four sizes on the demos of Text and Retrieval (see README.md); their groups have 16.

Raw speech: of the two feed-forward widths in the authors' code, 2.5 d (326K parameters) and Mega's 2 d
(305K), the latter matches the published 300K.

ImageNet: Mega's table 11 (base) and its repository (tiny), with 2.5 d.  Each group of the norm over time
has 32 features, as in the released language models; one group per feature, the default of the interim
code, makes the norm slower.
"""

_LRA_COMMON = {"num_heads": 1, "cema_ndim": 16}
_SPEECH_COMMON = {"num_layers": 6, "num_heads": 1, "cema_ndim": 16, "chunk_size": 1000}
_IMAGENET_COMMON = {"num_layers": 12, "num_heads": 1, "cema_ndim": 16}

CLASSIFIER_PRESETS: dict[str, dict[str, object]] = {
    "megalodon_lra_listops": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 80, "value_dim": 160, "z_dim": 64, "ffn_hidden_dim": 200},
    "megalodon_lra_text": _LRA_COMMON
    | {"num_layers": 4, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320}
    | {"norm_num_groups": 8},
    "megalodon_lra_retrieval": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320}
    | {"norm_num_groups": 8},
    "megalodon_lra_image": _LRA_COMMON
    | {"num_layers": 8, "model_dim": 160, "value_dim": 320, "z_dim": 96, "ffn_hidden_dim": 400},
    "megalodon_lra_pathfinder": _LRA_COMMON
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 320},
    "megalodon_lra_pathx": _LRA_COMMON
    | {"num_layers": 4, "model_dim": 64, "value_dim": 128, "z_dim": 32, "ffn_hidden_dim": 160},
    "megalodon_sc_raw_base": _SPEECH_COMMON
    | {"model_dim": 60, "value_dim": 120, "z_dim": 30, "ffn_hidden_dim": 120},
    "megalodon_sc_raw_big": _SPEECH_COMMON
    | {"model_dim": 72, "value_dim": 144, "z_dim": 36, "ffn_hidden_dim": 144},
    "megalodon_imagenet_tiny": _IMAGENET_COMMON
    | {"model_dim": 192, "value_dim": 384, "z_dim": 64, "ffn_hidden_dim": 480}
    | {"norm_num_groups": 6},
    "megalodon_imagenet_base": _IMAGENET_COMMON
    | {"model_dim": 768, "value_dim": 1536, "z_dim": 256, "ffn_hidden_dim": 1920}
    | {"norm_num_groups": 24},
}

# Mega, to compare with: its table 8; for images table 11 and its repository (tiny).  Its recipes for
# images and speech put attention chunks of the whole sequence, which is full attention.
_MEGA_SYMBOLS = {"prenorm": False, "attention_activation": "softmax", "norm_type": "scale"}
_MEGA_SIGNALS = {"prenorm": True, "attention_activation": "laplace", "norm_type": "batch"}
_MEGA_SPEECH = _MEGA_SIGNALS | {"num_layers": 6, "chunk_size": 1000, "max_positions": 16000}
_MEGA_IMAGENET = _MEGA_SIGNALS | {"num_layers": 12, "norm_type": "layer", "max_positions": 196}

MEGA_PRESETS: dict[str, dict[str, object]] = {
    "mega_lra_listops": _MEGA_SYMBOLS
    | {"num_layers": 6, "model_dim": 80, "value_dim": 160, "z_dim": 64, "ffn_hidden_dim": 160}
    | {"norm_type": "layer", "max_positions": 2002},
    "mega_lra_text": _MEGA_SYMBOLS
    | {"num_layers": 4, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 256}
    | {"max_positions": 4002},
    "mega_lra_retrieval": _MEGA_SYMBOLS
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 256}
    | {"max_positions": 4002},
    "mega_lra_image": _MEGA_SIGNALS
    | {"num_layers": 8, "model_dim": 160, "value_dim": 320, "z_dim": 96, "ffn_hidden_dim": 320}
    | {"max_positions": 1024},
    "mega_lra_pathfinder": _MEGA_SIGNALS
    | {"num_layers": 6, "model_dim": 128, "value_dim": 256, "z_dim": 64, "ffn_hidden_dim": 256}
    | {"max_positions": 1024},
    "mega_lra_pathx": _MEGA_SIGNALS
    | {"num_layers": 4, "model_dim": 64, "value_dim": 128, "z_dim": 32, "ffn_hidden_dim": 128}
    | {"norm_type": "syncbatch", "max_positions": 16384},
    "mega_sc_raw_base": _MEGA_SPEECH
    | {"model_dim": 60, "value_dim": 120, "z_dim": 30, "ffn_hidden_dim": 120},
    "mega_sc_raw_big": _MEGA_SPEECH
    | {"model_dim": 72, "value_dim": 144, "z_dim": 36, "ffn_hidden_dim": 144},
    "mega_imagenet_tiny": _MEGA_IMAGENET
    | {"model_dim": 192, "value_dim": 384, "z_dim": 64, "ffn_hidden_dim": 384},
    "mega_imagenet_base": _MEGA_IMAGENET
    | {"model_dim": 768, "value_dim": 1536, "z_dim": 256, "ffn_hidden_dim": 1536},
}

# Language models.  The released sizes and pg19: the authors' table of models (mega.py of
# github.com/XuezheMax/megalodon at 53cbaa3a).  Its two 7B models differ in the feed-forward layer; this
# is the one with SwiGLU, as in the paper, with the paper's chunk of 4096 and RoPE base of 100,000
# (section 4.1).  wikitext103 and enwik8: Mega's table 9 and repository, with v = 2048, which gives the
# published 252M (the table's 1536 does not), and the feed-forward width above.
LM_PRESETS: dict[str, dict[str, object]] = {
    "megalodon_lm_wikitext103": {"num_layers": 16, "model_dim": 1024, "num_heads": 1, "z_dim": 256}
    | {"value_dim": 2048, "ffn_hidden_dim": 2560, "chunk_size": 1024, "norm_num_groups": 32}
    | {"scale_emb": True, "share_emb": True, "adaptive_cutoffs": "20000,60000"}
    | {"adaptive_dropout": 0.2},
    "megalodon_lm_enwik8": {"num_layers": 12, "model_dim": 512, "num_heads": 1, "z_dim": 128}
    | {"value_dim": 1024, "ffn_hidden_dim": 1280, "chunk_size": 2048, "norm_num_groups": 16}
    | {"scale_emb": True, "share_emb": True},
    "megalodon_lm_pg19": {"num_layers": 24, "model_dim": 2048, "num_heads": 2, "z_dim": 512}
    | {"value_dim": 4096, "ffn_hidden_dim": 3584, "chunk_size": 2048, "norm_num_groups": 64}
    | {"scale_emb": True, "share_emb": True, "swiglu": True},
    "megalodon_lm_200m": {"num_layers": 12, "model_dim": 1024, "num_heads": 1, "z_dim": 256}
    | {"value_dim": 2048, "ffn_hidden_dim": 2560, "chunk_size": 2048, "norm_num_groups": 32},
    "megalodon_lm_1.3b": {"num_layers": 24, "model_dim": 2048, "num_heads": 2, "z_dim": 512}
    | {"value_dim": 4096, "ffn_hidden_dim": 4864, "chunk_size": 2048, "norm_num_groups": 64},
    "megalodon_lm_7b": {"num_layers": 32, "model_dim": 4096, "num_heads": 4, "z_dim": 1024}
    | {"value_dim": 8192, "ffn_hidden_dim": 8192, "chunk_size": 4096, "norm_num_groups": 64}
    | {"swiglu": True, "rope_base": 100000.0},
}

# Transformers of the same sizes, see TransformerConfig.  That of 7B is Llama 2 (arXiv 2307.09288), whose
# attention is full.
TRANSFORMER_CLASSIFIER_PRESETS: dict[str, dict[str, object]] = {
    name.replace("megalodon_", "transformer_"): sizes for name, sizes in CLASSIFIER_PRESETS.items()
}
TRANSFORMER_LM_PRESETS: dict[str, dict[str, object]] = {
    f"transformer_lm_{name}": LM_PRESETS[f"megalodon_lm_{name}"]
    for name in ("wikitext103", "enwik8", "pg19")
} | {
    "transformer_lm_7b": {"num_layers": 32, "model_dim": 4096, "transformer_ffn_dim": 11008},
}

# Encoder-decoders.  Mega's architectures for WMT of the same names (fairseq/models/mega.py of
# github.com/facebookresearch/mega), with the feed-forward width above in place of its 2 d.
SEQ2SEQ_PRESETS: dict[str, dict[str, object]] = {
    "megalodon_wmt_en_de": {"num_layers": 6, "model_dim": 512, "num_heads": 1, "z_dim": 128}
    | {"value_dim": 1024, "ffn_hidden_dim": 1280, "cema_ndim": 16, "norm_num_groups": 16},
    "megalodon_wmt_en_de_big": {"num_layers": 6, "model_dim": 1024, "num_heads": 1, "z_dim": 256}
    | {"value_dim": 2048, "ffn_hidden_dim": 2560, "cema_ndim": 16, "norm_num_groups": 32},
}
