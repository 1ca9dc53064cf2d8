"""Compare the Triton backends with the float64 reference at the tiles that production sizes get."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu_run import Record, Run, relative_error
from megalodon_tasks.cuda_ops import (
    ChunkAttentionState,
    TimestepNormState,
    cema,
    chunk_attention,
    sequence_norm,
    timestep_norm,
)

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
# Of outputs and of gradients, as in the tests of the op library.
_FORWARD = {_FP32: 1e-5, _BF16: 2e-2, _FP16: 5e-3}
_BACKWARD = {_FP32: 1e-4, _BF16: 2e-2, _FP16: 1e-2}
# Inputs that have the dtype under test; parameters and states are float32.
_NARROW = ("x", "q", "k", "v", "open_k", "open_v")

Tensors = dict[str, torch.Tensor]
Function = Callable[..., dict[str, torch.Tensor | None]]


def compare(run: Run, function: Function, leaves: Tensors, dtype: torch.dtype) -> Record:
    """Compare outputs and gradients, twice, with those of the reference in float64.

    Gradients that are small beside the largest are nothing but rounding: each is measured against its
    own norm or a hundredth of that of the largest.
    """
    narrow = {
        name: leaf.to(leaf.dtype if name not in _NARROW else dtype) for name, leaf in leaves.items()
    }
    found, again = _evaluate(run, "triton", function, narrow), None
    again = _evaluate(run, "triton", function, narrow)
    wide = {
        name: leaf.to(torch.complex128 if leaf.is_complex() else torch.float64)
        for name, leaf in narrow.items()
    }
    truth = _evaluate(run, "reference", function, wide)
    forward = {name: relative_error(found[0][name], value) for name, value in truth[0].items()}
    largest = max(grad.norm().item() for grad in truth[1].values())
    backward = {}
    for name, grad in truth[1].items():
        norm = grad.norm().item() or 1.0
        floor = max(norm, 0.01 * largest, 1e-6)
        backward[name] = relative_error(found[1][name], grad) * norm / floor
    repeats = all(
        torch.equal(value, other[name])
        for values, other in zip(found, again, strict=True)
        for name, value in values.items()
    )
    # A comparison with NaN is false.
    ok = repeats and all(error <= _FORWARD[dtype] for error in forward.values())
    ok = ok and all(error <= _BACKWARD[dtype] for error in backward.values())
    rounded = (
        {name: float(f"{e:.2e}") for name, e in e_by.items()} for e_by in (forward, backward)
    )
    return {
        "ok": ok,
        "repeats": repeats,
        **dict(zip(("forward", "backward"), rounded, strict=True)),
    }


def _evaluate(
    run: Run, backend: str, function: Function, leaves: Tensors
) -> tuple[Tensors, Tensors]:
    """Return outputs and gradients by name, for a loss that weighs every output."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    torch.manual_seed(5)  # of DropKey
    outputs = {
        name: torch.view_as_real(out) if out.is_complex() else out
        for name, out in function(backend, **leaves).items()
        if out is not None
    }
    loss = sum(
        (out.double() * run.randn(*out.shape, seed=20 + i).bfloat16()).sum()
        for i, out in enumerate(outputs.values())
        if out.requires_grad
    )
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return outputs, dict(zip(leaves, grads, strict=True))


def cema_tensors(
    run: Run, shape: tuple[int, int, int], order: int = 16, *, bidirectional: bool = False
) -> Tensors:
    """Draw x and the parameters of cema."""
    batch, length, dim = shape
    rows = 2 * dim if bidirectional else dim
    shapes = {"x": (batch, length, dim), "alpha": (rows, order, 1), "delta": (rows, order, 1)}
    shapes |= {"theta": (rows, 1, 1), "gamma": (rows, order, 2), "omega": (dim, 1)}
    return {name: run.randn(*size, seed=i) for i, (name, size) in enumerate(shapes.items())}


