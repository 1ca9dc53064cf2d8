"""Make an update learn from as much data as the recipe says, on any number of processes.

``task.effective_batch`` is what all processes together read for an update, ``dataset.batch_size`` (or
``dataset.max_tokens``, where that is not set) what one process reads at a time, and
``optimization.update_freq`` follows from both.  fairseq trains on all GPUs that it sees: without this,
a recipe for one GPU would have eight times its batch on eight of them, at the same learning rate.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from megalodon_tasks.errors import user_errors
from megalodon_tasks.fairseq_compat.patching import wrap


@dataclass(frozen=True)
class BatchRecord:
    """What a training run records about its batch, in ``metrics.jsonl`` and in checkpoints.

    effective_batch: items or tokens (``effective_batch_unit``) of an update over all processes, tokens
    as a limit; None if it differs between epochs.
    """

    effective_batch: int | None
    effective_batch_unit: str
    processes: int


def install() -> None:
    """Derive ``update_freq`` before a training starts, and record the batch in its checkpoints."""
    wrap(checkpoint_utils, "load_checkpoint", _with_update_freq)
    wrap(Trainer, "save_checkpoint", _with_record)


def batch_record(cfg: Any, processes: int) -> BatchRecord:
    """Return what ``processes`` processes read for an update under the whole configuration ``cfg``."""
    name, size = _limit(cfg.dataset)
    frequencies = set(cfg.optimization.update_freq)
    readers, _ = _readers(cfg, processes)
    total = size * readers * frequencies.pop() if len(frequencies) == 1 else None
    return BatchRecord(total, "items" if name == "batch_size" else "tokens", processes)


def derived_update_freq(cfg: Any, processes: int) -> list[int]:
    """Return ``optimization.update_freq`` for ``task.effective_batch``, if that is set.

    Raises ``ValueError`` where the effective batch is no multiple of what the processes read at a time,
    and where ``update_freq`` is given too and says otherwise.
    """
    given = list(cfg.optimization.update_freq)
    effective = getattr(cfg.task, "effective_batch", None)
    if effective is None:
        return given
    name, size = _limit(cfg.dataset)
    readers, description = _readers(cfg, processes)
    together = size * readers
    if effective < 1 or effective % together:
        raise ValueError(
            f"task.effective_batch={effective} is no multiple of {together}, which is "
            f"dataset.{name}={size} on each of {description}; " + _advice(effective, name, readers)
        )
    frequency = effective // together
    if given not in ([1], [frequency]):
        raise ValueError(
            f"optimization.update_freq={given} contradicts task.effective_batch={effective}: with "
            f"dataset.{name}={size} on each of {description} that makes {frequency}; leave out "
            "update_freq, or set task.effective_batch=null"
        )
    return [frequency]


def _readers(cfg: Any, processes: int) -> tuple[int, str]:
    """Count those who read batches of their own, with words for them; chunk parallelism shares one."""
    shared_by = getattr(cfg.task, "chunk_parallel", 1)
    if shared_by == 1:
        return processes, f"{processes} processes"
    groups = max(1, processes // shared_by)  # the task refuses what does not divide
    return groups, f"{groups} groups of {shared_by} processes"


def _limit(dataset: Any) -> tuple[str, int]:
    """Return the setting that limits a batch of one process, and its value."""
    name = "max_tokens" if dataset.batch_size is None else "batch_size"
    return name, dataset[name]


def _advice(effective: int, name: str, processes: int) -> str:
    if effective > 0 and effective % processes == 0:
        share = effective // processes
        return f"set dataset.{name} to {share}, or to a number that divides it"
    return (
        "use a number of processes that divides it (CUDA_VISIBLE_DEVICES chooses the GPUs), or set "
        "task.effective_batch=null and optimization.update_freq for a batch of your own"
    )


@user_errors()
def _with_update_freq(stock: Callable, cfg: Any, trainer: Trainer, **kwargs: Any) -> tuple:
    frequencies = derived_update_freq(trainer.cfg, trainer.data_parallel_world_size)
    trainer.cfg.optimization.update_freq = frequencies
    return stock(cfg, trainer, **kwargs)


def _with_record(
    stock: Callable, self: Trainer, filename: str, extra_state: dict[str, Any]
) -> str | None:
    batch = batch_record(self.cfg, self.data_parallel_world_size)
    return stock(self, filename, extra_state | asdict(batch))
