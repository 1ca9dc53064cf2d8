"""The image encoder as a timm model: import this file, then ``timm.create_model`` knows it.

    import timm
    import megalodon_tasks.timm_model

    model = timm.create_model("megalodon_base_patch16_224", num_classes=100, drop_path_rate=0.2)
    model = timm.create_model("megalodon_base_patch16_224", checkpoint_path="run/checkpoint_best.pt")
    model = megalodon_tasks.timm_model.from_checkpoint("run/checkpoint_best.pt", ema=True)

No other module imports this file, so that training with fairseq does not import timm.  Names in the
``state_dict`` are those of ``SequenceClassifier`` (models/README.md).  A checkpoint of the recipe loads
as it is, and at another image size or with another number of classes as in all of timm:

    timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, img_size=384)

timm loads files with ``weights_only=True``: no code in them runs.
Legend: B batch, L patches, D width.
"""

# The attributes of a module have no types.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false
# pyright: reportAssignmentType=false

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed, resample_patch_embed, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import PatchEmbedding
from megalodon_tasks.models.heads import ClassHead, MeanPool
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.models.released.files import read_tensors
from megalodon_tasks.models.stack import MegalodonStack

_CONFIG_FIELDS = {f.name for f in fields(MegalodonConfig)}
_POOLS = ("avg", "")


