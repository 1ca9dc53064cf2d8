"""Compute with parameters that are divided over processes (``ddp_backend=fully_sharded``).

fairseq takes the norm of a gradient tensor by tensor (utils.py:356), which for sharded ones would be a
collective call for each.  The patch adds the squares of a process's shards, then those sums over the
processes: one call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from fairseq import utils
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from megalodon_tasks.fairseq_compat.patching import wrap

FULLY_SHARDED = "fully_sharded"  # a value of distributed_training.ddp_backend


def install() -> None:
    """Patch the clipping of gradients."""
    wrap(utils, "clip_grad_norm_", _of_all_shards)


def install_in(train: ModuleType) -> None:
    """Let fairseq's training module build the model without fairscale, which it would shard with."""
    wrap(train, "fsdp_enable_wrap", lambda stock, *args: contextlib.nullcontext())
    wrap(train, "fsdp_wrap", lambda stock, module: module)


def is_sharded(trainer: Any) -> bool:
    """Return whether ``trainer`` divides its parameters over several processes."""
    several = trainer.data_parallel_world_size > 1
    return several and trainer.cfg.distributed_training.ddp_backend == FULLY_SHARDED


@functools.cache
def mesh_of_all(device_type: str) -> DeviceMesh:
    """Return all processes as a line: the first axis of every sharded tensor is divided over it."""
    return init_device_mesh(device_type, (dist.get_world_size(),))


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all elements of sharded tensors, the same on each process; () float32."""
    shards = [t.to_local().detach() for t in tensors if isinstance(t, DTensor)]
    norms = [torch.linalg.vector_norm(shard, dtype=torch.float32) for shard in shards]
    total = torch.stack(norms).square().sum()
    dist.all_reduce(total)
    return total.sqrt()


def _of_all_shards(
    stock: Callable,
    params: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    *more: Any,
    **options: Any,
) -> torch.Tensor:
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    grads = [p.grad for p in params if isinstance(p.grad, DTensor)]
    if not grads:
        return stock(params, max_norm, *more, **options)
    norm = total_norm(grads)
    if max_norm > 0:
        scale = (float(max_norm) / (norm + 1e-6)).clamp_(max=1)
        torch._foreach_mul_([grad.to_local() for grad in grads], scale)
    return norm
