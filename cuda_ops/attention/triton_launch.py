"""Tiles and launches of the Triton kernels of chunk attention.

Letters as in ``triton_kernels``.
"""

import operator
from typing import NamedTuple

import torch
import triton

from megalodon_tasks.cuda_ops.attention import triton_kernels as kernels
from megalodon_tasks.cuda_ops.triton_helpers import (
    INTERPRETED,
    SMALL_SHARED_MEMORY,
    operand_dtype,
    shared_memory,
)

# Rows that a program owns and rows that it walks over at a time, largest first; the first pair whose
# operands fit the shared memory is taken.
TILES = ((128, 64), (128, 32), (64, 64), (64, 32), (32, 32), (16, 32), (16, 16))
STAGES = 2
# Under the interpreter: small, so that short sequences have several, and unequal.
INTERPRETED_TILE = (32, 16)
# Bytes of shared memory assumed where there is no GPU to ask.
SHARED_MEMORY = SMALL_SHARED_MEMORY
# GPUs with more than this have instructions for groups of warps, whose operands need no registers.
LARGE_MEMORY = 200 * 1024
# float32 operands are split in two for tf32, in registers: everything is taken in small parts.
NARROW = 32
# In place of a chunk length: the queries are another sequence, and each sees all keys.
CROSS = 0


class Operands(NamedTuple):
    """Features per row of what a tile holds; pairs are per row owned and per row walked over.

    staying: of operands that stay for all steps.  loaded: of operands loaded ahead of each step.
    accumulated: of the accumulators.
    """

    staying: tuple[int, int]
    loaded: tuple[int, int]
    accumulated: int


class Tile(NamedTuple):
    """Rows owned and walked over, features of keys and values, features multiplied at a time, warps."""

    own: int
    other: int
    key_width: int
    value_width: int
    part: int
    warps: int

    def constants(self, dtype: torch.dtype, *, owns_keys: bool = False) -> dict[str, object]:
        """Return the compile-time constants of a kernel for tensors of ``dtype``."""
        queries, keys = (self.other, self.own) if owns_keys else (self.own, self.other)
        return {
            "OPERAND": operand_dtype(dtype),
            "BM": queries,
            "BN": keys,
            "BK": self.key_width,
            "BV": self.value_width,
            "BC": self.part,
            "num_warps": self.warps,
            "num_stages": STAGES,
        }


def _fit(
    like: torch.Tensor, key_width: int, value_width: int, operands: Operands, most: tuple[int, int]
) -> Tile:
    """Return the largest tile, up to ``most``, whose operands fit the shared memory."""
    size, narrow = like.element_size(), like.element_size() > 2
    for rows in TILES:
        staying = sum(map(operator.mul, rows, operands.staying))
        loaded = sum(map(operator.mul, rows, operands.loaded))
        fits = size * (staying + STAGES * loaded) <= shared_memory(like.device, SHARED_MEMORY)
        if rows[0] <= most[0] and rows[1] <= most[1] and fits:
            break
    numbers = rows[0] * operands.accumulated + 2 * rows[0] * rows[1]
    warps = 4 if numbers <= 12288 and not narrow else 8
    if INTERPRETED:
        rows = INTERPRETED_TILE
    return Tile(*rows, key_width, value_width, NARROW if narrow else key_width, warps)


