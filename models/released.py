"""To and from the names of the released language model's checkpoints.

Tensors have the same shapes on both sides; only the names differ, and a tied output matrix is listed
twice in a released checkpoint.  ``rope.freqs``, a constant there, is not a parameter here: it is checked
against the configured base when it is present.
Names and configuration keys: github.com/XuezheMax/megalodon at 53cbaa3a.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM

# Ours -> released, inside one layer.
_LAYER_NAMES = {
    "attention.norm.weight": "mega.timenorm.weight",
    "attention.norm.bias": "mega.timenorm.bias",
    "attention.cema.alpha": "mega.cema.alpha",
    "attention.cema.delta": "mega.cema.delta",
    "attention.cema.theta": "mega.cema.theta",
    "attention.cema.gamma": "mega.cema.gamma",
    "attention.cema.omega": "mega.cema.omega",
    "attention.cema_norm.weight": "mega.rmsnorm.weight",
    "attention.v_proj.weight": "mega.wv.weight",
    "attention.v_proj.bias": "mega.wv.bias",
    "attention.z_proj.weight": "mega.wz.weight",
    "attention.z_proj.bias": "mega.wz.bias",
    "attention.gate_proj.weight": "mega.wr.weight",
    "attention.gate_proj.bias": "mega.wr.bias",
    "attention.skip_proj.weight": "mega.wh1.weight",
    "attention.skip_proj.bias": "mega.wh1.bias",
    "attention.out_proj.weight": "mega.wh2.weight",
    "attention.qk_scale": "mega.gamma",
    "attention.qk_bias": "mega.beta",
    "feed_forward.norm.weight": "nffn.norm.weight",
    "feed_forward.norm.bias": "nffn.norm.bias",
    "feed_forward.fc1.weight": "nffn.fc1.weight",
    "feed_forward.fc2.weight": "nffn.fc2.weight",
    "feed_forward.fc3.weight": "nffn.fc3.weight",
    "feed_forward.layer_scale": "nffn.alpha",
}
_OUTER_NAMES = {
    "embedding.weight": "embed.weight",
    "stack.norm.weight": "output.final_norm.weight",
    "stack.norm.bias": "output.final_norm.bias",
    "output.weight": "output.output.weight",
}
# Keys of a released configuration that say how it was trained or run and not what the model is.
_IGNORED_KEYS = ("efficient_attn", "layerwise_ckpt", "head_dim", "attention_window", "output_size")
_OWN_KEYS = ("vocab_size", "scale_emb", "share_emb", "norm_affine")
# Without these the defaults of another project would decide.
_NEEDED_KEYS = (
    "vocab_size", "model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "ffn_hidden_dim",
    "cema_ndim", "chunk_size", "norm_num_groups",
)  # fmt: skip


def released_name(name: str) -> str:
    """The released name of one of our parameters, for example ``layers.0.mega.wz.weight``."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    index, _, rest = name.removeprefix("stack.blocks.").partition(".")
    return f"layers.{index}.{_LAYER_NAMES[rest]}"


def config_from_released(config: Mapping[str, object]) -> MegalodonConfig:
    """The configuration of the same model here.

    Raises ``ValueError`` naming a key that is missing, unknown, or has a value it cannot honour.
    """
    missing = [key for key in _NEEDED_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(
            f"the released configuration lacks {', '.join(missing)}; add what is missing"
        )
    ours = {field.name for field in fields(MegalodonConfig)}
    unknown = sorted(set(config) - ours - set(_OWN_KEYS) - set(_IGNORED_KEYS))
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
    """Build the model that a released checkpoint holds.

    ``state_dict``: released names -> tensors of any floating dtype, kept.  ``config``: the released
    model configuration as a plain dict; keys that do not shape the model may be absent.
    Raises ``ValueError`` naming every missing, surplus or misshapen tensor.
    """
    ours = config_from_released(config)
    options = {key: bool(config.get(key, False)) for key in ("scale_emb", "share_emb")}
    with torch.device("meta"):
        model = CausalLM(ours, int(config["vocab_size"]), **options)
    wanted = {released_name(name): name for name in model.state_dict()}
    _check_tensors(state_dict, {r: model.state_dict()[n] for r, n in wanted.items()})
    _check_rope(state_dict.get("rope.freqs"), ours)
    if model.share_emb:
        _check_tied(state_dict)
    model.load_state_dict({n: state_dict[r] for r, n in wanted.items()}, assign=True)
    if model.share_emb:  # assign=True has untied them
        model.output.weight = model.embedding.weight
    return model.requires_grad_()


def to_released(model: CausalLM) -> dict[str, torch.Tensor]:
    """The model's tensors under their released names, ``rope.freqs`` included."""
    result = {released_name(name): tensor.detach() for name, tensor in model.state_dict().items()}
    result["rope.freqs"] = _rope_frequencies(model.config)
    return result


def config_to_released(model: CausalLM) -> dict[str, object]:
    """The released configuration of ``model``, complete.

    Raises ``ValueError`` for full attention, which the released model does not have.
    """
    if model.config.chunk_size is None:
        raise ValueError(
            "chunk_size=None: the released model has no full attention; convert a model with chunks"
        )
    own = {"causal", "checkpoint_activations", "drop_path"}
    values = {f.name: getattr(model.config, f.name) for f in fields(MegalodonConfig)}
    return {
        **{key: value for key, value in values.items() if key not in own},
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


def _check_tensors(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"surplus {name}" for name in given if name not in wanted and name != "rope.freqs"]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
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
            f"{config.z_dim // config.num_heads} dimensions per head; give the right rope_base"
        )


def _check_tied(state_dict: Mapping[str, torch.Tensor]) -> None:
    if not torch.equal(state_dict["embed.weight"], state_dict["output.output.weight"]):
        raise ValueError(
            "share_emb=True, but embed.weight and output.output.weight differ; set share_emb=False"
        )
