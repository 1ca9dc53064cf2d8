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
  not before), which changes a finished model;
* an unknown ``best_checkpoint_metric`` is a bare KeyError (fairseq_cli/train.py:534).
"""

import atexit
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.logging import metrics, progress_bar

from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.fairseq_compat import best_checkpoint, frequent_last, restoring
from megalodon_tasks.fairseq_compat.atomic_files import remove_leftovers
from megalodon_tasks.fairseq_compat.log_file import keep_file_handlers
from megalodon_tasks.fairseq_compat.patching import replace, training_modules
from megalodon_tasks.files import sole_writer

logger = logging.getLogger(__name__)

_claimed = contextlib.ExitStack()  # holds the lock on the folder of the running job
atexit.register(_claimed.close)


def install() -> None:
    """Patch ``load_checkpoint``."""
    replace(checkpoint_utils, "load_checkpoint", _with_clean_start)


def _with_clean_start(stock: Callable) -> Callable:
    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> tuple:
        _forget_last_job(trainer.cfg)
        suffix, schedule = trainer.checkpoint_suffix, trainer.cfg.lr_scheduler._name
        restoring.check_settings(cfg, suffix, schedule)
        another_run = restoring.is_another_run(cfg, suffix)
        if trainer.data_parallel_rank == 0 and not cfg.no_save:
            _claim(Path(cfg.save_dir))
        extra_state, epoch_iterator = stock(cfg, trainer, **kwargs)
        if extra_state is not None and another_run:
            restoring.start_counting(trainer)
        elif extra_state is not None:
            best_checkpoint.restore_patience(extra_state)
            _restore_running_averages(cfg, extra_state)
        _skip_if_finished(trainer)
        return extra_state, epoch_iterator

    return load_checkpoint


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
        replace(train, "get_valid_stats", _with_metric_check)
        best_checkpoint.install_in(train)
        frequent_last.install(train)


def _restore_running_averages(cfg: Any, extra_state: dict) -> None:
    at_epoch_start = extra_state["train_iterator"]["iterations_in_epoch"] == 0
    saved = extra_state.get("metrics", {})
    if at_epoch_start and "train_inner" in saved and not cfg.reset_meters:
        metrics.load_state_dict({"train_inner": saved["train_inner"]})


def _skip_if_finished(trainer: Any) -> None:
    done, total = trainer.get_num_updates(), trainer.cfg.optimization.max_update
    if 0 < total <= done:
        logger.info(f"this run is finished ({done} of {total} updates): nothing is left to train")
        best_checkpoint.warn_without_best(trainer.cfg)
        trainer.cfg.optimization.max_epoch = -1  # the loop over epochs ends before its first


def _with_metric_check(stock: Callable) -> Callable:
    def get_valid_stats(cfg: Any, trainer: Any, stats: dict, tracking_best: bool) -> dict:
        metric = cfg.checkpoint.best_checkpoint_metric
        if metric not in stats:
            raise UserError(
                f"checkpoint.best_checkpoint_metric={metric!r} is not logged in validation; "
                f"choose one of {', '.join(sorted(stats))}"
            )
        return stock(cfg, trainer, stats, tracking_best)

    return get_valid_stats
