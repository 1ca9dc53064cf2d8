"""Groups of processes that share sequences in training: ``task.chunk_parallel``.

Each group reads the batches that one process would read, and each of its processes computes consecutive
chunks of them (``models/chunk_parallel.py``).  Losses and gradients are summed over all processes, as
fairseq does in any case, so an update is that of one process for each group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch.nn import functional as F

from megalodon_tasks.models.chunk_parallel import ChunkParallel, set_chunk_parallel
from megalodon_tasks.models.layers.gated_attention import GatedAttention


class ChunkGroups:
    """Groups of ``size`` processes of consecutive ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._own: dist.ProcessGroup | None = None

    def shards(self, processes: int, rank: int) -> tuple[int, int]:
        """Return how many groups read the data, and which of them this process belongs to.

        Raises ``ValueError`` where the processes do not make whole groups.
        """
        if processes % self.size:
            raise ValueError(
                f"task.chunk_parallel={self.size} does not divide the number of processes, {processes}: "
                "start a multiple of it (distributed_training.distributed_world_size, or torchrun "
                "--nproc-per-node)"
            )
        return processes // self.size, rank // self.size

    @contextmanager
    def sharing(self, model: torch.nn.Module) -> Iterator[ChunkParallel]:
        """Let ``model`` take its input for a piece of longer sequences, inside the block."""
        if self._own is None:  # all processes create all groups, in the same order
            ranks = range(dist.get_world_size())
            groups = [dist.new_group(list(each)) for each in _divided(ranks, self.size)]
            self._own = groups[dist.get_rank() // self.size]
        try:
            yield set_chunk_parallel(model, self._own)
        finally:
            set_chunk_parallel(model, None)


def piece_of_batch(
    sample: dict[str, Any], model: torch.nn.Module, parallel: ChunkParallel, pad: int
) -> dict[str, Any]:
    """Return this process's part of a batch of whole sequences, whose end is padded to whole chunks.

    Padding after the last token changes no loss.  Sentences are counted by the first process only.
    """
    chunk_size = next(m.chunk_size for m in model.modules() if isinstance(m, GatedAttention))

    def piece(tokens_BL: torch.Tensor) -> torch.Tensor:
        missing = -tokens_BL.shape[1] % (parallel.size * chunk_size)
        return parallel.piece(F.pad(tokens_BL, (0, missing), value=pad), chunk_size)

    tokens_BL, target_BL = piece(sample["net_input"]["src_tokens"]), piece(sample["target"])
    return sample | {
        "net_input": sample["net_input"] | {"src_tokens": tokens_BL},
        "target": target_BL,
        "ntokens": int((target_BL != pad).sum()),
        "nsentences": sample["nsentences"] if parallel.rank == 0 else 0,
    }


def check_settings(
    size: int,
    tokens_per_sample: int,
    documents: str,
    chunk_size: int | None,
    compile_blocks: bool = False,
) -> None:
    """Raise ``ValueError`` unless sequences of these settings can be divided over ``size`` processes."""
    if size < 1:
        raise ValueError(f"task.chunk_parallel={size} must be at least 1")
    if size == 1:
        return
    if compile_blocks:
        raise ValueError(
            f"model.compile_blocks=true with task.chunk_parallel={size}: blocks that exchange states "
            "with other processes are not compiled; leave out one of them"
        )
    if documents != "none":
        raise ValueError(
            f"task.documents={documents} with task.chunk_parallel={size}: documents that are kept apart "
            "cannot be divided over processes; set task.documents=none or task.chunk_parallel=1"
        )
    if chunk_size is None or tokens_per_sample % (size * chunk_size):
        raise ValueError(
            f"task.tokens_per_sample={tokens_per_sample} is no multiple of task.chunk_parallel={size} "
            f"times model.chunk_size={chunk_size}: each process takes whole chunks of a block"
        )


def _divided(ranks: range, size: int) -> list[range]:
    return [ranks[start : start + size] for start in range(0, len(ranks), size)]
