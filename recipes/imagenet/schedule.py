"""Mega's learning rate on images: linear warm-up, then a cosine; it changes once per epoch.

Registered as ``cosine_by_epoch``.  fairseq's ``cosine`` counts updates and starts a second, lower cosine
where the first ends.
"""

import logging
from dataclasses import dataclass
from typing import List, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.settings import setting

logger = logging.getLogger(__name__)


@dataclass
class CosineByEpochConfig(FairseqDataclass):
    """Settings of ``cosine_by_epoch``."""

    warmup_epochs: int = setting(0, "epochs from warmup_init_lr to lr")
    warmup_init_lr: float = setting(1e-5, "learning rate of epoch 0")
    min_lr: float = setting(1e-6, "rate at the end of the cosine")
    # not an interpolation itself: fairseq's command line turns one that has a help text into null
    cosine_epochs: Optional[int] = setting(
        None, "length of the cosine, which begins after the warm-up (default: max_epoch)"
    )
    max_epoch: int = II("optimization.max_epoch")
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("cosine_by_epoch", dataclass=CosineByEpochConfig)
class CosineByEpoch(FairseqLRScheduler):
    """timm's ``CosineLRScheduler`` with one cycle, counted in epochs, after the warm-up.

    Epoch e (from 0) has, with W = ``warmup_epochs`` and T = ``cosine_epochs``, the rate
    ``init + (lr - init) e / W`` if e < W, else ``min + (lr - min) (1 + cos(pi (e - W) / T)) / 2``.
    The default T is all epochs, as in Mega's code, so training ends W epochs before the cosine does.
    """

    @user_errors()
    def __init__(self, cfg: CosineByEpochConfig, optimizer: FairseqOptimizer) -> None:
        from timm.scheduler import CosineLRScheduler  # two seconds, which other runs need not wait

        super().__init__(cfg, optimizer)
        length = cfg.max_epoch if cfg.cosine_epochs is None else cfg.cosine_epochs
        if len(cfg.lr) != 1:
            raise ValueError(f"cosine_by_epoch takes one rate, optimization.lr has {list(cfg.lr)}")
        if cfg.warmup_epochs < 0 or length <= 0:
            raise ValueError(
                f"lr_scheduler.warmup_epochs={cfg.warmup_epochs} must be at least 0 and the length of "
                f"the cosine, {length}, above; set optimization.max_epoch or cosine_epochs"
            )
        if 0 < cfg.max_epoch <= cfg.warmup_epochs:
            logger.warning(
                f"warmup_epochs={cfg.warmup_epochs} is not below max_epoch={cfg.max_epoch}: the "
                "learning rate never reaches its peak"
            )
        self.optimizer.set_lr(cfg.lr[0])
        self.schedule = CosineLRScheduler(
            optimizer.optimizer,
            t_initial=length,
            lr_min=cfg.min_lr,
            warmup_t=cfg.warmup_epochs,
            warmup_lr_init=cfg.warmup_init_lr,
            warmup_prefix=True,
            cycle_limit=1,
        )
        self.step_begin_epoch(1)

    def step_begin_epoch(self, epoch: int) -> float:
        """Set and return the learning rate of ``epoch``, which fairseq counts from 1."""
        self.schedule.step(epoch - 1)
        return self.optimizer.get_lr()
