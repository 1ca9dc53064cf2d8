"""Train in bfloat16 or float16 on any device, resume exactly, and refuse what would have no effect.

``common.bf16`` and ``common.fp16`` cast the model, except for CEMA's parameters; the optimizer changes
float32 masters.  fairseq

* makes one flat tensor of the gradients of fp16, which needs a GPU (optim/fp16_optimizer.py:38) and an
  optimizer without groups: they are not flattened;
* ends where a gradient overflows on a CPU (``.cuda()``, trainer.py:1013): the update is skipped, and the
  scale of the loss lowered, as on a GPU;
* saves no masters, so that a run that resumes continues from rounded parameters: they are saved;
* passes over ``amp`` on a CPU, and over settings that refine another one that is not set: refused.
"""

import logging
from collections.abc import Callable
from typing import Any

from fairseq.logging import metrics
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.trainer import Trainer

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap

logger = logging.getLogger(__name__)

MASTERS = "masters"  # in the state of an optimizer: the float32 parameters

# A setting of the section common -> those of which it needs one.
_REFINES = {
    "memory_efficient_fp16": ("fp16",),
    "memory_efficient_bf16": ("bf16",),
    "fp16_no_flatten_grads": ("fp16",),
    "on_cpu_convert_precision": ("fp16", "bf16"),
}


class _Overflow(Exception):
    """A gradient is too large for float16 on a CPU."""


def install() -> None:
    """Patch the training step, and what the optimizer of 16-bit models saves."""
    wrap(Trainer, "train_step", _skipping_overflow)
    wrap(Trainer, "clip_grad_norm", _noting_overflow)
    wrap(FP16Optimizer, "state_dict", _with_masters)
    wrap(FP16Optimizer, "load_state_dict", _from_masters)


def check_settings(common: Any, on_gpu: bool) -> None:
    """Raise :class:`UserError` for settings of the section ``common`` that have no effect together."""
    chosen = [name for name in ("fp16", "bf16", "amp") if common[name]]
    if len(chosen) > 1:
        raise UserError(
            f"common.{chosen[0]}=true and common.{chosen[1]}=true: a model is trained in one precision; "
            "leave out one of them"
        )
    if common.amp and not on_gpu:
        raise UserError(
            "common.amp=true (--amp) has no effect without a GPU: all would be float32; use "
            "common.bf16=true (--bf16), or leave it out"
        )
    for name, needed in _REFINES.items():
        if common[name] and not any(common[other] for other in needed):
            settings = " or ".join(f"common.{other}=true" for other in needed)
            raise UserError(
                f"common.{name}=true has no effect by itself; set {settings} too, or leave it out"
            )
    if common.fp16 and not common.memory_efficient_fp16:
        common.fp16_no_flatten_grads = True


def _noting_overflow(stock: Callable, self: Trainer, clip_norm: float) -> Any:
    try:
        return stock(self, clip_norm)
    except OverflowError as overflow:
        if self.cuda:
            raise
        raise _Overflow(str(overflow)) from None


def _skipping_overflow(
    stock: Callable, self: Trainer, samples: list[dict[str, Any]], raise_oom: bool = False
) -> Any:
    try:
        return stock(self, samples, raise_oom)
    except _Overflow as overflow:
        logger.info(f"gradient overflow, the update is skipped: {overflow}")
        self.zero_grad()
        optimizer: Any = self.optimizer
        scale = optimizer.scaler.loss_scale
        metrics.log_scalar("loss_scale", scale, priority=700, round=4, weight=0)
        metrics.log_stop_time("train_wall")
        return None


def _with_masters(stock: Callable, self: FP16Optimizer) -> dict[str, Any]:
    return stock(self) | {MASTERS: [master.detach() for master in self.fp32_params]}


def _from_masters(
    stock: Callable,
    self: FP16Optimizer,
    state_dict: dict[str, Any],
    optimizer_overrides: dict[str, Any] | None = None,
) -> None:
    masters = state_dict.get(MASTERS)  # none in what fairseq itself wrote
    stock(self, {k: v for k, v in state_dict.items() if k != MASTERS}, optimizer_overrides)
    for parameter, master in zip(self.fp32_params, masters or (), strict=False):
        parameter.data.copy_(master)
