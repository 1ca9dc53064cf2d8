"""What the Triton kernels of several ops share: parts of kernels, and preparation of their arguments.

In kernels, ``o_`` are offsets, ``b_`` values of a tile, ``i_`` indices of the program.  A block of rows
of a matrix is a tuple ``(pointer, o_r, stride, inside)``: where row 0 starts, which rows, the distance
between rows, and which of the rows exist; features are neighbours in memory.

Grids have one axis: the others end at 65,535 programs.
"""

import functools

import torch
import triton
import triton.language as tl

# Bytes of shared memory of the smaller GPUs of today.
SMALL_SHARED_MEMORY = 99 * 1024


@triton.jit
def not_padded(mask, row, position, inside, L):
    """Narrow ``inside`` to positions that are not padding; the mask is (B, L) in bytes, or None."""
    if mask is not None:
        inside = inside & (tl.load(mask + row * L + position, mask=inside, other=1) == 0)
    return inside


@triton.jit
def dot(a, b, acc):
    """Return ``acc + a b``; float32 operands take three tf32 products, others one product."""
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def load_rows(rows, o_c, width, OPERAND: tl.constexpr):
    """Load features ``o_c`` of a block of rows, (rows, features), zero where they do not exist."""
    pointer, o_r, stride, inside = rows
    at = pointer + o_r.to(tl.int64)[:, None] * stride + o_c[None, :]
    return tl.load(at, mask=inside[:, None] & (o_c < width)[None, :], other=0.0).to(OPERAND)


@triton.jit
def store_rows(rows, values, o_c, width):
    """Store a tile (rows, features) where :func:`load_rows` reads it."""
    pointer, o_r, stride, inside = rows
    at = pointer + o_r.to(tl.int64)[:, None] * stride + o_c[None, :]
    values = values.to(pointer.dtype.element_ty)
    tl.store(at, values, mask=inside[:, None] & (o_c < width)[None, :])


@triton.jit
def load_pair(pointer, plane, at, inside):
    """Load two numbers that lie ``plane`` numbers apart, zero outside."""
    first = tl.load(pointer + at, mask=inside, other=0.0)
    return first, tl.load(pointer + plane + at, mask=inside, other=0.0)


@triton.jit
def store_pair(pointer, plane, at, first, second, inside):
    """Store two numbers ``plane`` numbers apart."""
    tl.store(pointer + at, first, mask=inside)
    tl.store(pointer + plane + at, second, mask=inside)


@triton.jit
def load_triple(pointer, plane, at, inside):
    """Load three numbers that lie ``plane`` numbers apart, zero outside."""
    first, second = load_pair(pointer, plane, at, inside)
    return first, second, tl.load(pointer + plane + plane + at, mask=inside, other=0.0)


@triton.jit
def store_triple(pointer, plane, at, first, second, third, inside):
    """Store three numbers ``plane`` numbers apart."""
    store_pair(pointer, plane, at, first, second, inside)
    tl.store(pointer + plane + plane + at, third, mask=inside)


INTERPRETED = not isinstance(dot, triton.JITFunction)


def operand_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype in which kernels multiply tensors of ``dtype``.

    The interpreter multiplies bfloat16 as the integers that it keeps them in, hence float32 there.
    """
    return tl.float32 if INTERPRETED else getattr(tl, str(dtype).removeprefix("torch."))


@functools.cache
def shared_memory(device: torch.device, default: int) -> int:
    """Return the bytes of shared memory that a program may use; ``default`` where there is no GPU."""
    if device.type != "cuda":
        return default
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", SMALL_SHARED_MEMORY)


def dense_features(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in a layout that the kernels can address: any whose features are neighbours."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def mask_bytes(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a bool mask as the kernels read it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)
