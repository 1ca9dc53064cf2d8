"""What ``generate`` carries from step to step: one state per row of the batch.

Rows of a batch may have read different numbers of tokens, since padding counts as absent.  Rows at the
same step of their chunk are computed together.  Legend: B batch, L length, D model dim.
"""

from collections import defaultdict

import torch

from megalodon_tasks.models.decoding import Decoder
from megalodon_tasks.models.documents import RowStates
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState, join_states, open_steps, split_state


class MegalodonCache:
    """The states after the tokens read so far, in place of transformers' cache of keys and values.

    Its size does not grow with the number of tokens, unless attention is full.
    """

    is_compileable = False

    def __init__(self) -> None:
        self._columns = 0
        self._rows: RowStates = ()
        # Rows at the same step of their chunk, and what continues them, while single tokens are read.
        self._decoders: list[tuple[list[int], Decoder]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns read, padding included."""
        return self._columns

    def states(self, batch: int) -> RowStates:
        """Return the state of each row, None for one that has read nothing."""
        for rows, decoder in self._decoders:
            for row, state in zip(rows, split_state(decoder.state()), strict=True):
                self._set(row, state)
        self._decoders = []
        if not self._columns:
            self._rows = (None,) * batch
        return self._rows

    def _set(self, row: int, state: StackState) -> None:
        self._rows = (*self._rows[:row], state, *self._rows[row + 1 :])

    def put(self, states: RowStates, columns: int) -> None:
        """Replace the states, after ``columns`` more columns were read."""
        self._rows, self._decoders = tuple(states), []
        self._columns += columns

    def step(self, lm: LanguageModel, tokens_B1: torch.Tensor) -> torch.Tensor:
        """Read one token of each row, all of which have read one before; return features (B, 1, D)."""
        if not self._decoders:
            groups = defaultdict(list)
            for row, state in enumerate(self._rows):
                groups[open_steps(state)].append(row)
            self._decoders = [
                (rows, Decoder(lm, join_states([self._rows[row] for row in rows])))
                for rows in groups.values()
            ]
        parts = [(rows, decoder.features(tokens_B1[rows])) for rows, decoder in self._decoders]
        self._columns += 1
        order = torch.tensor([row for rows, _ in parts for row in rows], dtype=torch.int64)
        x_B1D = torch.cat([part for _, part in parts])
        return x_B1D[order.argsort().to(x_B1D.device)]

    def is_ready_for_steps(self) -> bool:
        """Return whether each row has read a token."""
        return bool(self._columns) and None not in self._rows

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Select rows, as beam search does.  beam_idx: (new batch,) int64, repeats allowed."""
        order = beam_idx.tolist()
        groups = [set(rows) for rows, _ in self._decoders]
        alike = len(order) == len(self._rows)
        stays = all(order[row] in group for group in groups for row in group) if alike else False
        if groups and stays:
            for rows, decoder in self._decoders:
                place = {row: i for i, row in enumerate(rows)}
                local = torch.tensor([place[order[row]] for row in rows], dtype=torch.int64)
                decoder.reorder(local.to(beam_idx.device))
            return
        rows = self.states(len(self._rows))
        self._rows = tuple(rows[row] for row in order)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        self.batch_select_indices(torch.arange(len(self._rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Select rows; the same as :meth:`reorder_cache`."""
        self.reorder_cache(indices)
