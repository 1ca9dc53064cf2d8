"""Register AdamW with a no-decay group, and a linear decay whose warm-up follows a power.

They are the optimizer ``adamw_groups`` and the learning-rate scheduler ``linear_decay``; fairseq's adam
has no parameter groups, and its schedules know only a linear warm-up.
"""

import ast
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.settings import setting

logger = logging.getLogger(__name__)

# The value of a parameter's attribute ``param_group`` that keeps weight decay off it.  fairseq copies
# this attribute, and no other of ours, to the float32 masters of a bf16 or fp16 model
# (optim/fp16_optimizer.py:74).
NO_WEIGHT_DECAY = "no_weight_decay"

FUSED_DEVICES = ("cuda", "cpu")


@dataclass
class AdamWGroupsConfig(FairseqDataclass):
    """Settings of ``adamw_groups``, named as those of fairseq's adam."""

    adam_betas: str = setting("(0.9, 0.98)", "decay of both moments")
    adam_eps: float = setting(1e-8, "added to the denominator")
    weight_decay: float = setting(0.0, "decoupled weight decay; tagged parameters take none")
    spare_vectors: bool = setting(
        False, "no weight decay on biases, scales and other parameters that are vectors"
    )
    lr: List[float] = II("optimization.lr")


@register_optimizer("adamw_groups", dataclass=AdamWGroupsConfig)
class AdamWGroups(FairseqOptimizer):
    """Run ``torch.optim.AdamW``, fused where all parameters allow it, with at most two groups.

    Decay is decoupled: ``p <- p - lr * weight_decay * p``, as in fairseq's adam.  Parameters with
    ``param_group == "no_weight_decay"`` form a group without it; with ``spare_vectors`` so do all that
    extend along one axis at most, as is usual for vision.  Unlike fairseq's adam, ``adam_eps`` is added
    after the bias correction, as Adam (arXiv 1412.6980, algorithm 1) has it.

    With ``common.bf16`` or ``common.fp16`` and ``common.fp16_no_flatten_grads`` the updates are made on
    float32 masters.  fairseq refuses flattened fp16 gradients, which have no groups, unless
    ``weight_decay`` is 0, and always refuses memory-efficient fp16, which has no masters.
    """

    @user_errors()
    def __init__(self, cfg: AdamWGroupsConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        self._fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in params)
        decayed = [p for p in params if not self._is_exempt(p)]
        exempt = [p for p in params if self._is_exempt(p)]
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": exempt, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], **self.optimizer_config
        )

    def _is_exempt(self, parameter: torch.nn.Parameter) -> bool:
        tagged = getattr(parameter, "param_group", None) == NO_WEIGHT_DECAY
        is_vector = sum(size > 1 for size in parameter.shape) <= 1
        return tagged or (self.cfg.spare_vectors and is_vector)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Return the keyword arguments of ``torch.optim.AdamW``."""
        return {
            "lr": self.cfg.lr[0],
            "betas": _betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
            "fused": self._fused,
        }

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Restore the state; an overriding ``weight_decay`` spares the parameters without decay."""
        super().load_state_dict(state_dict, optimizer_overrides)
        for group in self.param_groups:
            if self._is_exempt(group["params"][0]):
                group["weight_decay"] = 0.0

    @property
    def supports_flat_params(self) -> bool:
        """Return whether one flat tensor may replace all parameters: only if all decay alike."""
        return self.cfg.weight_decay == 0


def _betas(text: str) -> tuple[float, float]:
    try:
        first, second = (float(beta) for beta in ast.literal_eval(text))
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(
            f"optimizer.adam_betas={text!r} is not a pair of numbers; write '(0.9, 0.98)'"
        ) from None
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"optimizer.adam_betas={text!r}: both must be at least 0 and below 1")
    return first, second


@dataclass
class LinearDecayConfig(FairseqDataclass):
    """Settings of ``linear_decay``."""

    warmup_updates: int = setting(0, "updates from warmup_init_lr to lr")
    warmup_init_lr: float = setting(1e-7, "learning rate of update 0")
    warmup_power: float = setting(1.0, "the warm-up grows with this power of the update")
    end_learning_rate: float = setting(0.0, "reached at the last update")
    # not an interpolation itself: fairseq's command line turns one that has a help text into null
    total_num_update: Optional[int] = setting(
        None, "the last update of the decay (default: max_update)"
    )
    max_update: int = II("optimization.max_update")
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("linear_decay", dataclass=LinearDecayConfig)
class LinearDecay(FairseqLRScheduler):
    """Warm up by a power of the update, then follow a straight line to ``end_learning_rate``.

    With peak ``lr``, warm-up W, total T and power k, update t has
    ``warmup_init_lr + (lr - warmup_init_lr) * (t / W) ** k`` up to W, then
    ``end + (lr - end) * (T - t) / (T - W)`` up to T, then ``end``.  The learning rate depends on the
    update only, so there is no state.  (Mega, arXiv 2209.10655, trains with it; its Path-X with k = 2.)
    """

    optimizer: FairseqOptimizer

    @user_errors()
    def __init__(self, cfg: LinearDecayConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        total = cfg.total_num_update
        self.total = cfg.max_update if total is None else total
        _check_schedule(cfg, self.total)
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set and return the learning rate of the update after ``num_updates`` updates."""
        self.optimizer.set_lr(self.lr_at(num_updates))
        return self.optimizer.get_lr()

    def lr_at(self, num_updates: int) -> float:
        """Return the learning rate after ``num_updates`` updates."""
        cfg, peak = self.cfg, self.cfg.lr[0]
        if num_updates < cfg.warmup_updates:
            risen = (num_updates / cfg.warmup_updates) ** cfg.warmup_power
            return cfg.warmup_init_lr + (peak - cfg.warmup_init_lr) * risen
        if num_updates >= self.total:
            return cfg.end_learning_rate
        remaining = (self.total - num_updates) / (self.total - cfg.warmup_updates)
        return cfg.end_learning_rate + (peak - cfg.end_learning_rate) * remaining


def _check_schedule(cfg: LinearDecayConfig, total: int) -> None:
    if total <= 0:
        raise ValueError(
            f"linear_decay needs the number of updates and got {total}; "
            "set optimization.max_update (--max-update) or lr_scheduler.total_num_update"
        )
    if cfg.warmup_updates < 0 or cfg.warmup_power <= 0:
        raise ValueError(
            f"lr_scheduler.warmup_updates={cfg.warmup_updates} must be at least 0 and "
            f"lr_scheduler.warmup_power={cfg.warmup_power} above 0"
        )
    if len(cfg.lr) != 1:
        raise ValueError(f"linear_decay takes one learning rate, optimization.lr has {cfg.lr}")
    if cfg.warmup_updates >= total:
        logger.warning(
            f"warmup_updates={cfg.warmup_updates} is not below the {total} updates of the run: "
            "the learning rate never reaches its peak"
        )
