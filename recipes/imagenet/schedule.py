"""DeiT's learning rate: linear warm-up, half a cosine, then a constant rate; stepped at every update.

Registered as ``cosine_cooldown``.  fairseq's ``cosine`` starts a second, lower cosine where the first
ends, and begins its first one only after the warm-up.
"""

import logging
from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from megalodon_tasks.errors import user_errors

logger = logging.getLogger(__name__)


@dataclass
class CosineCooldownConfig(FairseqDataclass):
    """Settings of ``cosine_cooldown``."""

    warmup_updates: int = field(default=0, metadata={"help": "updates from warmup_init_lr to lr"})
    warmup_init_lr: float = field(default=1e-5, metadata={"help": "learning rate of update 0"})
    min_lr: float = field(
        default=1e-6, metadata={"help": "rate at the end of the cosine and afterwards"}
    )
    # not an interpolation itself: fairseq's command line turns one that has a help text into null
    cosine_updates: Optional[int] = field(
        default=None,
        metadata={
            "help": "update at which the cosine ends, warm-up included (default: max_update)"
        },
    )
    max_update: int = II("optimization.max_update")
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("cosine_cooldown", dataclass=CosineCooldownConfig)
class CosineCooldown(FairseqLRScheduler):
    """timm's ``CosineLRScheduler`` with one cycle, counted in updates.

    As there, the cosine is measured from update 0: when the warm-up (W updates) ends the rate is
    ``min + (lr - min) * (1 + cos(pi W / T)) / 2`` and not ``lr`` itself.
    """

    @user_errors()
    def __init__(self, cfg: CosineCooldownConfig, optimizer: FairseqOptimizer) -> None:
        from timm.scheduler import CosineLRScheduler  # two seconds, which other runs need not wait

        super().__init__(cfg, optimizer)
        total = cfg.max_update if cfg.cosine_updates is None else cfg.cosine_updates
        if len(cfg.lr) != 1:
            raise ValueError(f"cosine_cooldown takes one rate, optimization.lr has {list(cfg.lr)}")
        if cfg.warmup_updates < 0 or total <= 0:
            raise ValueError(
                f"lr_scheduler.warmup_updates={cfg.warmup_updates} must be at least 0 and the end of "
                f"the cosine, {total}, above; set optimization.max_update or cosine_updates"
            )
        if cfg.warmup_updates >= total:
            logger.warning(
                f"warmup_updates={cfg.warmup_updates} is not below the end of the cosine, {total}: the "
                "learning rate never reaches its peak"
            )
        self.optimizer.set_lr(cfg.lr[0])
        self.schedule = CosineLRScheduler(
            optimizer.optimizer,
            t_initial=total,
            lr_min=cfg.min_lr,
            warmup_t=cfg.warmup_updates,
            warmup_lr_init=cfg.warmup_init_lr,
            cycle_limit=1,
            t_in_epochs=False,
        )
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set and return the learning rate of the update after ``num_updates`` updates."""
        self.schedule.step_update(num_updates)
        return self.optimizer.get_lr()
