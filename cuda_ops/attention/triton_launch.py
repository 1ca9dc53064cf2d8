"""Tiles and launches of the Triton kernels of chunk attention.

Letters as in ``triton_kernels``.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.attention import triton_kernels as kernels

# Rows that a program owns and rows that it walks over at a time, largest first; the first pair whose
# operands fit the shared memory is taken.
TILES = ((128, 64), (128, 32), (64, 64), (64, 32), (32, 32), (16, 32), (16, 16))
STAGES = 2
# Under the interpreter: small, so that short sequences have several, and unequal.
INTERPRETED_TILE = (32, 16)
# Shared memory assumed where there is no GPU to ask, that of the smaller GPUs of today.
SHARED_MEMORY = 99 * 1024
# GPUs with more than this have instructions for groups of warps, whose operands need no registers.
LARGE_MEMORY = 200 * 1024
# float32 operands are split in two for tf32, in registers: everything is taken in small pieces.
NARROW = 32
_INTERPRETED = not isinstance(kernels.chunk_attention_kernel, triton.JITFunction)


class Operands(NamedTuple):
    """Features per row: of operands that stay, of those loaded ahead, and of the accumulators.

    Each as a pair, per row owned and per row walked over.
    """

    staying: tuple[int, int]
    loaded: tuple[int, int]
    accumulated: int


class Tile(NamedTuple):
    """Rows owned and walked over, features of keys and values, and of a piece of a product."""

    own: int
    other: int
    key_width: int
    value_width: int
    piece: int
    warps: int

    def constants(self, dtype: torch.dtype, *, owns_keys: bool = False) -> dict[str, object]:
        # The interpreter multiplies bf16 as the integers that it keeps them in, hence float32 there.
        operand = tl.float32 if _INTERPRETED else getattr(tl, str(dtype).removeprefix("torch."))
        queries, keys = (self.other, self.own) if owns_keys else (self.own, self.other)
        return {
            "OPERAND": operand,
            "BM": queries,
            "BN": keys,
            "BK": self.key_width,
            "BV": self.value_width,
            "BC": self.piece,
            "num_warps": self.warps,
            "num_stages": STAGES,
        }


@functools.cache
def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", SHARED_MEMORY)


def _fit(
    like: torch.Tensor, key_width: int, value_width: int, operands: Operands, most: tuple[int, int]
) -> Tile:
    """The largest tile, up to ``most``, whose operands fit the shared memory."""
    size, narrow = like.element_size(), like.element_size() > 2
    for rows in TILES:
        staying = sum(map(_times, rows, operands.staying))
        loaded = sum(map(_times, rows, operands.loaded))
        fits = size * (staying + STAGES * loaded) <= _shared_memory(like.device)
        if rows[0] <= most[0] and rows[1] <= most[1] and fits:
            break
    numbers = rows[0] * operands.accumulated + 2 * rows[0] * rows[1]
    warps = 4 if numbers <= 12288 and not narrow else 8
    if _INTERPRETED:
        rows = INTERPRETED_TILE
    return Tile(*rows, key_width, value_width, NARROW if narrow else key_width, warps)


def _times(rows: int, width: int) -> int:
    return rows * width


def _power(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _value_width(key_width: int, width: int, widest: int) -> int:
    """The split of the values that costs least, as each part computes the scores again."""
    choices = [size for size in (16, 32, 64, 128, 256) if size <= widest]
    return min(choices, key=lambda size: triton.cdiv(width, size) * (key_width + size))


class Call:
    """Sizes of one call, and its launches.

    q (B, L, H, K), k (B, S, H, K), v (B, S, H, V) of one dtype, mask (B, S) as bytes or None, seed (1,)
    or None.  The last axis of each is dense.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        seed: torch.Tensor | None,
        chunk: int,
        causal: bool,
        dropout_p: float,
    ) -> None:
        self.inputs = q, k, v
        self.mask, self.seed = mask, seed
        self.batch, self.queries, self.heads, self.key = q.shape
        self.keys, self.value = v.shape[1], v.shape[3]
        self.chunk = chunk
        self.narrow = q.element_size() > 2
        self.large = _shared_memory(q.device) > LARGE_MEMORY
        self.key_width = _power(self.key)
        self.arguments = {
            **_strides(q=q, k=k, v=v),
            "dropout_p": dropout_p,
            "L": self.queries,
            "S": self.keys,
            "H": self.heads,
            "C": chunk,
            "past": self.keys - self.queries,
            "K": self.key,
            "V": self.value,
            "CAUSAL": causal,
        }

    def blocks(self, rows: int) -> int:
        """Blocks of so many rows in all chunks, which each chunk starts anew."""
        return triton.cdiv(self.keys, self.chunk) * triton.cdiv(min(self.chunk, self.keys), rows)

    def _grid(self, blocks: int) -> tuple[int, int]:
        return (blocks, self.batch * self.heads)

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
        blocks = self.blocks(tile.own)
        kernels.chunk_attention_kernel[self._grid(blocks * triton.cdiv(self.value, value))](
            *self.inputs,
            self.mask,
            self.seed,
            y,
            lse,
            blocks=blocks,
            **self.arguments,
            **tile.constants(y.dtype),
        )

    def delta(self, y: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Sum over features of ``y`` and its gradient, (B, H, L)."""
        delta = y.new_empty(self.batch, self.heads, self.queries, dtype=torch.float32)
        shared = {name: self.arguments[name] for name in ("L", "S", "H", "past", "V")}
        kernels.chunk_attention_delta_kernel[self._grid(triton.cdiv(self.queries, 32))](
            y, grad, self.mask, delta, **_strides(grad=grad), **shared, BM=32, BV=128
        )
        return delta

    def _piece(self, whole: int) -> int:
        """Features of the values in a piece of a product: all of them up to ``whole``."""
        if self.narrow:
            return NARROW
        width = _power(self.value)
        return width if width <= whole else 64

    def grad_queries(self, known: tuple[torch.Tensor, ...], grad_q: torch.Tensor) -> None:
        """Fill ``grad_q`` (B, L, H, K); ``known`` is the gradient of y, lse and delta."""
        grad, *per_query = known
        key, value = self.key_width, self._piece(256)
        operands = Operands((key, key), (value, value), key)
        if value >= self.value:
            operands = Operands((key + value, 0), (0, key + value), key)
        most = (32, 32) if self.narrow else (128, 64) if self.large and key <= 128 else (64, 64)
        tile = _fit(grad_q, key, value, operands, most)
        blocks = self.blocks(tile.own)
        kernels.chunk_attention_queries_kernel[self._grid(blocks)](
            *self.inputs,
            grad,
            self.mask,
            self.seed,
            *per_query,
            grad_q,
            blocks=blocks,
            **_strides(grad=grad),
            **self.arguments,
            **tile.constants(grad_q.dtype),
        )

    def grad_keys(
        self, known: tuple[torch.Tensor, ...], grad_k: torch.Tensor, grad_v: torch.Tensor
    ) -> None:
        """Fill ``grad_k`` (B, S, H, K) and ``grad_v`` (B, S, H, V), at once if a tile holds both."""
        key, value = self.key_width, self._piece(256)
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
        kernels.chunk_attention_keys_kernel[self._grid(self.blocks(tile.own) * splits)](
            *self.inputs,
            grad,
            self.mask,
            self.seed,
            *per_query,
            grad_k,
            grad_v,
            **_strides(grad=grad),
            **self.arguments,
            **tile.constants(grad.dtype, owns_keys=True),
        )


def _strides(**tensors: torch.Tensor) -> dict[str, int]:
    """Strides of the first three axes, as the kernels name them."""
    return {
        f"{name}_stride_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip("blh", tensor.stride(), strict=False)
    }


def dropkey(seed: torch.Tensor, shape: tuple[int, int, int, int], dropout_p: float) -> torch.Tensor:
    """The mask that a call with this seed draws, bool (B, H, L, W), as ``draw_dropkey`` describes it."""
    batch, heads, length, width = shape
    drop = torch.empty(shape, dtype=torch.uint8, device=seed.device)
    grid = (batch * heads, triton.cdiv(length, 32), triton.cdiv(width, 32))
    kernels.dropkey_kernel[grid](seed, drop, dropout_p, L=length, W=width, BM=32, BN=32)
    return drop.view(torch.bool)