def cema_cases(run: Run) -> dict[str, Callable[[], Record]]:
    """Both kinds of call in every dtype, at dims that 16 divides or not, one step, and slow decay."""

    def case(
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        order: int = 16,
        *,
        bidirectional: bool = False,
        state: bool = False,
        padded: bool = False,
        slow: bool = False,
    ) -> Callable[[], Record]:
        def function(
            backend: str, state: torch.Tensor | None = None, **leaves: torch.Tensor
        ) -> dict:
            mask = run.mask(*shape[:2]) if padded else None
            options = {"bidirectional": bidirectional, "backend": backend}
            y, last = cema(**leaves, state=state, padding_mask=mask, **options)
            return {"y": y, "state": last}

        def start() -> Record:
            leaves = cema_tensors(run, shape, order, bidirectional=bidirectional)
            if slow:
                leaves["delta"] = torch.full_like(leaves["delta"], -9.0)
            if state:
                leaves["state"] = torch.view_as_complex(
                    run.randn(shape[0], shape[2], order, 2, seed=9)
                )
            return compare(run, function, leaves, dtype)

        return start

    size = run.size
    return {
        "causal, state, bf16": case(size((2, 3000, 256), (2, 40, 5)), _BF16, state=True),
        "d 1024, bf16": case(size((2, 1500, 1024), (1, 33, 3)), _BF16),
        "d 60, both directions, padding, bf16": case(
            size((3, 1000, 60), (2, 20, 3)), _BF16, bidirectional=True, padded=True
        ),
        "d 72, both directions, padding, fp32": case(
            size((3, 1000, 72), (2, 20, 3)), _FP32, bidirectional=True, padded=True
        ),
        "d 160, state, padding, fp32": case(
            size((2, 3000, 160), (2, 20, 3)), _FP32, state=True, padded=True
        ),
        "d 80, fp16": case(size((2, 2000, 80), (2, 20, 3)), _FP16),
        "order 32, state, bf16": case(size((1, 2000, 96), (1, 20, 3)), _BF16, 32, state=True),
        "order 5, d 3, fp32": case((2, 17, 3), _FP32, 5, state=True, padded=True),
        "many rows, bf16": case(size((33, 700, 72), (3, 20, 3)), _BF16, state=True),
        "one step, bf16": case(size((4, 1, 512), (2, 1, 3)), _BF16, state=True),
        "slow decay, fp32": case(size((1, 8192, 32), (1, 40, 2)), _FP32, 4, state=True, slow=True),
    }


def timestep_norm_cases(run: Run) -> dict[str, Callable[[], Record]]:
    """Wide, narrow and single groups; padding, states, one block, and a mean of 10,000 deviations."""

    def case(
        shape: tuple[int, int, int],
        groups: int,
        dtype: torch.dtype,
        *,
        state: bool = False,
        padded: bool = False,
        mean: float = 0.0,
    ) -> Callable[[], Record]:
        batch, length, dim = shape
        counts = torch.arange(batch, device=run.device) * 3

        def function(
            backend: str,
            x: torch.Tensor,
            scale: torch.Tensor,
            bias: torch.Tensor,
            mean: torch.Tensor | None = None,
            var: torch.Tensor | None = None,
        ) -> dict:
            past = None if mean is None else TimestepNormState(counts, mean, var)
            mask = run.mask(batch, length) if padded else None
            options = {"state": past, "padding_mask": mask, "backend": backend}
            y, end = timestep_norm(x, scale, bias, groups, **options)
            return {"y": y, "mean": end.mean, "var": end.var}

        def start() -> Record:
            leaves = {"x": run.randn(*shape) + mean, "scale": 1 + 0.5 * run.randn(dim, seed=1)}
            leaves["bias"] = run.randn(dim, seed=2)
            if state:
                leaves["mean"] = (run.randn(batch, groups, seed=3) + mean).round()
                leaves["var"] = run.randn(batch, groups, seed=4).square()
            return compare(run, function, leaves, dtype)

        return start

    size = run.size
    return {
        "d 1024, groups of 32, state, bf16": case(
            size((2, 3000, 1024), (2, 40, 8)), size(32, 2), _BF16, state=True
        ),
        "d 512, padding, bf16": case(
            size((8, 1500, 512), (2, 20, 4)), size(16, 2), _BF16, padded=True
        ),
        "d 4096, bf16": case(size((2, 1000, 4096), (1, 20, 4)), size(64, 2), _BF16),
        "d 1024, state, padding, fp32": case(
            size((2, 2000, 1024), (2, 20, 4)), size(32, 2), _FP32, state=True, padded=True
        ),
        "mean of 10,000 deviations, fp32": case(
            size((2, 2000, 1024), (2, 20, 4)), size(32, 2), _FP32, state=True, mean=1e4
        ),
        "d 60, single features, fp32": case(
            size((2, 2000, 60), (2, 20, 3)), size(60, 3), _FP32, state=True, padded=True
        ),
        "one group, padding, bf16": case(size((2, 1000, 1024), (2, 20, 4)), 1, _BF16, padded=True),
        "d 80, groups of 16, fp16": case(
            size((2, 700, 80), (2, 20, 4)), size(5, 2), _FP16, state=True, padded=True
        ),
        "three steps, bf16": case(size((4, 3, 1024), (2, 3, 4)), size(32, 2), _BF16, state=True),
        "one step, bf16": case(size((4, 1, 1024), (2, 1, 4)), size(32, 2), _BF16, state=True),
    }


