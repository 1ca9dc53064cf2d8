"""Read many contexts, each distinct beginning once, and score or continue what follows them.

Contexts may have any length: they are read in pieces with the state carried.  What a row gives does not
depend, up to rounding, on the rows that are computed with it: contexts are batched only where they are
equally long, and what follows them is padded on the right.
Legend: B batch, L length, N real positions, D model dim, V vocabulary.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState, batch_size, reorder_state

Row = TypeVar("Row")

# Contexts that share so many tokens have them read once; for fewer, a call of their own does not pay.
SHARED = 64
# Positions that are scored at a time, which bounds the memory for their scores, (N, V).
SCORED = 512


@dataclass(frozen=True)
class Reader:
    """How rows are read: so many at a time, ``piece`` tokens of each at a time."""

    model: LanguageModel
    batch_size: int
    piece: int

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def read(self, tokens_BL: torch.Tensor, state: StackState | None) -> StackState | None:
        """Return the state after ``tokens_BL``; with no tokens, the one that is given."""
        for part_BL in tokens_BL.to(self.device).split(self.piece, dim=1):
            if part_BL.shape[1]:
                _, state = self._features(part_BL, state)
        return state

    def _features(
        self,
        tokens_BL: torch.Tensor,
        state: StackState | None,
        padding_BL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, StackState]:
        x_BLD, after = self.model.features(tokens_BL, state, padding_BL)
        assert isinstance(after, StackState), "rows without document starts have one state together"
        return x_BLD, after

    def batches(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Cut ``rows`` into batches."""
        rows = iter(rows)
        while batch := list(itertools.islice(rows, self.batch_size)):
            yield batch

    def contexts(
        self, contexts: Sequence[np.ndarray]
    ) -> Iterator[tuple[list[int], StackState | None]]:
        """Yield numbers of contexts of one length, and the state after each of them, one row each.

        contexts: tokens (L,) int64.  A beginning that several of them share is read once.
        """
        pending: list[tuple[list[int], int, int, StackState | None]]
        pending = [(list(range(len(contexts))), 0, 0, None)]
        while pending:
            rows, start, stop, state = pending.pop()
            state = self.read(torch.from_numpy(contexts[rows[0]][None, start:stop]), state)
            by_length = defaultdict(list)
            for group in _alike([contexts[row][stop : stop + SHARED] for row in rows]):
                members = [rows[i] for i in group]
                if len(members) > 1:
                    end = stop + _shared([contexts[row][stop:] for row in members])
                    pending.append((members, stop, end, state))
                else:
                    by_length[len(contexts[members[0]])].append(members[0])
            for alike in by_length.values():
                for part in self.batches(alike):
                    tokens_BL = torch.from_numpy(np.stack([contexts[row][stop:] for row in part]))
                    yield part, self.read(tokens_BL, select(state, [0] * len(part)))

    def score(
        self, rows: Sequence[np.ndarray], state: StackState | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p of each row's tokens in nats, (B,) float64, and whether all are the likeliest.

        rows: tokens (L + 1,) int64, of which the first is only read.  state: that before each row.
        """
        lengths = torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64)
        order = lengths.argsort(descending=True, stable=True)
        lengths, state = lengths[order], select(state, order.tolist())
        tokens_BL = torch.zeros(len(rows), int(lengths[0]) + 1, dtype=torch.int64)
        for i, row in enumerate(order.tolist()):
            tokens_BL[i, : len(rows[row])] = torch.from_numpy(rows[row])
        total_B = torch.zeros(len(rows), dtype=torch.float64)
        greedy_B = torch.ones(len(rows), dtype=torch.bool)
        for start in range(0, int(lengths[0]), self.piece):
            count = int((lengths > start).sum())
            stop = min(start + self.piece, int(lengths[0]))
            real_BL = torch.arange(start, stop) < lengths[:count, None]
            padding_BL = None if bool(real_BL.all()) else (~real_BL).to(self.device)
            part_BL = tokens_BL[:count, start:stop].to(self.device)
            x_BLD, state = self._features(part_BL, select(state, range(count)), padding_BL)
            targets_N = tokens_BL[:count, start + 1 : stop + 1][real_BL]
            log_p_N, best_N = self._log_p(x_BLD[real_BL.to(x_BLD.device)], targets_N)
            row_N = real_BL.nonzero()[:, 0]
            total_B.index_add_(0, row_N, log_p_N)
            greedy_B[row_N[best_N != targets_N]] = False
        back = order.argsort()
        return total_B[back], greedy_B[back]

    def _log_p(
        self, x_ND: torch.Tensor, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p of the targets, (N,) float64, and the likeliest tokens, (N,), on the CPU."""
        log_p, best = [], []
        for part_ND, part_N in zip(x_ND.split(SCORED), targets_N.split(SCORED), strict=True):
            scores_NV = self.model.output.scores(part_ND[None])[0]  # pyright: ignore[reportCallIssue]
            scores_NV = scores_NV.float().log_softmax(-1)
            target_N1 = part_N.to(scores_NV.device)[:, None]
            log_p.append(scores_NV.gather(1, target_N1)[:, 0].double().cpu())
            best.append(scores_NV.argmax(-1).cpu())
        return torch.cat(log_p), torch.cat(best)


def select(state: StackState | None, rows: Iterable[int]) -> StackState | None:
    """Return the given rows of a state; that of the empty text is None for any rows."""
    if state is None:
        return None
    order = list(rows)
    if order == list(range(batch_size(state))):
        return state
    device = state.blocks[0].attention.key.device
    return reorder_state(state, torch.tensor(order, dtype=torch.int64, device=device))


def _alike(blocks: Sequence[np.ndarray]) -> list[list[int]]:
    """Return numbers of blocks in groups: equal ones together, and short ones by themselves."""
    groups = defaultdict(list)
    for i, block in enumerate(blocks):
        groups[block.tobytes() if len(block) == SHARED else i].append(i)
    return list(groups.values())


def _shared(rows: Sequence[np.ndarray]) -> int:
    """Return how many tokens all rows begin with."""
    first, length = rows[0], min(map(len, rows))
    for row in rows[1:]:
        different = np.flatnonzero(first[:length] != row[:length])
        length = int(different[0]) if len(different) else length
    return length
