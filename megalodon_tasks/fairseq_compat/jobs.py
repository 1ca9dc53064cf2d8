"""Start a training job without traces of the last one, and resume exactly where this one stopped.

fairseq calls ``load_checkpoint`` once per job, after it has built the trainer and before the first
update.  The patch wraps it, because without it:

* ``save_checkpoint.best`` and ``should_stop_early.best`` are attributes of functions
  (checkpoint_utils.py:42, fairseq_cli/train.py:244) and outlive the job: the next job of a sweep in the
  same process keeps no best checkpoint unless it beats the last one, and may stop at once;
* two runs in one folder overwrite each other's checkpoints: the second one is refused;
* temporary files of a killed run stay: they are removed;
* the running averages between two lines of the log are dropped when a run resumes at the start of an
  epoch (trainer.py:648), which makes its next line differ from an uninterrupted run's;
* a run that has made its last update makes one more (fairseq_cli/train.py:389 checks after the update,
  not before), which changes a finished model; one that has made its last epoch ends without a word;
* the clock ``wall`` of the log starts again from 0 when a run resumes, and stands still when it resumes
  within an epoch (meters.py:256);
* an unknown ``best_checkpoint_metric`` is a bare KeyError (fairseq_cli/train.py:534).
"""

import atexit
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.logging import metrics, progress_bar

from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.fairseq_compat import (
    best_checkpoint,
    divergence,
    last_checkpoint,
    restoring,
)
from megalodon_tasks.fairseq_compat.atomic_files import remove_leftovers
from megalodon_tasks.fairseq_compat.log_file import keep_file_handlers
from megalodon_tasks.fairseq_compat.patching import training_modules, wrap
from megalodon_tasks.files import sole_writer

logger = logging.getLogger(__name__)

_claimed = contextlib.ExitStack()  # holds the lock on the folder of the running job
atexit.register(_claimed.close)


def install() -> None:
    """Patch ``load_checkpoint``."""
    wrap(checkpoint_utils, "load_checkpoint", _with_clean_start)


def _with_clean_start(stock: Callable, cfg: Any, trainer: Any, **kwargs: Any) -> tuple:
    _forget_last_job(trainer.cfg)
    suffix, schedule = trainer.checkpoint_suffix, trainer.cfg.lr_scheduler._name
    restoring.check_settings(cfg, suffix, schedule)
    another_run = restoring.is_another_run(cfg, suffix)
    if another_run and cfg.finetune_from_model is not None:
        restoring.check_vocabulary(cfg.finetune_from_model, trainer.cfg.model)
    if trainer.data_parallel_rank == 0 and not cfg.no_save:
        _claim(Path(cfg.save_dir))
    extra_state, epoch_iterator = stock(cfg, trainer, **kwargs)
    if extra_state is not None and another_run:
        restoring.start_counting(trainer)
    elif extra_state is not None:
        best_checkpoint.restore_patience(extra_state)
        divergence.restore_count(trainer, extra_state)
        _restore_running_averages(cfg, extra_state)
    _continue_clock(trainer)
    _skip_if_finished(trainer, epoch_iterator.next_epoch_idx)
    return extra_state, epoch_iterator


@user_errors()
def _claim(save_dir: Path) -> None:
    """Lock ``save_dir`` until the next job or the end of the process, and tidy it."""
    _claimed.close()
    _claimed.enter_context(sole_writer(save_dir))
    for name in remove_leftovers(save_dir):
        logger.info(f"removed {name}, left half-written by a run that was killed")


def _forget_last_job(cfg: Any) -> None:
    best_checkpoint.forget_scores()
    keep_file_handlers(progress_bar.logger, newest=0)
    for train in training_modules():
        keep_file_handlers(train.logger, newest=0 if cfg.common.log_file is None else 1)
        wrap(train, "get_valid_stats", _with_metric_check)
        best_checkpoint.install_in(train)
        last_checkpoint.install_in(train)


def _restore_running_averages(cfg: Any, extra_state: dict) -> None:
    at_epoch_start = extra_state["train_iterator"]["iterations_in_epoch"] == 0
    saved = extra_state.get("metrics", {})
    if at_epoch_start and "train_inner" in saved and not cfg.reset_meters:
        metrics.load_state_dict({"train_inner": saved["train_inner"]})


def _continue_clock(trainer: Any) -> None:
    """Let the log count the seconds of all attempts of this run."""
    clock: Any = metrics.get_meter("default", "wall")
    # With several processes fairseq returns the mean over them, a tensor.
    clock.start_time = time.perf_counter() - float(trainer.cumulative_training_time())


def _skip_if_finished(trainer: Any, next_epoch: int) -> None:
    limits, updates, epochs = trainer.cfg.optimization, trainer.get_num_updates(), next_epoch - 1
    if 0 < limits.max_update <= updates:
        done = f"{updates} of {limits.max_update} updates"
    elif 0 < limits.max_epoch <= epochs:
        done = f"{epochs} of {limits.max_epoch} epochs"
    else:
        return
    logger.info(f"this run is finished ({done}): nothing is left to train")
    best_checkpoint.warn_without_best(trainer.cfg)
    limits.max_epoch = -1  # the loop over epochs ends before its first


def _with_metric_check(
    stock: Callable, cfg: Any, trainer: Any, stats: dict, tracking_best: bool
) -> dict:
    metric = cfg.checkpoint.best_checkpoint_metric
    if metric not in stats:
        raise UserError(
            f"checkpoint.best_checkpoint_metric={metric!r} is not logged in validation; "
            f"choose one of {', '.join(sorted(stats))}"
        )
    return stock(cfg, trainer, stats, tracking_best)