def sequence_norm_cases(run: Run) -> dict[str, Callable[[], Record]]:
    """Groups of 32 and single features, with padding and without."""

    def case(
        shape: tuple[int, int, int], groups: int, dtype: torch.dtype, *, padded: bool = False
    ) -> Callable[[], Record]:
        mask = run.mask(*shape[:2]) if padded else None

        def function(backend: str, **leaves: torch.Tensor) -> dict:
            options = {"padding_mask": mask, "backend": backend}
            return {"y": sequence_norm(**leaves, num_groups=groups, **options)}

        def start() -> Record:
            leaves = {"x": run.randn(*shape), "scale": 1 + 0.5 * run.randn(shape[2], seed=1)}
            return compare(run, function, leaves | {"bias": run.randn(shape[2], seed=2)}, dtype)

        return start

    size = run.size
    return {
        "d 1024, bf16": case(size((4, 4000, 1024), (2, 40, 8)), size(32, 2), _BF16),
        "d 60, single features, padding, fp32": case(
            size((4, 16000, 60), (2, 20, 3)), size(60, 3), _FP32, padded=True
        ),
        "d 768, 196 steps, bf16": case(size((32, 196, 768), (2, 20, 6)), size(24, 3), _BF16),
        "d 128, single features, padding, fp16": case(
            size((2, 3000, 128), (2, 20, 4)), size(128, 4), _FP16, padded=True
        ),
        "one long row, padding, bf16": case(
            size((1, 70000, 256), (1, 40, 4)), size(8, 2), _BF16, padded=True
        ),
    }


def _attention_case(
    run: Run,
    shape: tuple[int, int, int],
    widths: tuple[int, int],
    chunk: int | None,
    dtype: torch.dtype,
    *,
    causal: bool = True,
    padded: bool = False,
    past: int = 0,
) -> Callable[[], Record]:
    """Return the comparison of one call of chunk_attention."""
    batch, length, heads = shape
    key, value = widths
    mask = run.mask(batch, length) if padded else None

    def function(
        backend: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        open_k: torch.Tensor | None = None,
        open_v: torch.Tensor | None = None,
    ) -> dict:
        state = None if open_k is None else ChunkAttentionState(open_k, open_v, None)
        options = {"padding_mask": mask, "state": state, "backend": backend}
        y, _ = chunk_attention(q, k, v, chunk_size=chunk, causal=causal, **options)
        return {"y": y}

    def start() -> Record:
        leaves = {"q": run.randn(*shape, key) * key**-0.5, "k": run.randn(*shape, key, seed=1)}
        leaves["v"] = run.randn(*shape, value, seed=2)
        if past:
            leaves["open_k"] = run.randn(batch, past, heads, key, seed=3)
            leaves["open_v"] = run.randn(batch, past, heads, value, seed=4)
        return compare(run, function, leaves, dtype)

    return start


def chunk_attention_cases(run: Run) -> dict[str, Callable[[], Record]]:
    """Widths of all presets, open chunks, padding, and the largest key width of the kernels."""
    case = partial(_attention_case, run)
    size = run.size
    wide, toy = size((256, 2048), (8, 20)), size((1, 1300, 1), (1, 20, 1))
    return {
        "language model, bf16": case(toy, wide, size(1024, 9), _BF16),
        "open chunk, padding, bf16": case(
            toy, wide, size(512, 9), _BF16, padded=True, past=size(300, 5)
        ),
        "equal widths 256, bf16": case(
            size((1, 2500, 1), (1, 20, 1)), size((256, 256), (8, 8)), size(2048, 9), _BF16
        ),
        "text encoder, padding, bf16": case(
            size((3, 700, 2), (2, 20, 2)),
            size((64, 256), (4, 9)),
            size(128, 9),
            _BF16,
            causal=False,
            padded=True,
        ),
        "raw speech, widths 30 and 120, bf16": case(
            size((2, 1500, 1), (1, 20, 1)),
            size((30, 120), (3, 7)),
            size(1000, 9),
            _BF16,
            causal=False,
            padded=True,
        ),
        "ImageNet, whole sequence, bf16": case(
            size((4, 196, 1), (1, 20, 1)), size((256, 1536), (8, 20)), None, _BF16, causal=False
        ),
        "widths 96 and 320, fp32": case(
            size((2, 700, 1), (1, 20, 1)), size((96, 320), (5, 9)), size(300, 9), _FP32, padded=True
        ),
        "key width 512, bf16": case(
            size((1, 500, 1), (1, 20, 1)), size((512, 512), (8, 8)), size(300, 9), _BF16
        ),
        "fp16": case(
            size((3, 700, 1), (1, 20, 1)),
            size((64, 256), (4, 9)),
            size(128, 9),
            _FP16,
            causal=False,
        ),
        "one query, 1333 keys, bf16": case(
            size((2, 1, 2), (1, 1, 2)), wide, size(2048, 40), _BF16, past=size(1333, 5)
        ),
    }


CASES = {
    "cema": cema_cases,
    "timestep_norm": timestep_norm_cases,
    "sequence_norm": sequence_norm_cases,
    "chunk_attention": chunk_attention_cases,
}


def parity(run: Run, op: str) -> Iterator[Record]:
    """Yield a record for each case of an op; at tiny sizes of the first and the last."""
    cases = CASES[op](run)
    if run.tiny:
        cases = dict([list(cases.items())[i] for i in (0, -1)])
    yield from run.checks(cases)
