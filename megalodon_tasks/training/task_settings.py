"""What the tasks of all recipes share: settings, and batches that are new in each epoch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from megalodon_tasks.models.settings import setting


@dataclass
class TaskSettings(FairseqDataclass):
    """Settings of every task of this project."""

    # Without a default of its own, fairseq's parser would refuse the positional argument.
    data: Optional[str] = setting(
        None,
        "folder of the prepared data; for language models also what fairseq-preprocess "
        "--only-source wrote",
    )
    effective_batch: Optional[int] = setting(
        None,
        "items (tokens, without dataset.batch_size) of an update over all processes, from "
        "which update_freq follows; default: whatever results",
    )
    skip_nonfinite: int = setting(
        0,
        "updates of a run that may be skipped because a loss or gradient is not finite; the "
        "next such update ends the run",
    )
    peak_flops: Optional[float] = setting(
        None,
        "floating-point operations a second of one device, for mfu in metrics.jsonl; "
        "default: known for some GPUs",
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    # fairseq's switch, read from here.  A default of True would make the flag turn it off.
    rebuild_batches: bool = setting(
        False, "make new batches for each epoch; always done, whatever this says"
    )


class NewBatchesEachEpoch:
    """Mix into a task whose data sets make new batches for each epoch (``rebuild_batches``)."""

    cfg: Any
    saves_last_often: ClassVar[bool] = True  # see fairseq_compat/last_checkpoint.py

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """Keep iterators, and with them their data workers, from epoch to epoch.

        An iterator that is dropped leaves its workers to the garbage collector, which takes 5 seconds to
        end them, or runs inside a worker of the next epoch, where torch then prints a traceback.

        A split that is trained on and evaluated too needs two iterators, though fairseq keeps one.
        """
        return self.cfg.train_subset not in self.cfg.valid_subset.split(",")
