"""Translate between the names and settings of released language models and ours.

Tensors have the same shapes on both sides; only their names differ.  A released checkpoint lists a tied
output matrix twice; files that store what shares memory only once, as ``safetensors.torch.save_model``
writes them, list it once.  It also holds the constant ``rope.freqs``, which is not a parameter here: it
is checked against the configured base if it is present.
Names and configuration keys: github.com/XuezheMax/megalodon at 53cbaa3a.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch

from megalodon_tasks.models.config import ABLATIONS, MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM

# Our module or parameter, without the number of its block -> the released one, and the axis along which
# model-parallel training cuts its tensors (None: every device holds all of them).  Source of the axes:
# the released modules that name a parallel layer.
_NAMES: dict[str, tuple[str, int | None]] = {
    "attention.norm": ("mega.timenorm", 0),
    "attention.cema": ("mega.cema", 0),
    "attention.cema_norm": ("mega.rmsnorm", None),
    "attention.v_proj": ("mega.wv", 0),
    "attention.z_proj": ("mega.wz", 0),
    "attention.gate_proj": ("mega.wr", 0),
    "attention.skip_proj": ("mega.wh1", 0),
    "attention.out_proj": ("mega.wh2", 1),
    "attention.qk_scale": ("mega.gamma", 1),
    "attention.qk_bias": ("mega.beta", 1),
    "feed_forward.norm": ("nffn.norm", None),
    "feed_forward.fc1": ("nffn.fc1", 0),
    "feed_forward.fc2": ("nffn.fc2", 1),
    "feed_forward.fc3": ("nffn.fc3", 0),
    "feed_forward.layer_scale": ("nffn.alpha", None),
    "embedding": ("embed", 1),
    "stack.norm": ("output.final_norm", 0),
    "output": ("output.output", 1),
}
_AXES = dict(_NAMES.values())
_TIED = ("embed.weight", "output.output.weight")
# Keys of a released configuration that describe how the model was trained or run.
_IGNORED_KEYS = ("efficient_attn", "layerwise_ckpt", "head_dim", "attention_window", "output_size")
# Keys that describe the model and are no fields of MegalodonConfig.
_EXTRA_KEYS = ("vocab_size", "scale_emb", "share_emb", "norm_affine")
# Keys whose defaults differ between the two projects.
_REQUIRED_KEYS = (
    "vocab_size", "model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "ffn_hidden_dim",
    "cema_ndim", "chunk_size", "norm_num_groups",
)  # fmt: skip


def released_name(name: str) -> str:
    """Return the released name of our parameter ``name``, such as ``layers.0.mega.wz.weight``."""
    layer = ""
    if name.startswith("stack.blocks."):
        index, _, name = name.removeprefix("stack.blocks.").partition(".")
        layer = f"layers.{index}."
    key = _key(name, _NAMES)
    return layer + _NAMES[key][0] + name.removeprefix(key)


def shard_axis(name: str) -> int | None:
    """Return the axis along which the tensor of this released name is cut; None if it is not cut."""
    if name.startswith("layers."):
        name = name.split(".", 2)[-1]
    return _AXES.get(_key(name, _AXES))


def _key(name: str, table: Mapping[str, object]) -> str:
    """Return the entry of ``table`` that is ``name`` or the module of it."""
    return name if name in table else name.rpartition(".")[0]


def config_from_released(config: Mapping[str, object]) -> MegalodonConfig:
    """Convert a released configuration.

    Raises ``ValueError`` naming a key that is missing, unknown, or has an unsupported value.
    """
    missing = [key for key in _REQUIRED_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(f"the released configuration lacks {', '.join(missing)}; add these keys")
    ours = {field.name for field in fields(MegalodonConfig)}
    unknown = sorted(set(config) - ours - set(_EXTRA_KEYS) - set(_IGNORED_KEYS))
    if unknown:
        raise ValueError(f"unknown keys in the released configuration: {', '.join(unknown)}")
    if not config.get("norm_affine", True):
        raise ValueError("norm_affine=False: norms without weights are not supported")
    if config.get("attention_window") is not None:
        raise ValueError(
            f"attention_window={config['attention_window']}: only chunk-wise attention is supported"
        )
    if config.get("output_size", -1) not in (-1, config["vocab_size"]):
        raise ValueError(
            f"output_size={config['output_size']} differs from vocab_size={config['vocab_size']}"
        )
    values = {key: value for key, value in config.items() if key in ours and value is not None}
    result = MegalodonConfig(**values, causal=True)
    result.validate()
    return result


def load_released(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, object]) -> CausalLM:
    """Build the model of a released checkpoint.

    state_dict: released names -> tensors of any floating dtype, which the model keeps.  config: the
    released model configuration as a plain dict; keys that do not shape the model are optional.
    Raises ``ValueError`` naming every missing, surplus or misshapen tensor.
    """
    ours = config_from_released(config)
    if ours.num_layers > len(state_dict):
        raise ValueError(
            f"num_layers={ours.num_layers}, but the released checkpoint has {len(state_dict)} tensors: "
            "the configuration is of another model"
        )
    options = {key: bool(config.get(key, False)) for key in ("scale_emb", "share_emb")}
    with torch.device("meta"):
        model = CausalLM(ours, int(config["vocab_size"]), **options)
    if model.share_emb:
        state_dict = _with_both_tied(state_dict)
    names = {released_name(name): name for name in model.state_dict()}
    _check_tensors(state_dict, {r: model.state_dict()[n] for r, n in names.items()})
    _check_rope(state_dict.get("rope.freqs"), ours)
    if model.share_emb:
        _check_tied(state_dict)
    model.load_state_dict({n: state_dict[r] for r, n in names.items()}, assign=True)
    if model.share_emb:  # assign=True has untied them
        model.output.weight = model.embedding.weight
    return model.requires_grad_()


def to_released(model: CausalLM) -> dict[str, torch.Tensor]:
    """Return the model's tensors by their released names, ``rope.freqs`` included."""
    result = {released_name(name): tensor.detach() for name, tensor in model.state_dict().items()}
    result["rope.freqs"] = _rope_frequencies(model.config)
    return result