def _power(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _value_width(key_width: int, width: int, widest: int) -> int:
    """Return the width of a part of the values that costs least, as each part computes the scores."""
    choices = [size for size in (16, 32, 64, 128, 256) if size <= widest]
    return min(choices, key=lambda size: triton.cdiv(width, size) * (key_width + size))


class OperatorArguments(NamedTuple):
    """Arguments of the operator, dense in the last axis.

    The last L of the S steps are the queries, unless ``chunk`` is CROSS.
    """

    q: torch.Tensor  # (B, L, H, K)
    k: torch.Tensor  # (B, S, H, K), of the dtype of q
    v: torch.Tensor  # (B, S, H, V), of the dtype of q
    padding_mask: torch.Tensor | None  # (B, S)
    seed: torch.Tensor | None  # (1,) int64
    chunk: int
    causal: bool
    dropout_p: float


class Launches:
    """The launches of one call of the operator; its mask is in bytes here."""

    def __init__(self, call: OperatorArguments) -> None:
        q, k, v = self.inputs = call[:3]
        self.mask, self.seed = call.padding_mask, call.seed
        self.batch, self.queries, self.heads, self.key = q.shape
        self.keys, self.value = v.shape[1], v.shape[3]
        self.cross = call.chunk == CROSS
        # Sums of steps and chunk lengths stay within 32 bits.
        self.chunk = min(call.chunk, max(1, self.keys))
        self.narrow = q.element_size() > 2
        self.large = shared_memory(q.device, SHARED_MEMORY) > LARGE_MEMORY
        self.key_width = _power(self.key)
        self.arguments = {
            "q_strides": q.stride()[:3],
            "k_strides": k.stride()[:3],
            "v_strides": v.stride()[:3],
            "dropout_p": call.dropout_p,
            "L": self.queries,
            "S": self.keys,
            "H": self.heads,
            "C": self.chunk,
            "past": 0 if self.cross else self.keys - self.queries,
            "K": self.key,
            "V": self.value,
            "CAUSAL": call.causal,
            "CROSS": self.cross,
        }

    def blocks(self, rows: int, *, owns_keys: bool = False) -> int:
        """Return the number of blocks of ``rows`` in all chunks; each chunk starts a block."""
        steps = self.queries if self.cross and not owns_keys else self.keys
        chunk = max(1, steps) if self.cross else self.chunk
        return triton.cdiv(steps, chunk) * triton.cdiv(chunk, rows)

    def _grid(self, blocks: int) -> tuple[int]:
        return (blocks * self.batch * self.heads,)

    def forward(self, y: torch.Tensor, lse: torch.Tensor) -> None:
        """Fill ``y`` (B, L, H, V) and ``lse`` (B, H, L)."""
        key = self.key_width
        value = _value_width(key, self.value, 128 if self.narrow else 256)
        operands = Operands((NARROW if self.narrow else key, 0), (0, key + value), value)
        if self.narrow:
            operands = Operands((0, 0), (NARROW, NARROW + value), value)
        most = (64, 32) if self.narrow else (128, 64) if self.large else (64, 64)
        if self.seed is not None:
            # Drawing random numbers takes registers.
            most = (most[0], 32)
        tile = _fit(y, key, value, operands, most)
        splits = triton.cdiv(self.value, value)
        kernels.chunk_attention_kernel[self._grid(self.blocks(tile.own) * splits)](
            *self.inputs,
            self.mask,
            self.seed,
            y,
            lse,
            **self.arguments,
            **tile.constants(y.dtype),
        )

    def delta(self, y: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Return the sum over features of ``y`` times its gradient, (B, H, L)."""
        delta = y.new_empty(self.batch, self.heads, self.queries, dtype=torch.float32)
        shared = {name: self.arguments[name] for name in ("L", "S", "H", "past", "V")}
        mask = None if self.cross else self.mask
        kernels.chunk_attention_delta_kernel[self._grid(triton.cdiv(self.queries, 32))](
            y, grad, mask, delta, grad_strides=grad.stride()[:3], **shared, BM=32, BV=128
        )
        return delta

    def _value_part(self) -> int:
        """Return how many features of the values are multiplied at a time: all of them up to 256."""
        if self.narrow:
            return NARROW
        width = _power(self.value)
        return width if width <= 256 else 64

    def grad_queries(self, known: tuple[torch.Tensor, ...], grad_q: torch.Tensor) -> None:
        """Fill ``grad_q`` (B, L, H, K); ``known`` are the gradient of y, lse and delta."""
        grad, *per_query = known
        key, value = self.key_width, self._value_part()
        operands = Operands((key, key), (value, value), key)
        if value >= self.value:
            operands = Operands((key + value, 0), (0, key + value), key)
        most = (32, 32) if self.narrow else (128, 64) if self.large and key <= 128 else (64, 64)
        tile = _fit(grad_q, key, value, operands, most)
        kernels.chunk_attention_queries_kernel[self._grid(self.blocks(tile.own))](
            *self.inputs,
            grad,
            self.mask,
            self.seed,
            *per_query,
            grad_q,
            grad_strides=grad.stride()[:3],
            **self.arguments,
            **tile.constants(grad_q.dtype),
        )

    def grad_keys(
        self, known: tuple[torch.Tensor, ...], grad_k: torch.Tensor, grad_v: torch.Tensor
    ) -> None:
        """Fill ``grad_k`` (B, S, H, K) and ``grad_v`` (B, S, H, V), at once if a tile holds both."""
        key, value = self.key_width, self._value_part()
        if value >= self.value and not self.narrow and (self.large or key + value <= 192):
            operands = Operands((key + value, 0), (0, key + value), key + value)
            tile = _fit(grad_k, key, value, operands, (64, 32))
            self._grad_keys(known, grad_k, grad_v, tile)
            return
        operands = Operands((key, key), (value, value), key)
        if value >= self.value:
            operands = Operands((key + value, 0), (0, key + value), key)
        most = (32, 32) if self.narrow else (64, 64) if self.large else (64, 32)
        self._grad_keys(known, grad_k, None, _fit(grad_k, key, value, operands, most))
        value = _value_width(key, self.value, 64 if self.narrow else 256)
        operands = Operands((key, 0), (0, key + value), value)
        if self.narrow:
            operands = Operands((0, 0), (NARROW, NARROW + value), value)
        most = (64, 64) if self.large and not self.narrow else (64, 32)
        self._grad_keys(known, None, grad_v, _fit(grad_v, key, value, operands, most))

    def _grad_keys(
        self,
        known: tuple[torch.Tensor, ...],
        grad_k: torch.Tensor | None,
        grad_v: torch.Tensor | None,
        tile: Tile,
    ) -> None:
        grad, *per_query = known
        splits = 1 if grad_k is not None else triton.cdiv(self.value, tile.value_width)
        kernels.chunk_attention_keys_kernel[
            self._grid(self.blocks(tile.own, owns_keys=True) * splits)
        ](
            *self.inputs,
            grad,
            self.mask,
            self.seed,
            *per_query,
            grad_k,
            grad_v,
            grad_strides=grad.stride()[:3],
            **self.arguments,
            **tile.constants(grad.dtype, owns_keys=True),
        )


def dropkey(
    seed: torch.Tensor,
    shape: tuple[int, int, int, int],
    dropout_p: float,
    chunk_size: int | None = None,
    past: int = 0,
) -> torch.Tensor:
    """Return the mask that a call with this seed draws, (B, H, L, W) as in ``draw_dropkey``.

    chunk_size: steps per chunk, None for all in one.
    past: number of steps of the open chunk that come before the first query.
    """
    batch, heads, length, width = shape
    chunk = past + length if chunk_size is None else chunk_size
    drop = torch.empty(shape, dtype=torch.uint8, device=seed.device)
    grid = (batch * heads * triton.cdiv(length, 32) * triton.cdiv(width, 32),)
    sizes = {"L": length, "W": width, "C": chunk, "past": past}
    kernels.dropkey_kernel[grid](seed, drop, dropout_p, **sizes, BM=32, BN=32)
    return drop.view(torch.bool)
