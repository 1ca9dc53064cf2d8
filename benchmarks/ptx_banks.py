"""Count wavefronts of shared memory in the PTX of a kernel, and so its bank conflicts.

Shared memory has 32 banks of 4 bytes and serves one word of each bank at a time.  An instruction of a
warp takes as many wavefronts as its most loaded bank holds different words.  The address of each lane is
found by evaluating the PTX from the thread index on; what is the same for all threads counts as zero.
"""

import re
from collections.abc import Callable

import numpy as np

_LANES = 32
_INSTRUCTION = re.compile(r"\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.*);")
_ACCESS = re.compile(
    r"\s*(?:@!?%\w+\s+)?"
    r"(ldmatrix[\w.:]*|stmatrix[\w.:]*|ld\.shared[\w.:]*|st\.shared[\w.:]*|cp\.async\.c[ag][\w.:]*)"
    r"\s.*?\[\s*(%\w+|\w+)\s*(?:\+\s*(-?\d+))?\s*\]"
)
_PRODUCT = re.compile(r"\b(mma|wgmma|tcgen05\.mma)\b")


def _signed(a: np.ndarray) -> np.ndarray:
    return a.astype(np.uint32).view(np.int32).astype(np.int64)


def _bit_field(a: np.ndarray, start: np.ndarray, width: np.ndarray) -> np.ndarray:
    return (a >> start) & ((1 << width) - 1)


def _signed_bit_field(a: np.ndarray, start: np.ndarray, width: np.ndarray) -> np.ndarray:
    field = _bit_field(a, start, width)
    return np.where(field >> (width - 1) & 1, field - (1 << width), field)


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros_like(a)
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        result |= (table >> index & 1) << bit
    return result


# By the start of the instruction; the first that fits counts.
_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "neg": lambda a: -a,
    "div": lambda a, b: a // np.maximum(b, 1),
    "rem": lambda a, b: a % np.maximum(b, 1),
    "mul.hi": lambda a, b: a * b >> 32,
    "mul.lo": lambda a, b: a * b,
    "mul.wide": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "shl": lambda a, b: a << b,
    "shr.s": lambda a, b: _signed(a) >> b,
    "shr": lambda a, b: a >> b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "bfe.s": _signed_bit_field,
    "bfe": _bit_field,
    "bfi": lambda a, b, start, width: (b & ~(((1 << width) - 1) << start)) | (a << start),
    "lop3": _lop3,
    "selp": lambda a, b, chosen: np.where(chosen != 0, a, b),
    "setp.eq": lambda a, b: (a == b).astype(np.int64),
    "setp.ne": lambda a, b: (a != b).astype(np.int64),
    "setp.lt": lambda a, b: (_signed(a) < _signed(b)).astype(np.int64),
    "setp.gt": lambda a, b: (_signed(a) > _signed(b)).astype(np.int64),
    "setp.le": lambda a, b: (_signed(a) <= _signed(b)).astype(np.int64),
    "setp.ge": lambda a, b: (_signed(a) >= _signed(b)).astype(np.int64),
    "min": lambda a, b: np.minimum(_signed(a), _signed(b)),
    "max": lambda a, b: np.maximum(_signed(a), _signed(b)),
    # The same for all threads of a warp, or loaded: no part of a pattern of lanes.
    "shfl": lambda a, *_: a,
    "ld": lambda *_: np.zeros(1, np.int64),
}


class _Threads:
    """Values of the registers of all threads, as far as they follow from the thread index."""

    def __init__(self, lines: list[str], threads: int) -> None:
        self._definitions: dict[str, tuple[str, list[str]]] = {}
        for line in lines:
            if (match := _INSTRUCTION.match(line)) is None:
                continue
            target, *operands = (part.strip() for part in match[2].split(","))
            # A value that changes in a loop is defined twice; its first value has the pattern.
            if target.startswith("%"):
                self._definitions.setdefault(target, (match[1], operands))
        self._zero = np.zeros(threads, np.int64)
        self._values = {"%tid.x": np.arange(threads, dtype=np.int64)}

    def value(self, name: str) -> np.ndarray:
        """Return the value (threads,) of a register or a constant."""
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", name):
            return self._zero + (int(name, 0) & 0xFFFFFFFF)
        if name not in self._values:
            self._values[name] = self._zero  # where a definition leads back to itself
            if name in self._definitions:
                self._values[name] = self._compute(*self._definitions[name])
        return self._values[name]

    def _compute(self, instruction: str, operands: list[str]) -> np.ndarray:
        for start, operation in _OPERATIONS.items():
            if instruction.startswith(start):
                values = (self.value(name) for name in operands if not name.startswith(("[", "{")))
                return (operation(*values) + self._zero) & 0xFFFFFFFF
        raise ValueError(f"{instruction}: no rule for it in benchmarks/ptx_banks.py")


def _wavefronts(addresses: np.ndarray, size: int) -> int:
    """Count wavefronts of one instruction of a warp whose lanes access ``size`` bytes each."""
    lanes = _LANES if size <= 4 else 128 // size
    total = 0
    for start in range(0, len(addresses), lanes):
        first = addresses[start : start + lanes] // 4
        words = np.unique(first[:, None] + np.arange(max(1, size // 4)))
        total += int(np.bincount(words % 32).max())
    return total


def _of_access(kind: str, addresses: np.ndarray) -> int:
    if "matrix" in kind:
        matrices = int(match[1]) if (match := re.search(r"\.x(\d)", kind)) else 1
        return sum(_wavefronts(addresses[8 * k : 8 * k + 8], 16) for k in range(matrices))
    if kind.startswith("cp.async"):
        return _wavefronts(addresses, 16)
    bits, parts = re.search(r"\.[bfus](\d+)", kind), re.search(r"\.v(\d)", kind)
    return _wavefronts(addresses, int(bits[1]) // 8 * (int(parts[1]) if parts else 1))


def _main_loop(lines: list[str]) -> slice:
    """Return the loop with most matrix products, the longest of these; all lines without a loop."""
    labels: dict[str, int] = {}
    best, found = (-1, 0), slice(0, len(lines))
    for i, line in enumerate(lines):
        if match := re.match(r"(\$L\S+):", line):
            labels[match[1]] = i
        match = re.match(r"\s*(?:@\S+ )?bra(?:\.uni)?\s+(\$L\S+);", line)
        if match and match[1] in labels:
            start = labels[match[1]]
            products = sum(bool(_PRODUCT.search(body)) for body in lines[start:i])
            if (products, i - start) > best:
                best, found = (products, i - start), slice(start, i)
    return found


def wavefronts_per_warp(ptx: str, warps: int) -> float:
    """Return the wavefronts of one pass through the main loop of a kernel, mean over its warps."""
    lines = ptx.split("\n")
    threads = _Threads(lines, warps * _LANES)
    total = 0
    for line in lines[_main_loop(lines)]:
        if match := _ACCESS.match(line):
            addresses = (threads.value(match[2]) + int(match[3] or 0)) & 0xFFFFFFFF
            total += sum(_of_access(match[1], warp) for warp in addresses.reshape(warps, _LANES))
    return total / warps
