"""Record training in ``metrics.jsonl`` through fairseq's progress bars, whatever ``common.log_format``.

fairseq passes everything that it logs to the bar around its data: in training every
``common.log_interval`` updates and after an epoch, in validation at the end.  Only the master process
records.  ``megalodon_tasks/runs/record.py`` describes the file.
"""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar

from megalodon_tasks.data.provenance import describe_data
from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.runs import record
from megalodon_tasks.runs.environment import environment
from megalodon_tasks.training.effective_batch import batch_record
from megalodon_tasks.training.model_flops import FlopCounter, peak_flops

logger = logging.getLogger(__name__)


class _Utilisation:
    """What relates the speed of a training to its device; set when the training starts.

    counter: of the model's operations.  peak: of the device in a second, if known.  step: updates when
    the counter was last read.
    """

    def __init__(self, trainer: Any) -> None:
        self.counter = FlopCounter(trainer.get_model())
        given = getattr(trainer.cfg.task, "peak_flops", None)
        self.peak = given or peak_flops(trainer.device)
        self.step = trainer.get_num_updates()

    def read(self, step: int, updates_per_second: float) -> dict[str, float]:
        """Return what is recorded of the updates since the last call."""
        operations, updates = self.counter.take(), step - self.step
        self.step = step
        if operations == 0 or updates < 1:
            return {}
        speed = operations / updates * updates_per_second
        return {"model_flops_per_second": speed} | ({"mfu": speed / self.peak} if self.peak else {})


_utilisation: _Utilisation | None = None


def install() -> None:
    """Record every training of this process."""
    wrap(checkpoint_utils, "load_checkpoint", _recording_start)
    wrap(progress_bar, "progress_bar", _recording_bar)


def _recording_start(stock: Callable, cfg: Any, trainer: Any, **kwargs: Any) -> tuple:
    # called once per training, when its model is built and the checkpoint to resume from is known
    extra_state, epoch_iterator = stock(cfg, trainer, **kwargs)
    if distributed_utils.get_global_rank() == 0:
        start = {
            "format": record.FORMAT,
            "params": sum(p.numel() for p in trainer.model.parameters()),
            **asdict(batch_record(trainer.cfg, trainer.data_parallel_world_size)),
            **environment(trainer.device),
            "data": describe_data(trainer.cfg.task.get("data") or ""),
            "config": record.plain_settings(trainer.cfg),
        }
        global _utilisation
        _utilisation = _Utilisation(trainer)
        step, epoch = trainer.get_num_updates(), epoch_iterator.next_epoch_idx
        _append(cfg.save_dir, {"event": "start", "step": step, "epoch": epoch, **start})
    return extra_state, epoch_iterator


def _recording_bar(stock: Callable, *args: Any, **kwargs: Any) -> progress_bar.BaseProgressBar:
    bar = stock(*args, **kwargs)
    # of fairseq's commands only training names its save folder here, meant for Aim
    save_dir = kwargs.get("aim_param_checkpoint_dir")
    if save_dir is None or distributed_utils.get_global_rank() != 0:
        return bar
    return RecordingBar(bar, save_dir, kwargs["epoch"], in_training="prefix" not in kwargs)


class RecordingBar(progress_bar.BaseProgressBar):
    """Pass everything on to ``wrapped_bar`` and append what is logged to the record in ``save_dir``."""

    def __init__(
        self,
        wrapped_bar: progress_bar.BaseProgressBar,
        save_dir: str,
        epoch: int,
        in_training: bool,
    ) -> None:
        self.wrapped_bar = wrapped_bar
        self.save_dir, self.epoch, self.in_training = save_dir, epoch, in_training
        self.device_peak = 0

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the data and follow the memory of the device."""
        for item in self.wrapped_bar:
            yield item
            self._measure_device()

    def log(self, stats: dict[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Record running averages; called every ``common.log_interval`` updates."""
        self._record(stats, {"event": "train_inner"}, step)
        self.wrapped_bar.log(stats, tag=tag, step=step)

    def print(self, stats: dict[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Record the averages of an epoch, or of a validation on the split ``tag``."""
        event = {"event": "train"} if self.in_training else {"event": "valid", "split": tag}
        self._record(stats, event, step)
        self.wrapped_bar.print(stats, tag=tag, step=step)

    def update_config(self, config: dict[str, Any]) -> None:
        """Pass on the configuration, which the ``start`` line has."""
        self.wrapped_bar.update_config(config)

    def _record(self, stats: dict[str, Any], event: dict[str, Any], step: int | None) -> None:
        values = {k: v for k, v in ((k, _number(v)) for k, v in stats.items()) if v is not None}
        if values.get("wpb") and {"wps", "bsz"} <= values.keys():
            values["samples_per_second"] = values["wps"] * values["bsz"] / values["wpb"]
        if event["event"] == "train_inner" and _utilisation and step and "ups" in values:
            values |= _utilisation.read(step, values["ups"])
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, else KiB
        values["host_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self._measure_device()
        if self.device_peak:
            values["device_peak_bytes"] = self.device_peak
        _append(self.save_dir, event | {"step": step, "epoch": self.epoch, **values})

    def _measure_device(self) -> None:
        """Take the peak since the last update from torch, that of the update from fairseq.

        fairseq resets torch's peak after an update and logs what it leaves of the memory, in GiB.
        """
        if not torch.cuda.is_initialized():
            return
        free = (metrics.get_meters("train_inner") or {}).get("gb_free")
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        in_update = 0 if free is None or free.val is None else total - round(free.val * 2**30)
        self.device_peak = max(self.device_peak, in_update, torch.cuda.max_memory_allocated())


def _number(value: Any) -> float | int | None:
    """Return a logged value as a number of Python; None for what is none."""
    if torch.is_tensor(value) and value.numel() == 1:
        value = value.item()
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        return None


def _append(save_dir: str, line: dict[str, Any]) -> None:
    file = Path(save_dir, record.METRICS)
    try:
        os.stat(save_dir)  # a folder that vanished is not made again
        record.append(file, line | {"time": time.time()})
    except OSError as error:  # a full disk, say: the training matters more
        logger.warning(f"{file}: a line is missing, it could not be written ({error})")
