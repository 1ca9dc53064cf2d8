"""Biases that Mega adds to the scores of attention, a function of the distance between two steps.

Legend: C steps of a chunk, Z width.
"""

from typing import Any

import torch
from torch import nn


class SimplePositionBias(nn.Module):
    """Learn a number for each distance, from ``1 - max_positions`` to ``max_positions - 1``.

    N(0, 0.02) at the start.  ``field``: the setting that ``max_positions`` is the value of.
    Weights that were trained with more distances can be loaded: those that are not needed are cut off.
    """

    def __init__(self, max_positions: int, field: str) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.field = field
        self.time_step = 1  # positions per step
        self.weight = nn.Parameter(torch.empty(2 * max_positions - 1))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, length: int) -> torch.Tensor:
        """Return (C, C), the bias of the score of query i (row) and key j; C = ``length``.

        Raises ``ValueError`` for more steps than there are distances.
        """
        farthest = (length - 1) * self.time_step
        if farthest >= self.max_positions:
            raise ValueError(
                f"{length} steps need the position bias of distance {farthest}, this model has learned "
                f"those below {self.field}={self.max_positions}; train with a larger one, or with "
                "model.positions=rope or rotary, which have no limit"
            )
        nearest = self.max_positions - 1  # the place of distance 0
        bias_2C = self.weight[nearest - farthest : nearest + farthest + 1 : self.time_step]
        return bias_2C.unfold(0, length, 1).flip(0)

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *arguments: Any
    ) -> None:
        trained = state_dict.get(f"{prefix}weight")
        if trained is not None:
            missing = self.max_positions - (len(trained) + 1) // 2
            if missing > 0:
                arguments[-1].append(
                    f"{prefix}weight has learned the distances below {self.max_positions - missing}, "
                    f"{self.field}={self.max_positions} needs more; use a smaller value"
                )
                return
            state_dict[f"{prefix}weight"] = trained[-missing : len(trained) + missing]
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class RotaryPositionBias(nn.Module):
    """Compute the bias ``R_i query . R_j key`` from two learned vectors, which the rotations R turn.

    Both are N(0, 0.02) at the start.  The halves of a vector are the pairs that are rotated.
    """

    def __init__(self, width: int, base: float) -> None:
        super().__init__()
        self.base = base
        self.time_step = 1  # positions per step
        self.query = nn.Parameter(torch.empty(1, width))
        self.key = nn.Parameter(torch.empty(1, width))
        for vector in (self.query, self.key):
            nn.init.normal_(vector, std=0.02)

    def forward(self, length: int) -> torch.Tensor:
        """Return (C, C), the bias of the score of query i (row) and key j; C = ``length``."""
        half = self.query.shape[1] // 2
        pair = torch.arange(half, dtype=torch.float64, device=self.query.device)
        step_C = torch.arange(length, dtype=torch.float64, device=self.query.device)
        angle = (step_C * self.time_step)[:, None] * self.base ** (-pair / half)
        cos, sin = angle.cos().to(self.query.dtype), angle.sin().to(self.query.dtype)
        query_CZ, key_CZ = (
            torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)
            for first, second in (vector.chunk(2, dim=1) for vector in (self.query, self.key))
        )
        return query_CZ @ key_CZ.T