class MegalodonVision(nn.Module):
    """Bidirectional Megalodon over image patches, with timm's conventions.

    cfg: fields of ``MegalodonConfig``.  img_size, patch_size: in pixels.  num_classes: 0 for none.
    global_pool: ``avg`` (the encoder's tail: a projection, then the mean over patches) or ``""`` (none).
    drop_rate: dropout before the classifier.  drop_path_rate: of the last block, rising from 0.
    """

    def __init__(
        self,
        cfg: dict[str, Any],
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        config = MegalodonConfig(**(cfg | {"drop_path": drop_path_rate}))
        if config.causal:
            raise ValueError("causal=True: the image encoder is bidirectional; leave causal out")
        d = config.model_dim
        self.embedding = PatchEmbedding(d, to_2tuple(img_size), patch_size, in_chans)
        self.stack = MegalodonStack(config)
        self.init_mode = config.init_mode
        self.pool = MeanPool(d, config.init_mode)
        self.num_features = self.head_hidden_size = self.embed_dim = d
        self.drop_rate = drop_rate
        self.feature_info = [
            {"module": f"stack.blocks.{i}", "num_chs": d, "reduction": patch_size}
            for i in range(config.num_layers)
        ]
        self.reset_classifier(num_classes, global_pool)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay: positions, CEMA's rates and angles."""
        # By name: a copy of the model loses the tags that the recipe's optimizer reads.
        suffixes = ("embedding.position", ".alpha", ".delta", ".theta")
        return {name for name, _ in self.named_parameters() if name.endswith(suffixes)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Assign parameters to layers, for timm's layer-wise learning rates."""
        blocks = [(r"^stack\.blocks\.(\d+)", None), (r"^stack\.norm", (99999,))]
        return {"stem": r"^embedding", "blocks": r"^stack\.blocks\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.stack.checkpoint_activations = enable

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.stack.checkpoint_activations

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None
    ) -> None:
        """Change the size of images or patches in pixels; resample positions and patch weights."""
        old = self.embedding
        channels, *old_size = old.image_shape
        patch_size = patch_size or old.proj.kernel_size[0]
        new = PatchEmbedding(self.embed_dim, to_2tuple(img_size or old_size), patch_size, channels)
        self.embedding = self._match_model(new)
        with torch.no_grad():
            new.position.copy_(_resample_positions(old.position, old.grid, new.grid))
            new.proj.weight.copy_(
                resample_patch_embed(old.proj.weight, list(to_2tuple(patch_size)))
            )
            new.proj.bias.copy_(old.proj.bias)
        for parameter, old_parameter in zip(new.parameters(), old.parameters(), strict=True):
            parameter.requires_grad_(old_parameter.requires_grad)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer (``nn.Identity`` without classes)."""
        return self.head.proj

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0: by none), and the pooling if ``global_pool`` is given.

        ``avg`` makes a new projection if that of the encoder was pruned.
        """
        if global_pool is not None:
            if global_pool not in _POOLS:
                raise ValueError(f"global_pool={global_pool!r} is not one of {_POOLS}")
            self.global_pool = global_pool
            if global_pool == "avg" and isinstance(self.pool, nn.Identity):
                self.pool = self._match_model(MeanPool(self.embed_dim, self.init_mode))
        self.num_classes = num_classes
        head = ClassHead(self.num_features, max(num_classes, 1), self.drop_rate, bias=True)
        if num_classes == 0:
            head.proj = nn.Identity()
        self.head = self._match_model(head)

    def _match_model(self, module: nn.Module) -> nn.Module:
        """Give a new part the device, dtype and mode of the model."""
        weight = self.stack.blocks[0].feed_forward.fc1.weight
        return module.to(weight.device, weight.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final features (B, L, D) and the outputs of chosen blocks, in order of depth.

        x: images (B, C, H, W).  indices: the last n blocks if an int, all if None.  norm: apply the
        final norm to each.  output_fmt: ``NCHW`` (B, D, H / patch, W / patch) or ``NLC`` (B, L, D).
        stop_early: skip the blocks after the last chosen one.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is neither NCHW nor NLC")
        indices, last = feature_take_indices(len(self.stack.blocks), indices)
        blocks = self.stack.blocks[: last + 1] if stop_early else self.stack.blocks
        x_BLD, intermediates = self.embedding(x), []
        for i, block in enumerate(blocks):
            x_BLD = self.stack.run_block(block, x_BLD)[0]
            if i in indices:
                intermediates.append(self.stack.norm(x_BLD)[0] if norm else x_BLD)
        if output_fmt == "NCHW":
            grid = self.embedding.grid
            intermediates = [y_BLD.mT.unflatten(2, grid).contiguous() for y_BLD in intermediates]
        return intermediates if intermediates_only else (self.stack.norm(x_BLD)[0], intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features of ``indices`` do not need; return these as positive numbers."""
        indices, last = feature_take_indices(len(self.stack.blocks), indices)
        self.stack.blocks = self.stack.blocks[: last + 1]
        if prune_norm:
            self.stack.norm = PrunedNorm()
        if prune_head:
            self.pool = nn.Identity()
            self.reset_classifier(0, "")
        return indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) float to normed features of each patch (B, L, D)."""
        return self.stack(self.embedding(x))[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map (B, L, D) to class scores (B, classes), or with ``pre_logits`` to their input."""
        x = self.pool(x) if self.global_pool == "avg" else x
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) float to class scores (B, classes)."""
        return self.forward_head(self.forward_features(x))


class PrunedNorm(nn.Module):
    """Takes the place of the final norm, and its arguments."""

    def forward(
        self, x_BLD: torch.Tensor, padding_mask_BL: None = None, state: None = None
    ) -> tuple[torch.Tensor, None]:
        """Return x and no state."""
        return x_BLD, None


def _resample_positions(
    position: torch.Tensor, old_grid: Sequence[int], new_grid: Sequence[int]
) -> torch.Tensor:
    """Interpolate position vectors (patches, D) of one grid of patches for another."""
    return resample_abs_pos_embed(
        position[None], list(new_grid), list(old_grid), num_prefix_tokens=0
    )[0]


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor], model: MegalodonVision
) -> dict[str, torch.Tensor]:
    """Fit the weights of a checkpoint to ``model``: resample position vectors to its grid of patches.

    If the grids differ, that of the checkpoint must be square.  Raises ``ValueError`` otherwise, and
    for the weights of another kind of model.
    """
    position = state_dict.get("embedding.position")
    if position is None:
        raise ValueError(
            "these weights have no embedding.position: they are not of a Megalodon over image patches"
        )
    grid, side = model.embedding.grid, math.isqrt(len(position))
    if len(position) != grid[0] * grid[1]:
        if side * side != len(position):
            raise ValueError(
                f"embedding.position has {len(position)} vectors, which fill no square grid and do not "
                f"fit the model's grid {grid}; build the model with the img_size of the checkpoint"
            )
        position = _resample_positions(position, (side, side), grid)
    return state_dict | {"embedding.position": position}


def from_checkpoint(
    path: str | os.PathLike, *, ema: bool = False, **changes: Any
) -> MegalodonVision:
    """Load the model of a checkpoint that the recipe ``imagenet`` wrote.

    ema: take the running average of the weights instead (``ema.store_ema=true`` in training).
    changes: other arguments of :class:`MegalodonVision`, such as ``drop_path_rate``.
    Raises ``ValueError`` if the file is damaged, holds code, or is of another kind of model.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no such checkpoint")
    saved = read_tensors(Path(path))
    try:
        settings = saved["cfg"]["model"]
        weights = saved["extra_state"]["ema"] if ema else saved["model"]
    except (KeyError, TypeError) as error:
        missing = "running average (train with ema.store_ema=true)" if ema else "fairseq settings"
        raise ValueError(f"{path}: holds no {missing}; {error} is missing") from None
    if "embedding.position" not in weights:
        raise ValueError(f"{path}: is of {settings.get('_name')!r}, which does not read images")
    arguments: dict[str, Any] = {
        "cfg": {k: v for k, v in settings.items() if k in _CONFIG_FIELDS},
        "img_size": (saved["cfg"]["task"]["image_size"],) * 2,
        "patch_size": weights["embedding.proj.weight"].shape[-1],
        "in_chans": weights["embedding.proj.weight"].shape[1],
        "num_classes": len(weights["head.proj.weight"]),
        "drop_rate": settings["dropout"],
    }
    model = MegalodonVision(**(arguments | changes))
    model.load_state_dict(checkpoint_filter_fn(weights, model))
    return model.eval()


_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "fixed_input_size": True,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "embedding.proj",
    "classifier": "head.proj",
    "paper_ids": "arXiv:2404.08801",
    "license": "mit",
}
# No weights are published: checkpoints come from the recipe.
default_cfgs = generate_default_cfgs(
    {"megalodon_tiny_patch16_224": _CFG, "megalodon_base_patch16_224": _CFG}
)


def _create(variant: str, preset: str, pretrained: bool, **kwargs: Any) -> MegalodonVision:
    """Build a preset, changed by the fields of ``MegalodonConfig`` in ``kwargs`` (``chunk_size``)."""
    names = _CONFIG_FIELDS - {"drop_path"}  # drop_path_rate sets it
    changes = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    return build_model_with_cfg(
        MegalodonVision,
        variant,
        pretrained,
        model_cfg=CLASSIFIER_PRESETS[preset] | changes,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def megalodon_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> MegalodonVision:
    """12 layers, width 192; 6.2 million parameters."""
    return _create("megalodon_tiny_patch16_224", "megalodon_imagenet_tiny", pretrained, **kwargs)


@register_model
def megalodon_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> MegalodonVision:
    """12 layers, width 768; 90.7 million parameters."""
    return _create("megalodon_base_patch16_224", "megalodon_imagenet_base", pretrained, **kwargs)
