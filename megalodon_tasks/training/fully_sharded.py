"""Divide parameters, gradients and optimizer state over the processes, by torch's ``fully_shard``.

``distributed_training.ddp_backend=fully_sharded`` needs fairscale in fairseq, which is no longer
developed.  The patch shards with torch instead: each block of a Megalodon is gathered for the time in
which it computes, all else (embedding, output, last norm, the decoder of an encoder-decoder) for the
time of a forward and backward pass.
``no_reshard_after_forward`` keeps blocks gathered in between, ``fp32_reduce_scatter`` adds gradients in
float32.  Activation checkpointing is the model's own (``model.checkpoint_activations``).

The optimizer, also with float32 masters (``common.bf16``, ``common.fp16``), works on shards as on whole
tensors.  ``fairseq_compat/sharded_checkpoints.py`` saves and loads.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq import models
from fairseq.trainer import Trainer
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.fairseq_compat.sharded_tensors import FULLY_SHARDED, mesh_of_all
from megalodon_tasks.models.layers.block import MegalodonBlock
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.no_decay import WithoutDecay


def install() -> None:
    """Patch how a model is distributed."""
    trainer_class: Any = Trainer
    trainer_class.is_fsdp = False  # what it decides is for fairscale
    wrap(models, "DistributedFairseqModel", _or_sharded)


def _or_sharded(
    stock: Callable, args: Any, model: nn.Module, process_group: Any, device: torch.device
) -> nn.Module:
    if args.ddp_backend != FULLY_SHARDED:
        return stock(args, model, process_group, device)
    shard(model, device, args.no_reshard_after_forward, args.fp32_reduce_scatter)
    return model


def shard(
    model: nn.Module, device: torch.device, keep_gathered: bool = False, fp32_reduce: bool = False
) -> None:
    """Divide the parameters of ``model`` over all processes and move them to ``device``.

    keep_gathered: leave blocks gathered between the forward and the backward pass, which is faster and
    takes more memory.  fp32_reduce: add gradients of 16 bits in float32.
    """
    policy = MixedPrecisionPolicy(
        reduce_dtype=torch.float32 if fp32_reduce else None, cast_forward_inputs=False
    )
    options: dict[str, Any] = {"mesh": mesh_of_all(device.type), "mp_policy": policy}
    modules = list(model.modules())
    mixed = len({p.dtype for p in model.parameters()}) > 1
    units = [m for m in modules if mixed and isinstance(m, ComplexEMA)]  # a unit has one dtype
    # blocks with cross attention read the source outside of their own forward pass
    units += [m for m in modules if type(m) is MegalodonBlock]
    for unit in units:
        fully_shard(unit, reshard_after_forward=not keep_gathered, **options)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, WithoutDecay):
            module.tag()  # the parameters are others now
