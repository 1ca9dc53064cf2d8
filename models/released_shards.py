"""Model-parallel shards of a released checkpoint: joined into whole tensors, and cut again.

A released model that was trained on several devices is one file for each of them.  Matrices are cut
along their rows or columns, vectors per feature in equal parts, and what all devices need is repeated.
Source of the table: github.com/XuezheMax/megalodon at 53cbaa3a, the modules that name a parallel layer.
"""

from collections.abc import Mapping, Sequence

import torch

# Which axis is cut, by the end of the name; anything else is whole on every device.
_AXES = {
    "embed.weight": 1,
    "mega.timenorm.weight": 0,
    "mega.timenorm.bias": 0,
    "mega.cema.alpha": 0,
    "mega.cema.delta": 0,
    "mega.cema.theta": 0,
    "mega.cema.gamma": 0,
    "mega.cema.omega": 0,
    "mega.wv.weight": 0,
    "mega.wv.bias": 0,
    "mega.wz.weight": 0,
    "mega.wz.bias": 0,
    "mega.wr.weight": 0,
    "mega.wr.bias": 0,
    "mega.wh1.weight": 0,
    "mega.wh1.bias": 0,
    "mega.wh2.weight": 1,
    "mega.gamma": 1,
    "mega.beta": 1,
    "nffn.fc1.weight": 0,
    "nffn.fc3.weight": 0,
    "nffn.fc2.weight": 1,
    "output.final_norm.weight": 0,
    "output.final_norm.bias": 0,
    "output.output.weight": 1,
}


def axis_of(name: str) -> int | None:
    """The axis along which the tensor of this released name is cut; None if it is whole everywhere."""
    parts = name.split(".")
    key = ".".join(parts[2:]) if parts[0] == "layers" else name
    return _AXES.get(key)


def merge_shards(shards: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Whole tensors from the shards in the order of their ranks.

    Raises ``ValueError`` naming every tensor that is not in all shards, and those whose parts do not fit
    together.
    """
    if len(shards) == 1:
        return dict(shards[0])
    names = list(dict.fromkeys(name for shard in shards for name in shard))
    problems = [
        f"{name} is missing in shard {rank}"
        for name in names
        for rank, shard in enumerate(shards)
        if name not in shard
    ]
    if problems:
        raise ValueError("the shards are not of one checkpoint: " + "; ".join(problems))
    return {name: _merged(name, [shard[name] for shard in shards]) for name in names}


def _merged(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    axis = axis_of(name)
    if axis is None:
        if any(not torch.equal(parts[0], part) for part in parts[1:]):
            raise ValueError(f"{name} is whole in every shard, but the shards differ in it")
        return parts[0]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1 or parts[0].dim() <= axis:
        raise ValueError(f"{name} has shapes {sorted(shapes)} in the shards, wanted equal ones")
    return torch.cat(parts, dim=axis)


def split_shards(
    state_dict: Mapping[str, torch.Tensor], count: int
) -> list[dict[str, torch.Tensor]]:
    """Tensors cut for ``count`` devices.  Raises ``ValueError`` where a size does not divide."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, tensor in state_dict.items():
        axis = axis_of(name)
        if axis is not None and tensor.shape[axis] % count:
            raise ValueError(
                f"{count} shards do not divide {name}, shape {tuple(tensor.shape)}, along axis {axis}; "
                "choose a number that divides the heads and all sizes of the model"
            )
        parts = [tensor] * count if axis is None else tensor.chunk(count, dim=axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.contiguous()
    return shards
