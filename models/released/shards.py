"""Join the model-parallel shards of a released checkpoint to whole tensors, and cut them again.

A released model that was trained on several devices is one file per device.  Matrices are cut along
their rows or columns and vectors of features into equal parts; the other tensors are the same in every
file.
"""

from collections.abc import Mapping, Sequence

import torch

from megalodon_tasks.models.released.names import shard_axis


def merge_shards(shards: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join shards, given in the order of their ranks, to whole tensors.

    Raises ``ValueError`` naming the tensors that a shard lacks, or one whose parts do not fit together.
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
    return {name: _merge(name, [shard[name] for shard in shards]) for name in names}


def _merge(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    axis = shard_axis(name)
    if axis is None:
        if any(not torch.equal(parts[0], part) for part in parts[1:]):
            raise ValueError(f"{name} must be the same in every shard, but the shards differ in it")
        return parts[0]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1 or parts[0].dim() <= axis:
        raise ValueError(f"{name} has shapes {sorted(shapes)} in the shards, expected equal ones")
    return torch.cat(parts, dim=axis)


def split_shards(
    state_dict: Mapping[str, torch.Tensor], count: int
) -> list[dict[str, torch.Tensor]]:
    """Cut tensors for ``count`` devices.  Raises ``ValueError`` where a size is not divisible."""
    for name, tensor in state_dict.items():
        axis = shard_axis(name)
        if axis is not None and tensor.shape[axis] % count:
            raise ValueError(
                f"{count} shards do not divide {name}, shape {tuple(tensor.shape)}, along axis {axis}; "
                "choose a number that divides the heads and all sizes of the model"
            )
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, tensor in state_dict.items():
        axis = shard_axis(name)
        parts = [tensor] * count if axis is None else tensor.chunk(count, dim=axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.contiguous()
    return shards
