"""Calls of every op, and their comparison with the float64 reference.

A :class:`Case` is one call: sizes, padding, state, options.  Its tensors are drawn in float64, exact in
bfloat16, so that every backend and dtype starts from the same numbers.
"""

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from megalodon_tasks.cuda_ops import (
    ChunkAttentionState,
    TimestepNormState,
    cema,
    chunk_attention,
    cross_attention,
    dispatch,
    rms_norm,
    sequence_norm,
    timestep_norm,
)

FLOAT = torch.float32
HALF = (torch.bfloat16, torch.float16)
FORWARD = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
BACKWARD = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
# Backends that refuse float64.
SINGLE = ("triton", "native")


def randn(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=FLOAT).bfloat16().double()


def make_mask(kind, batch, length):
    """Padding on the right or the left of all rows but the first, or a padded row and random padding."""
    steps = torch.arange(length)[None]
    real = torch.tensor([max(1, length - length * row // 2) for row in range(batch)])[:, None]
    if kind == "none":
        return None
    if kind == "random":
        draw = torch.Generator().manual_seed(7)
        mask = torch.rand(batch, length, generator=draw, dtype=FLOAT) < 0.3
        mask[0] = True
        return mask
    return {"right": steps >= real, "left": steps < length - real}[kind]


@dataclass(frozen=True)
class Case(abc.ABC):
    """One call of an op.

    timed: names of the tensors that have a batch and a length.  float32: names of tensors that are not
    narrowed to half types; with ``wide``, neither are the parameters.
    """

    op: ClassVar[str]
    timed: ClassVar[tuple[str, ...]] = ("x",)
    float32: ClassVar[tuple[str, ...]] = ()

    batch: int = 2
    length: int = 21
    mask: str = "none"
    state: bool = False
    wide: bool = False

    @abc.abstractmethod
    def leaves(self):
        """Tensors by name, in float64."""

    def padding(self):
        return make_mask(self.mask, self.batch, self.length)

    def initial_state(self, leaves):
        """The state in ``leaves``, if any, as the op takes it."""
        return

    @abc.abstractmethod
    def call(self, leaves, padding, state, backend):
        """Output, and state or None."""

    def outputs(self, y, state):
        """Real tensors by name."""
        return {"y": y}

    def dtype_of(self, name, dtype):
        narrow = dtype in HALF
        parameter = self.wide and name not in self.timed
        return FLOAT if narrow and (parameter or name in self.float32) else dtype


@dataclass(frozen=True)
class Cema(Case):
    op: ClassVar[str] = "cema"

    dim: int = 3
    order: int = 4
    bidirectional: bool = False

    def leaves(self):
        rows = 2 * self.dim if self.bidirectional else self.dim
        shapes = {"alpha": (rows, self.order, 1), "delta": (rows, self.order, 1)}
        shapes |= {"theta": (rows, 1, 1), "gamma": (rows, self.order, 2), "omega": (self.dim, 1)}
        leaves = {"x": randn(self.batch, self.length, self.dim)}
        leaves |= {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items(), 1)}
        if self.state:
            leaves["state"] = torch.view_as_complex(
                randn(self.batch, self.dim, self.order, 2, seed=9)
            )
        return leaves

    def initial_state(self, leaves):
        return leaves.get("state")

    def call(self, leaves, padding, state, backend):
        named = {name: leaf for name, leaf in leaves.items() if name != "state"}
        options = {"bidirectional": self.bidirectional, "backend": backend}
        return cema(**named, state=state, padding_mask=padding, **options)

    def outputs(self, y, state):
        return {"y": y} if state is None else {"y": y, "state": torch.view_as_real(state)}


@dataclass(frozen=True)
class SequenceNorm(Case):
    op: ClassVar[str] = "sequence_norm"

    dim: int = 6
    groups: int = 3

    def leaves(self):
        x, scale = randn(self.batch, self.length, self.dim), 1 + randn(self.dim, seed=1) / 2
        return {"x": x, "scale": scale, "bias": randn(self.dim, seed=2)}

    def call(self, leaves, padding, state, backend):
        options = {"padding_mask": padding, "backend": backend}
        return sequence_norm(**leaves, num_groups=self.groups, **options), None


@dataclass(frozen=True)
class TimestepNorm(SequenceNorm):
    op: ClassVar[str] = "timestep_norm"
    float32: ClassVar[tuple[str, ...]] = ("mean", "var")

    def leaves(self):
        moments, shape = {}, (self.batch, self.groups)
        if self.state:
            moments = {"mean": randn(*shape, seed=3), "var": randn(*shape, seed=4).square()}
        return super().leaves() | moments

    def initial_state(self, leaves):
        if not self.state:
            return None
        # The first row has seen nothing, whatever its moments say.
        count = torch.arange(self.batch, device=leaves["x"].device) * 3
        return TimestepNormState(count, leaves["mean"], leaves["var"])

    def call(self, leaves, padding, state, backend):
        named = {name: leaves[name] for name in ("x", "scale", "bias")}
        options = {"state": state, "padding_mask": padding, "backend": backend}
        return timestep_norm(**named, num_groups=self.groups, **options)

    def outputs(self, y, state):
        mean = state.mean.double() + state.mean_low
        return {"y": y, "mean": mean, "var": state.var, "count": state.count.double()}


@dataclass(frozen=True)
class RmsNorm(Case):
    op: ClassVar[str] = "rms_norm"

    dim: int = 6
    weighted: bool = True

    def leaves(self):
        leaves = {"x": randn(self.batch, self.length, self.dim)}
        return leaves | ({"weight": 1 + randn(self.dim, seed=1) / 2} if self.weighted else {})

    def call(self, leaves, padding, state, backend):
        return rms_norm(**leaves, backend=backend), None


@dataclass(frozen=True)
class Attention(Case):
    op: ClassVar[str] = "chunk_attention"
    timed: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    heads: int = 2
    key: int = 3
    value: int = 5
    chunk_size: int | None = 8
    causal: bool = True
    dropout_p: float = 0.0
    past: int = 5

    def leaves(self):
        shape = self.batch, self.length, self.heads
        widths = {"q": self.key, "k": self.key, "v": self.value}
        leaves = {n: randn(*shape, width, seed=i) for i, (n, width) in enumerate(widths.items())}
        leaves["q"] = leaves["q"] / max(1, 2 ** round(self.key.bit_length() / 2 - 1))
        if self.state:
            shape = self.batch, self.past, self.heads
            leaves["old key"] = randn(*shape, self.key, seed=7)
            leaves["old value"] = randn(*shape, self.value, seed=8)
        return leaves

    def initial_state(self, leaves):
        if not self.state:
            return None
        mask = None if self.mask == "none" else randn(self.batch, self.past, seed=9) > 0.5
        mask = None if mask is None else mask.to(leaves["q"].device)
        return ChunkAttentionState(leaves["old key"], leaves["old value"], mask)

    def call(self, leaves, padding, state, backend):
        options = {"padding_mask": padding, "state": state, "backend": backend}
        options |= {"chunk_size": self.chunk_size, "causal": self.causal}
        return chunk_attention(*map(leaves.get, "qkv"), dropout_p=self.dropout_p, **options)

    def outputs(self, y, state):
        if state is None:
            return {"y": y}
        outputs = {"y": y, "key": state.key, "value": state.value}
        mask = state.padding_mask
        return outputs if mask is None else outputs | {"mask": mask.double()}


@dataclass(frozen=True)
class CrossAttention(Case):
    """``length`` and ``mask`` are of the keys."""

    op: ClassVar[str] = "cross_attention"
    timed: ClassVar[tuple[str, ...]] = ("k", "v")

    queries: int = 9
    heads: int = 2
    key: int = 3
    value: int = 5
    dropout_p: float = 0.0

    def leaves(self):
        shape = self.batch, self.length, self.heads
        q = randn(self.batch, self.queries, self.heads, self.key)
        q = q / max(1, 2 ** round(self.key.bit_length() / 2 - 1))
        return {
            "q": q,
            "k": randn(*shape, self.key, seed=1),
            "v": randn(*shape, self.value, seed=2),
        }

    def call(self, leaves, padding, state, backend):
        options = {"dropout_p": self.dropout_p, "padding_mask": padding, "backend": backend}
        return cross_attention(*map(leaves.get, "qkv"), **options), None


# One call of each kind.
TYPICAL = (Cema(), Cema(bidirectional=True), TimestepNorm(), SequenceNorm(), RmsNorm(), Attention())
PADDED = (*(case for case in TYPICAL if case.op != "rms_norm"), Attention(causal=False))
CARRYING = (Cema(state=True), TimestepNorm(state=True), Attention(state=True))


def each(cases: Iterable[Case], *without: str, dtypes: Iterable[torch.dtype] = (FLOAT,)) -> object:
    """Parametrize over ``case``, ``backend`` and ``dtype``: all backends of the op but ``without``.

    float64 is left out where the backend refuses it.
    """
    return pytest.mark.parametrize(
        ("case", "backend", "dtype"),
        [
            pytest.param(case, backend, dtype, id=f"{case}-{backend}-{str(dtype)[6:]}")
            for case in cases
            for backend in dispatch.BACKENDS[case.op]
            if backend not in without
            for dtype in dtypes
            if not (dtype == torch.float64 and backend in SINGLE)
        ],
    )


def cast(case, leaves, dtype, device="cpu"):
    """Copies of ``leaves`` in ``dtype`` that require gradients; complex ones are complex64 or wider."""

    def one(name, leaf):
        kind = case.dtype_of(name, dtype)
        if leaf.is_complex():
            kind = torch.promote_types(kind, FLOAT).to_complex()
        return leaf.detach().to(device, kind, copy=True).requires_grad_()

    return {name: one(name, leaf) for name, leaf in leaves.items()}


def evaluate(case, backend, dtype=FLOAT, leaves=None, *, padding=None, sizes=None, device="cpu"):
    """Outputs and gradients by name, for a loss that weighs every output.

    leaves and padding: instead of the case's own.  sizes: lengths of parts that are fed one after the
    other, with the state carried.
    """
    leaves = cast(case, case.leaves() if leaves is None else leaves, dtype, device)
    padding = case.padding() if padding is None else padding
    padding = None if padding is None else padding.to(device)
    state, parts = case.initial_state(leaves), []
    torch.manual_seed(5)  # of DropKey
    sizes = sizes or [leaves[case.timed[0]].shape[1]]
    masks = [None] * len(sizes) if padding is None else padding.split(sizes, 1)
    timed = zip(*(leaves[name].split(sizes, 1) for name in case.timed), strict=True)
    for tensors, mask in zip(timed, masks, strict=True):
        now = leaves | dict(zip(case.timed, tensors, strict=True))
        y, state = case.call(now, mask, state, backend)
        parts.append(y)
    outputs = case.outputs(parts[0] if len(parts) == 1 else torch.cat(parts, 1), state)
    return outputs, gradients(outputs, leaves)


def gradients(outputs, leaves):
    """Gradients of a loss that weighs every output, by name."""
    loss = sum(
        (out.double() * randn(*out.shape, seed=20 + i).to(out.device)).sum()
        for i, out in enumerate(outputs.values())
        if out.requires_grad
    )
    found = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def relative_error(found, truth):
    """Norm of the difference over the norm of ``truth``, in double precision."""
    wide = torch.complex128 if truth.is_complex() else torch.float64
    found, truth = found.detach().cpu().to(wide), truth.detach().to(wide)
    assert found.shape == truth.shape, f"shapes {found.shape} and {truth.shape} differ"
    scale = truth.norm().item()
    return (found - truth).norm().item() / (scale if scale > 0 else 1.0)


def assert_close(name, found, truth, tolerance):
    """Fail, naming the tensor, unless it is finite and within ``tolerance`` of ``truth``."""
    assert (torch.view_as_real(found) if found.is_complex() else found).isfinite().all(), name
    error = relative_error(found, truth)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"


def assert_equal_calls(found, truth, forward, backward, noise=0.01):
    """Compare two pairs of outputs and gradients.

    Gradients that are small beside the largest are nothing but rounding: each is measured against its
    own norm or ``noise`` times that of the largest.
    """
    for name, value in truth[0].items():
        assert_close(name, found[0][name], value, forward)
    assert found[0].keys() == truth[0].keys()
    largest = max(grad.norm().item() for grad in truth[1].values())
    for name, true_grad in truth[1].items():
        assert found[1][name].isfinite().all(), f"gradient of {name} is not finite"
        norm = true_grad.norm().item() or 1.0
        error = relative_error(found[1][name], true_grad) * norm / max(norm, noise * largest, 1e-6)
        assert error <= backward, f"gradient of {name}: relative error {error:.1e}"


def assert_matches_reference(
    case, backend, dtype=FLOAT, leaves=None, *, device="cpu", loosened=1, **arguments
):
    """Compare a call with the reference in float64, and return it; tolerances times ``loosened``."""
    leaves = cast(case, case.leaves() if leaves is None else leaves, dtype)
    truth = evaluate(case, "reference", torch.float64, leaves, **arguments)
    found = evaluate(case, backend, dtype, leaves, device=device, **arguments)
    assert found[0]["y"].dtype == dtype
    assert all(grad.dtype == leaves[name].dtype for name, grad in found[1].items())
    # Attention whose queries see one key has gradients of zero by their sizes, but not by rounding.
    noise = 1.0 if case.op.endswith("attention") else 0.01
    tolerances = FORWARD[dtype] * loosened, BACKWARD[dtype] * loosened
    assert_equal_calls(found, truth, *tolerances, noise)
    return found
