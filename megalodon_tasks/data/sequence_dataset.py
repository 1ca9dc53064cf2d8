"""Prepared labelled sequences as a fairseq dataset.  Legend: B batch, L length."""

from typing import Any

import numpy as np
import torch

from megalodon_tasks.data.epoch_dataset import EpochDataset
from megalodon_tasks.data.sequences import PreparedSplit
from megalodon_tasks.errors import user_errors

# Distinguishes this use of a seed from others; any constant will do.
_SHUFFLE = 0x5EED


class SequenceDataset(EpochDataset):
    """The items of one prepared split, in batches padded on the right.

    ``shuffle``: the order is a permutation that depends only on (seed, epoch), so that a resumed run
    sees the same batches; the benchmarks draw plain shuffled batches of a fixed size.  Otherwise items
    are ordered from the shortest to the longest, which wastes least on padding.

    ``length_pool``: with ``shuffle``, each run of this many items of the permutation is sorted by
    length, so that batches cut from it need less padding; 0 sorts nothing.

    Raises ``ValueError`` if a sequence is longer than ``max_length`` (None: no limit), and if
    ``length_pool`` is negative.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        padding_value: int = 0,
        max_length: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        length_pool: int = 0,
    ) -> None:
        if length_pool < 0:
            raise ValueError(f"task.length_pool={length_pool} is negative; 0 sorts nothing")
        self.split = split
        self.padding_value, self.shuffle, self.seed = padding_value, shuffle, seed
        self.length_pool = length_pool
        self.lengths = {name: split.lengths(name) for name in split.spec.columns}
        # an item costs, and is limited by, its longest sequence
        self.sizes = np.maximum.reduce(list(self.lengths.values()))
        self.max_length = max_length
        if max_length is not None:
            self._check_lengths(np.arange(len(self)), max_length)

    def __len__(self) -> int:
        return len(self.split)

    @user_errors()
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``{"id", "label"}`` and one 1-D tensor per column.

        Symbols are int64.  Samples of a signal are float32, scaled as ``spec.scale`` says.
        """
        item = {"id": int(index), "label": int(self.split.labels[index])}
        for name in self.split.spec.columns:
            values = self.split.sequence(name, index)
            item[name] = torch.from_numpy(self._input(values))
        return item

    def _input(self, stored: np.ndarray) -> np.ndarray:
        scale = self.split.spec.scale
        if scale is not None:
            return scale.apply(stored)
        return stored.astype(np.float32 if stored.dtype.kind == "f" else np.int64)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch; ``{}`` of no samples, which fairseq asks for when processes have uneven shares.

        ``net_input`` has ``inputs`` (B, L), padded with ``padding_value`` to the longest of the batch,
        and ``lengths`` (B,) int64; for pairs also ``inputs2`` and ``lengths2``.  ``target``: (B,) int64.
        """
        if not samples:
            return {}
        net_input = {}
        for name in self.split.spec.columns:
            sequences = [sample[name] for sample in samples]
            net_input[name] = torch.nn.utils.rnn.pad_sequence(
                sequences, batch_first=True, padding_value=self.padding_value
            )
            net_input[name.replace("inputs", "lengths")] = torch.tensor(
                [len(sequence) for sequence in sequences], dtype=torch.int64
            )
        return {
            "id": torch.tensor([sample["id"] for sample in samples], dtype=torch.int64),
            "net_input": net_input,
            "target": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
            "nsentences": len(samples),
            "ntokens": sum(int(v.sum()) for k, v in net_input.items() if k.startswith("lengths")),
        }

    def ordered_indices(self) -> np.ndarray:
        """Return the order of the epoch, (items,) int64."""
        if not self.shuffle:
            return np.argsort(self.sizes, kind="stable")
        order = np.random.default_rng([_SHUFFLE, self.seed, self.epoch]).permutation(len(self))
        if self.length_pool:
            pool = np.arange(len(self)) // self.length_pool
            order = order[np.lexsort((self.sizes[order], pool))]
        return order

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Cut the order into batches; in evaluation each item is in one, whatever the multiple.

        fairseq drops the last batch if its size is no multiple of ``required_batch_size_multiple``, 8 by
        default (data/data_utils.py:357), so that a metric would be of fewer items than the split has.
        """
        multiple = required_batch_size_multiple if self.shuffle else 1
        return super().batch_by_size(
            indices,
            max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=multiple,
        )

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int | float | tuple[int | float, ...] | None
    ) -> tuple[np.ndarray, list[int]]:
        """Refuse what is too long for the task or the model, where fairseq would drop it from training.

        Raises ``ValueError`` naming the first such item.
        """
        if isinstance(max_sizes, (tuple, list)):
            max_sizes = min(max_sizes)
        if max_sizes is not None:
            self._check_lengths(indices, max_sizes)
        return indices, []

    def _check_lengths(self, indices: np.ndarray, limit: float) -> None:
        too_long = indices[self.sizes[indices] > limit]
        if len(too_long):
            index = int(too_long.min())
            setting = "set task.max_positions (--max-positions)"
            if self.max_length is not None and limit < self.max_length:
                setting = "raise dataset.max_tokens (--max-tokens), or the model's own limit,"
            raise ValueError(
                f"split {self.split.name!r} of {self.split.folder}: item {index} has "
                f"{self.size(index)} steps, but the limit is {limit:g}, and {len(too_long)} items in "
                f"all exceed it; {setting} to at least {int(self.sizes.max())}, or prepare the data "
                "with shorter sequences"
            )
