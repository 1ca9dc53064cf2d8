"""The calls of the op library that ``benchmarks.ops`` measures: inputs, least work, shapes.

Legend: B batch, L length, D dim, N order of the EMA, K numbers of its state, C chunk, H heads, V width.
"""

import abc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from benchmarks.limits import Work
from megalodon_tasks.cuda_ops import cema, chunk_attention, sequence_norm, timestep_norm
from megalodon_tasks.cuda_ops.complex_ema.torch_op import block_length

# Steps of a block of the compiled kernels of cema.
_KERNEL_BLOCK = 16


class Contender(NamedTuple):
    """Something to time: leaves that gradients are asked for, and the function of them."""

    leaves: dict[str, torch.Tensor]
    function: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case(abc.ABC):
    """One call.  ``label`` says what it is there for; cases with label ``ladder`` are timed together."""

    label: str
    batch: int
    length: int

    @property
    @abc.abstractmethod
    def op(self) -> str:
        """The name of the op."""

    @property
    def shape(self) -> dict[str, int | bool]:
        """All sizes by name."""
        sizes = asdict(self).items()
        return {name: v for name, v in sizes if name not in ("label", "op") and v is not None}

    @abc.abstractmethod
    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Random inputs by the names of the arguments; the first has the size of the output."""

    @abc.abstractmethod
    def call(self, backend: str | None, **tensors: torch.Tensor) -> torch.Tensor:
        """The output of the op."""

    @abc.abstractmethod
    def work(self, backend: str, bytes_each: int) -> tuple[Work, Work]:
        """The least work of the forward pass, and of both; elements of ``bytes_each`` bytes."""


@dataclass(frozen=True)
class CemaCase(Case):
    """Causal CEMA without a state; the coefficients are float32 whatever the dtype of x."""

    dim: int
    order: int = 16

    @property
    def op(self) -> str:
        return "cema"

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        d, n = self.dim, self.order
        shapes = {"alpha": (d, n, 1), "delta": (d, n, 1), "theta": (d, 1, 1)}
        shapes |= {"gamma": (d, n, 2), "omega": (d, 1)}
        x_BLD = torch.randn(self.batch, self.length, d, device=device).to(dtype)
        return {"x": x_BLD} | {k: torch.randn(s, device=device) for k, s in shapes.items()}

    def call(self, backend: str | None, **tensors: torch.Tensor) -> torch.Tensor:
        return cema(**tensors, backend=backend)[0]

    def work(self, backend: str, bytes_each: int) -> tuple[Work, Work]:
        """Products over blocks of c steps with K = 2N numbers of state: (5) to (8) of its README."""
        block = min(block_length(self.length), self.length)
        if backend in ("native", "triton"):
            block = _KERNEL_BLOCK
        states = 2 * self.order if self.length > block else 0
        width = states + block
        once = 2 * width + 2 * states
        numbers = self.batch * self.length * self.dim
        both = 2 * once + 2 * width * width / block
        return (
            Work(once * numbers, 2 * numbers * bytes_each),
            Work(both * numbers, 5 * numbers * bytes_each),
        )


@dataclass(frozen=True)
class NormCase(Case):
    """Either norm over time; all tensors in one dtype."""

    dim: int
    groups: int
    op: str = "timestep_norm"

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        shapes = {"x": (self.batch, self.length, self.dim), "scale": self.dim, "bias": self.dim}
        return {name: torch.randn(s, device=device).to(dtype) for name, s in shapes.items()}

    def call(self, backend: str | None, **tensors: torch.Tensor) -> torch.Tensor:
        if self.op == "timestep_norm":
            return timestep_norm(**tensors, num_groups=self.groups, backend=backend)[0]
        return sequence_norm(**tensors, num_groups=self.groups, backend=backend)

    def work(self, backend: str, bytes_each: int) -> tuple[Work, Work]:
        """About 8 operations for each number forward and 16 backward; what counts is the bytes."""
        numbers = self.batch * self.length * self.dim
        return (
            Work(8 * numbers, 2 * numbers * bytes_each),
            Work(24 * numbers, 5 * numbers * bytes_each),
        )


@dataclass(frozen=True)
class AttentionCase(Case):
    """Chunk attention; all tensors in one dtype.

    width: of queries and keys, and of values unless ``value_width`` is given.
    """

    heads: int
    width: int
    chunk: int
    causal: bool
    value_width: int | None = None

    @property
    def op(self) -> str:
        return "chunk_attention"

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        widths = self.width, self.width, self.value_width or self.width
        shape = self.batch, self.length, self.heads
        q, k, v = (torch.randn(*shape, width, device=device).to(dtype) for width in widths)
        return {"q": q / self.width**0.5, "k": k, "v": v}

    def call(self, backend: str | None, **tensors: torch.Tensor) -> torch.Tensor:
        sizes = {"chunk_size": self.chunk, "causal": self.causal}
        return chunk_attention(**tensors, **sizes, backend=backend)[0]

    def work(self, backend: str, bytes_each: int) -> tuple[Work, Work]:
        """Two products of the pairs that see each other forward, four backward."""
        pairs = self.chunk * (self.chunk + 1) / 2 if self.causal else self.chunk**2
        pairs *= self.batch * self.heads * self.length / self.chunk
        widths = self.width + (self.value_width or self.width)
        size = self.batch * self.length * self.heads * widths * bytes_each
        return Work(2 * widths * pairs, 2 * size), Work(6 * widths * pairs, 6 * size)


# The shapes that the figures of `ops_figures` are asked at.
LONG = CemaCase("long", 4, 16384, 64)
NARROW = CemaCase("text model", 16, 2048, 80)
SHORT = CemaCase("short", 64, 40, 64)
TIMESTEP = NormCase("language model", 8, 2048, 512, 32)
SEQUENCE = NormCase("encoder", 8, 2048, 512, 32, "sequence_norm")
CHUNKS = [AttentionCase("chunks", 8, 2048, 2, 64, 128, causal) for causal in (True, False)]
LARGE_CEMA = CemaCase("large", 8, 16384, 1024)
LARGE_TIMESTEP = NormCase("large", 8, 16384, 1024, 32)
LARGE_SEQUENCE = NormCase("large", 8, 16384, 1024, 32, "sequence_norm")
LARGE_CHUNKS = AttentionCase("large", 8, 16384, 1, 256, 2048, True)
# Chunks and widths of the language models of 200M parameters.
LANGUAGE_CHUNKS = AttentionCase("language model", 4, 8192, 1, 256, 2048, True, 2048)

# Lengths of the ladder, all with as many steps in all as the longest.
LENGTHS = tuple(4**k for k in range(6, 11))  # 4096 .. 1048576


def ladder(lengths: tuple[int, ...], width: int) -> list[Case]:
    """Every op at every length, ``width`` numbers per step and the same number of steps in all."""
    steps, cases = max(lengths), []
    groups = max(1, width // 16)
    for op in ("cema", "timestep_norm", "sequence_norm", "chunk_attention"):
        for length in lengths:
            place = "ladder", steps // length, length
            if op == "cema":
                cases.append(CemaCase(*place, width))
            elif op == "chunk_attention":
                cases.append(AttentionCase(*place, 1, width, min(128, length), True))
            else:
                cases.append(NormCase(*place, width, groups, op))
    return cases


def cases_for(device: str, quick: bool) -> list[Case]:
    """What is measured on ``cpu`` or ``cuda``; ``quick`` is enough to see that it runs."""
    if quick:
        return [
            CemaCase("long", 2, 100, 4, 2),
            NormCase("language model", 2, 20, 8, 2),
            NormCase("encoder", 2, 20, 8, 2, "sequence_norm"),
            AttentionCase("chunks", 2, 32, 2, 4, 8, True),
            AttentionCase("chunks", 2, 32, 2, 4, 8, False),
            AttentionCase("language model", 2, 32, 1, 4, 16, True, 12),
            *ladder((16, 64), 16),
        ]
    if device == "cpu":
        language = replace(LANGUAGE_CHUNKS, batch=1, length=4096)
        return [LONG, NARROW, SHORT, TIMESTEP, SEQUENCE, *CHUNKS, language, *ladder(LENGTHS, 32)]
    large = [LARGE_CEMA, LARGE_TIMESTEP, LARGE_SEQUENCE, LARGE_CHUNKS, LANGUAGE_CHUNKS]
    return [LONG, NARROW, SHORT, TIMESTEP, *CHUNKS, *large, *ladder(LENGTHS, 256)]
