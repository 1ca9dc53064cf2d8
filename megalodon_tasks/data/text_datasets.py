"""A stream of tokens cut into blocks for a language model.  Legend: B batch, L length.

There are two ways: :class:`BlockDataset`, blocks in any order, each on its own; and
:class:`RowDataset`, contiguous rows read left to right by a model that carries its state along.

The main process decides what a batch holds: its entries are :class:`Block` values, which say where to
read.  Data workers live for several epochs with the data set as it was when they started; so they read
the right tokens although the cut changes with each epoch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from megalodon_tasks.data.epoch_dataset import EpochDataset
from megalodon_tasks.data.token_stream import TokenStream
from megalodon_tasks.errors import user_errors

BREAK_MODES = ("none", "complete", "documents", "eos")
# Distinguish these uses of a seed from others; any constants will do.
_CUT, _ORDER = 0xB10C, 0x0DE2


class Block(NamedTuple):
    """Tokens ``start`` to ``stop`` of the stream.  ``begins``, ``ends``: first and last of its row."""

    id: int
    start: int
    stop: int
    begins: bool = True
    ends: bool = True


class BlockLength(NamedTuple):
    """``m * unit`` tokens with m uniform in ``low`` .. ``high``, drawn for each block and epoch."""

    unit: int
    low: int = 1
    high: int = 1

    @property
    def longest(self) -> int:
        return self.unit * self.high

    def draw(self, seed: int, epoch: int) -> Iterator[int]:
        """Yield lengths without end, the same for the same seed and epoch.

        Raises ``ValueError`` for an empty range.
        """
        if self.unit < 1 or not 1 <= self.low <= self.high:
            raise ValueError(
                f"blocks of {self.low} to {self.high} times {self.unit} tokens: all three must be "
                "positive and in this order (task.block_multiple_min, task.block_multiple_max, "
                "task.tokens_per_sample)"
            )
        generator = np.random.default_rng([_CUT, seed, epoch])
        while True:
            yield self.unit * int(generator.integers(self.low, self.high + 1))


class TextDataset(EpochDataset):
    """Reads blocks of a stream and makes batches of them."""

    def __init__(self, stream: TokenStream, length: BlockLength, seed: int) -> None:
        self.stream, self.length, self.seed = stream, length, seed

    @user_errors()
    def __getitem__(self, block: Block) -> dict[str, Any]:
        """Return ``source`` and ``target``, int64 of one length, and where documents start in them."""
        source, target = self.stream.source_and_target(block.start, block.stop)
        starts = self.stream.starts_between(block.start, block.stop)
        return {"block": block, "source": source, "target": target, "starts": starts}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch; ``{}`` of no samples, which fairseq asks for when processes have uneven shares.

        ``net_input``: ``src_tokens`` (B, L) int64 padded on the right, ``src_lengths`` (B,), and where
        documents are kept apart ``document_starts`` (B, L) bool.  ``target``: (B, L) int64, padded, of
        which ``ntokens`` are not padding.
        ``begins`` and ``ends``: whether these are the first and last blocks of their rows.
        """
        if not samples:
            return {}
        lengths = [len(sample["target"]) for sample in samples]
        target_BL = self._padded([sample["target"] for sample in samples])
        net_input = {
            "src_tokens": self._padded([sample["source"] for sample in samples]),
            "src_lengths": torch.tensor(lengths, dtype=torch.int64),
        }
        if len(self.stream.document_starts):
            starts_BL = torch.zeros(net_input["src_tokens"].shape, dtype=torch.bool)
            for row, sample in enumerate(samples):
                starts_BL[row, sample["starts"]] = True
            net_input["document_starts"] = starts_BL
        return {
            "id": torch.tensor([sample["block"].id for sample in samples], dtype=torch.int64),
            "net_input": net_input,
            "target": target_BL,
            "nsentences": len(samples),
            "ntokens": int((target_BL != self.stream.pad).sum()),
            "begins": samples[0]["block"].begins,
            "ends": samples[0]["block"].ends,
        }

    def _padded(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        padded_BL = pad_sequence(tokens, batch_first=True, padding_value=self.stream.pad)
        if padded_BL.shape[1]:
            return padded_BL
        # All rows have ended, but not those of other processes: a model needs a step.
        return padded_BL.new_full((len(tokens), 1), self.stream.pad)


class BlockDataset(TextDataset):
    """Blocks of the stream, each read by itself.

    ``break_mode``: ``none`` cuts anywhere; ``complete`` fills a block with whole lines (a line longer
    than a block is cut), ``documents`` with whole documents; ``eos`` makes each line a block.
    ``shuffle``: in random order, which like the cut depends only on (seed, epoch); otherwise from the
    first to the last.
    """

    def __init__(
        self,
        stream: TokenStream,
        length: BlockLength,
        break_mode: str = "none",
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(stream, length, seed)
        if break_mode not in BREAK_MODES:
            raise ValueError(
                f"task.sample_break_mode={break_mode!r} is unknown; choose one of "
                f"{', '.join(BREAK_MODES)} (task.documents keeps documents apart)"
            )
        if break_mode == "documents" and not len(stream.document_starts):
            raise ValueError(
                "task.sample_break_mode=documents needs task.documents, which says where they begin"
            )
        self.break_mode, self.shuffle = break_mode, shuffle
        self.edges = self._cut()

    def set_epoch(self, epoch: int) -> None:
        """Cut the blocks of ``epoch``.  Called by fairseq before it asks for the order."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.edges = self._cut()

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in each block, (blocks,) int64."""
        return np.diff(self.edges)

    def _cut(self) -> np.ndarray:
        """Return where blocks begin and end, (blocks + 1,) int64."""
        if self.break_mode == "eos":
            return np.unique(np.concatenate(([0], self.stream.line_ends)))
        documents = self.break_mode == "documents"
        ends = self.stream.document_starts if documents else self.stream.line_ends
        total, edges = len(self.stream), [0]
        for length in self.length.draw(self.seed, self.epoch):
            stop = min(edges[-1] + length, total)
            if self.break_mode != "none" and stop < total:
                count = np.searchsorted(ends, stop, side="right")
                whole = int(ends[count - 1]) if count else 0
                if documents and whole <= edges[-1]:
                    self._refuse_long_document(edges[-1], length)
                stop = whole if whole > edges[-1] else stop
            edges.append(stop)
            if stop == total:
                return np.array(edges)
        raise AssertionError("the lengths of blocks have no end")

    def _refuse_long_document(self, start: int, length: int) -> None:
        later = self.stream.document_starts[self.stream.document_starts > start]
        size = int(later[0] if len(later) else len(self.stream)) - start
        raise ValueError(
            f"{self.stream.name}: a document of {size} tokens is longer than a block of {length}; raise "
            "task.tokens_per_sample, or read with task.stream=true, which carries the state along"
        )

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, index: int | Block) -> dict[str, Any]:
        """Read a block; a number counts the blocks of the current epoch."""
        return super().__getitem__(index if isinstance(index, Block) else self.block(int(index)))

    def block(self, index: int) -> Block:
        """Return block ``index`` of this epoch."""
        return Block(index, int(self.edges[index]), int(self.edges[index + 1]))

    def ordered_indices(self) -> np.ndarray:
        """Return the order of the epoch; if shuffled, blocks of one length lie together."""
        if not self.shuffle:
            return np.arange(len(self))
        order = np.random.default_rng([_ORDER, self.seed, self.epoch]).permutation(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]

    def batch_by_size(self, indices: np.ndarray, **limits: Any) -> list[list[Block]]:
        """Cut the order into batches of at most ``max_tokens`` or ``max_sentences``.

        Unless shuffled for training, every block is in one: fairseq drops the last batch if its size is
        no multiple of ``required_batch_size_multiple``, 8 by default.
        """
        if not self.shuffle:
            limits = limits | {"required_batch_size_multiple": 1}
        batches = super().batch_by_size(indices, **limits)
        return [[self.block(int(index)) for index in batch] for batch in batches]

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int | None
    ) -> tuple[np.ndarray, list[int]]:
        """Refuse what is longer than ``dataset.max_tokens``: fairseq would drop it from training."""
        if max_sizes is not None and self.sizes.max() > max_sizes:
            raise ValueError(
                f"{self.stream.name}: the longest block has {self.sizes.max()} tokens, but at most "
                f"{max_sizes} fit in a batch; raise dataset.max_tokens, or lower task.tokens_per_sample "
                "or task.block_multiple_max"
            )
        return indices, []