def config_to_released(model: CausalLM) -> dict[str, object]:
    """Return the complete released configuration of ``model``.

    Raises ``ValueError`` for full attention, for SiLU after CEMA and for an ablation, which the released
    model does not have.
    """
    for name, value in model.config.ablations.items():
        raise ValueError(
            f"model.{name}={value}: the released model has {ABLATIONS[name][0]} there, so this model "
            "cannot be converted"
        )
    if model.config.chunk_size is None:
        raise ValueError(
            "chunk_size=None: the released model has no full attention; convert a model with chunks"
        )
    if model.config.cema_activation != "rmsnorm":
        raise ValueError(
            f"cema_activation={model.config.cema_activation!r}: the released model has RMSNorm after "
            "CEMA, so this model cannot be converted"
        )
    only_here = {
        "causal", "cema_activation", "cema_init", "cema_memory", "checkpoint_activations",
        "compile_blocks", "drop_path", *ABLATIONS,
    }  # fmt: skip
    values = {f.name: getattr(model.config, f.name) for f in fields(MegalodonConfig)}
    return {
        **{key: value for key, value in values.items() if key not in only_here},
        "norm_num_groups": model.config.norm_groups,
        "norm_affine": True,
        "vocab_size": model.vocab_size,
        "scale_emb": model.scale_emb,
        "share_emb": model.share_emb,
    }


def _rope_frequencies(config: MegalodonConfig) -> torch.Tensor:
    width = config.z_dim // config.num_heads
    exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
    return (config.rope_base**-exponent).float()


def _check_tensors(given: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]) -> None:
    problems = [f"missing {name}" for name in model if name not in given]
    problems += [f"surplus {name}" for name in given if name not in model and name != "rope.freqs"]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in model.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(
            f"{len(problems)} tensors of the released checkpoint do not fit its configuration: "
            + "; ".join(problems)
        )


def _check_rope(freqs: torch.Tensor | None, config: MegalodonConfig) -> None:
    if freqs is None:
        return
    expected = _rope_frequencies(config)
    fits = freqs.shape == expected.shape and torch.allclose(freqs.float(), expected, rtol=1e-3)
    if not fits:
        raise ValueError(
            f"rope.freqs does not belong to rope_base={config.rope_base} and "
            f"{config.z_dim // config.num_heads} dimensions per head; correct rope_base"
        )


def _with_both_tied(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with the tied matrix under both names, if it is there under one."""
    found = [state_dict[name] for name in _TIED if name in state_dict]
    return {**dict.fromkeys(_TIED, found[0]), **state_dict} if found else dict(state_dict)


def _check_tied(state_dict: Mapping[str, torch.Tensor]) -> None:
    embedding, output = (state_dict[name] for name in _TIED)
    if not torch.equal(embedding, output):
        raise ValueError(f"share_emb=True, but {' and '.join(_TIED)} differ; set share_emb=False")
