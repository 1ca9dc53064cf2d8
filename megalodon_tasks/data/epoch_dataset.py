"""What all data sets have in common towards fairseq: an order that depends on the epoch, and sizes."""

from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from megalodon_tasks.errors import user_errors


class EpochDataset(FairseqDataset):
    """A fairseq dataset; a subclass provides ``sizes`` (items,) and ``ordered_indices``."""

    epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by fairseq before it asks for the order."""
        self.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Never: fairseq would continue with the batches of the first epoch of the process.

        A resumed run would then see other batches than an uninterrupted one.
        """
        return False

    def size(self, index: int) -> int:
        """Return the length of the item."""
        return int(self.sizes[index])

    def num_tokens(self, index: int) -> int:
        """Return what the item counts towards ``max_tokens``."""
        return self.size(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return ``num_tokens`` of many items."""
        return self.sizes[indices]

    @user_errors()
    def batch_by_size(
        self, indices: np.ndarray, max_tokens: int | None = None, **limits: Any
    ) -> list[np.ndarray]:
        """Cut the order into batches; raise :class:`UserError` for an item that fits in none."""
        longest = int(self.sizes[indices].max(initial=0))
        if max_tokens is not None and longest > max_tokens:
            raise ValueError(
                f"dataset.max_tokens={max_tokens} (--max-tokens; in validation max_tokens_valid): an "
                f"item of {longest} tokens fits in no batch; raise it to at least {longest}, or leave "
                "it out and set dataset.batch_size"
            )
        return super().batch_by_size(indices, max_tokens=max_tokens, **limits)

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int | float | tuple[int | float, ...] | None
    ) -> tuple[np.ndarray, list[int]]:
        """Keep all items, where fairseq would drop long ones."""
        return indices, []