class RowDataset(TextDataset):
    """The stream cut in rows, read side by side from left to right.

    Each process has its own rows.  All rows advance by blocks of one length; where documents are kept
    apart a row starts with one.  :meth:`lay_out` must be called before batches are made.
    """

    rows_per_batch = rows_per_process = processes = filled = 1
    _made: tuple[tuple, list[list[Block]]] = ((), [])

    def lay_out(
        self,
        rows: int,
        processes: int,
        rows_per_batch: int | None = None,
        filled: int | None = None,
    ) -> None:
        """Give ``rows`` rows to each process, of which ``rows_per_batch`` (default: all) go together.

        The first ``filled`` rows (default: all) hold the stream, the others nothing.  Raises
        ``ValueError`` where there are fewer tokens than rows to fill.
        """
        self.filled = rows * processes if filled is None else filled
        if rows < 1 or self.filled > len(self.stream):
            raise ValueError(
                f"{self.stream.name}: its {len(self.stream)} tokens cannot be cut in {rows} rows for "
                f"each of {processes} processes; choose another dataset.batch_size or task.eval_streams"
            )
        self.rows_per_process, self.processes = rows, processes
        self.rows_per_batch = min(rows_per_batch or rows, rows)

    @property
    def row_edges(self) -> np.ndarray:
        """Where rows begin and end, (rows + 1,) int64."""
        edges = np.linspace(0, len(self.stream), self.filled + 1).astype(np.int64)
        starts = self.stream.document_starts
        if len(starts):
            inner = edges[1:-1]
            at = np.searchsorted(starts, inner)
            before = starts[np.maximum(at - 1, 0)]
            after = np.append(starts, len(self.stream))[at]
            edges[1:-1] = np.where(inner - before < after - inner, before, after)
        empty = self.rows_per_process * self.processes - self.filled
        return np.append(edges, np.full(empty, len(self.stream)))

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._batches())

    def _batches(self) -> list[list[Block]]:
        """Return a batch per process for each step of the rows, as fairseq deals them out."""
        layout = (
            self.epoch,
            self.rows_per_process,
            self.processes,
            self.rows_per_batch,
            self.filled,
        )
        if self._made[0] != layout:
            self._made = layout, self._make_batches()
        return self._made[1]

    def _make_batches(self) -> list[list[Block]]:
        batches, next_id, edges = [], 0, self.row_edges
        for first in range(0, self.rows_per_process, self.rows_per_batch):
            local = range(first, min(first + self.rows_per_batch, self.rows_per_process))
            rows = [p * self.rows_per_process + row for p in range(self.processes) for row in local]
            longest = int((np.diff(edges)[rows]).max())
            position, lengths = 0, self.length.draw(self.seed, self.epoch)
            while position < longest:
                step = min(next(lengths), longest - position)
                ends = position + step == longest
                for process in range(self.processes):
                    batch = []
                    for row in rows[process * len(local) : (process + 1) * len(local)]:
                        low, high = np.minimum(
                            edges[row] + (position, position + step), edges[row + 1]
                        )
                        batch.append(Block(next_id, int(low), int(high), position == 0, ends))
                        next_id += 1
                    batches.append(batch)
                position += step
        return batches

    def ordered_indices(self) -> np.ndarray:
        """Return the order from left to right."""
        return np.arange(len(self))

    def batch_by_size(self, indices: np.ndarray, **limits: Any) -> list[list[Block]]:
        """Return the batches of the layout, which already respects fairseq's limits."""
        return self._batches()
