"""Check on a GPU what a CPU cannot show: graphs, inductor, streams, layouts, sizes beyond 32 bits."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_parity import Tensors, cema_tensors
from benchmarks.gpu_run import Record, Run, relative_error
from benchmarks.timing import in_turn
from megalodon_tasks.cuda_ops import (
    ChunkAttentionState,
    cema,
    chunk_attention,
    sequence_norm,
    timestep_norm,
)

_COEFFICIENTS = ("alpha", "delta", "theta", "gamma", "omega")


def _leaves(run: Run, length: int = 1024) -> Tensors:
    """Draw the tensors of :func:`_layer`."""
    dim = run.size(256, 16)
    leaves = cema_tensors(run, (2, run.size(length, 24), dim))
    leaves |= {"scale": 1 + 0.1 * run.randn(dim, seed=7), "bias": run.randn(dim, seed=8)}
    leaves["x"] = leaves["x"].bfloat16()
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def _layer(run: Run, leaves: Tensors) -> torch.Tensor:
    """Apply all causal ops one after the other, as a layer of a language model does."""
    x, half = leaves["x"], leaves["x"].shape[2] // 2
    options = {"backend": "triton"}
    y, _ = timestep_norm(x, leaves["scale"], leaves["bias"], run.size(8, 4), **options)
    z, _ = cema(y, *(leaves[name] for name in _COEFFICIENTS), **options)
    q, k, v = (t.unflatten(2, (2, -1)) for t in (z[..., :half], y[..., :half], y + z))
    chunk = run.size(256, 8)
    return chunk_attention(q, k, v, chunk_size=chunk, causal=True, **options)[0].flatten(2)


def _gradients(leaves: Tensors, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(y.float().square().mean(), list(leaves.values()))


def _both(run: Run, leaves: Tensors) -> tuple[torch.Tensor, ...]:
    y = _layer(run, leaves)
    return y, *_gradients(leaves, y)


def _worst(found: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> float:
    return max(relative_error(a, b) for a, b in zip(found, truth, strict=True))


def _equal(found: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> Record:
    return {"ok": all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))}


def _on_a_stream(function: Callable[[], object], times: int) -> object:
    """Call ``function`` on a stream of its own and return its last result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            result = function()
    torch.cuda.synchronize()
    return result


def _graph(function: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Capture ``function`` as a CUDA graph, replay it and return its results."""
    _on_a_stream(function, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    graph.replay()
    torch.cuda.synchronize()
    return tuple(result.clone() for result in results)


def _streams(run: Run) -> Record:
    leaves = _leaves(run)
    return _equal(_on_a_stream(lambda: _both(run, leaves), 1), _both(run, leaves))


def _graph_of_a_layer(run: Run) -> Record:
    leaves = _leaves(run)
    return _equal(_graph(lambda: _both(run, leaves)), _both(run, leaves))


def _graph_with_a_state(run: Run) -> Record:
    """Capture cema and its backward where the returned state has a gradient, too."""
    leaves = cema_tensors(run, (2, 600, 64))
    leaves["state"] = torch.view_as_complex(run.randn(2, 64, 16, 2, seed=9))
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def both() -> tuple[torch.Tensor, ...]:
        y, last = cema(**leaves, backend="triton")
        loss = y.sum() + torch.view_as_real(last).sum()
        return torch.autograd.grad(loss, list(leaves.values()))

    return _equal(_graph(both), both())


def _inductor(run: Run, mode: str | None = None) -> Record:
    """Compare compiled with eager calls at two lengths."""
    compiled = torch.compile(lambda leaves: _layer(run, leaves), fullgraph=True, mode=mode)
    errors = {}
    for length in (1024, 1536):
        leaves = _leaves(run, length)
        truth = _both(run, leaves)
        for _ in range(3 if mode else 1):
            y = compiled(leaves)
            found = tuple(result.clone() for result in (y, *_gradients(leaves, y)))
        errors[f"error at {length}"] = _worst(found, truth)
    return {"ok": max(errors.values()) < 2e-2, **errors}


def _autocast(run: Run) -> Record:
    """Run under autocast and with deterministic algorithms, which fill new memory with NaN."""
    leaves = _leaves(run)
    truth = _both(run, leaves)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        same = _equal(_both(run, leaves), truth)["ok"]
        with torch.autocast(run.device.type, dtype=torch.bfloat16):
            error = _worst(_both(run, leaves), truth)
    finally:
        torch.use_deterministic_algorithms(False)
    return {"ok": same and error < 3e-2, "error": error}


def _layouts(run: Run) -> Record:
    """Give x time first, and as a part of a wider tensor that is not aligned."""
    leaves = _leaves(run)
    x, truth = leaves["x"].detach(), _both(run, leaves)
    time_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    part = torch.cat([x[..., :3], x], 2)[..., 3:]
    errors = [
        _worst(_both(run, leaves | {"x": t.requires_grad_()}), truth) for t in (time_first, part)
    ]
    return {"ok": max(errors) < 1e-2, "errors": errors}


def _decoding(run: Run) -> Record:
    """Time one query with 2,047 keys, and one step of cema, beside the ``torch`` backend."""
    batch, heads, key, value, chunk = run.size((1, 4, 256, 2048, 2048), (1, 2, 4, 9, 16))
    shapes = ((1, key), (1, key), (1, value), (chunk - 2, key), (chunk - 2, value))
    q, k, v, open_k, open_v = (
        run.randn(batch, length, heads, width, seed=i).bfloat16()
        for i, (length, width) in enumerate(shapes)
    )
    state = ChunkAttentionState(open_k, open_v, None)
    leaves = cema_tensors(run, (1, 1, run.size(1024, 4)))
    leaves["state"] = torch.view_as_complex(run.randn(1, leaves["x"].shape[2], 16, 2, seed=9))

    def attend(backend: str) -> torch.Tensor:
        options = {"chunk_size": chunk, "causal": True, "state": state, "backend": backend}
        return chunk_attention(q, k, v, **options)[0]

    with torch.no_grad():
        error = relative_error(attend("triton"), attend("reference"))
        record = {"ok": error < 2e-2, "error": error}
        if not run.tiny:
            functions = {
                f"{name}, {backend}": (lambda call=call, backend=backend: call(backend))
                for name, call in (
                    ("attention", attend),
                    ("cema", lambda b: cema(**leaves, backend=b)),
                )
                for backend in ("triton", "torch")
            }
            seconds = in_turn(functions, 5, run.device)
            record["microseconds"] = {
                name: round(min(taken) * 1e6, 1) for name, taken in seconds.items()
            }
    return record


def _many_heads(run: Run) -> Record:
    """Compare the first and the last of more sequences than all but one axis of a grid may have."""
    batch = run.size(70_000, 70)
    q, k, v, weight = (run.randn(batch, 4, 1, 16, seed=i).bfloat16() for i in range(4))

    def both(backend: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *leaves, loss_weight = (tensor.detach().requires_grad_() for tensor in tensors)
        y, _ = chunk_attention(*leaves, chunk_size=4, causal=True, backend=backend)
        return y, *torch.autograd.grad(y, leaves, loss_weight)

    def ends(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:32], tensor[-32:]])

    tensors = (q / 4, k, v, weight)
    found = tuple(ends(tensor) for tensor in both("triton", *tensors))
    error = _worst(found, both("reference", *(ends(tensor).double() for tensor in tensors)))
    return {"ok": error < 2e-2, "error": error}


def _tail_error(run: Run, call: Callable[[torch.Tensor, object], tuple], x: torch.Tensor) -> float:
    """Compare the last steps of a long run with a short run that starts from the state before them."""
    cut = x.shape[1] - run.size(4096, 8)
    tail = call(x, None)[0][:, cut:].clone()
    _, state = call(x[:, :cut], None)
    return relative_error(call(x[:, cut:], state)[0], tail)


def _more_than_32_bits(run: Run) -> Record:
    """Run every op on more than 2**31 elements."""
    length, dim = run.size((1 << 21, 1040), (40, 16))
    if not run.tiny and torch.cuda.get_device_properties(run.device).total_memory < 60e9:
        return {"ok": None, "skipped": "needs 60 GB of memory"}
    x = torch.empty(1, length, dim, device=run.device, dtype=torch.bfloat16).normal_()
    leaves = cema_tensors(run, (1, 1, dim))
    coefficients = [leaves[name] for name in _COEFFICIENTS]
    scale, bias, groups = 1 + run.randn(dim, seed=7), run.randn(dim, seed=8), dim // 16
    options, chunk, width = {"backend": "triton"}, run.size(2048, 8), run.size(208, 4)

    def attend(part: torch.Tensor, state: object) -> tuple:
        q, k, v = (part.unflatten(2, (-1, width))[:, :, i : i + 1] for i in (0, 1, 2))
        causal = {"chunk_size": chunk, "causal": True, "state": state}
        return chunk_attention(q * width**-0.5, k, v, **causal, **options)

    def normalise(part: torch.Tensor, state: object) -> tuple:
        return timestep_norm(part, scale, bias, groups, state=state, **options)

    with torch.no_grad():
        errors = {
            "cema": _tail_error(
                run, lambda part, s: cema(part, *coefficients, state=s, **options), x
            ),
            "timestep_norm": _tail_error(run, normalise, x),
            "chunk_attention": _tail_error(run, attend, x),
        }
        y = sequence_norm(x, scale, bias, groups, **options)
        finite = bool(y[:, -1].isfinite().all())
    return {"ok": finite and max(errors.values()) < 1e-2, **errors}


def special(run: Run) -> Iterator[Record]:
    """Yield a record for each case; those that need CUDA are left out on a CPU."""
    cases: dict[str, Callable[[Run], Record]] = {
        "autocast, deterministic algorithms": _autocast,
        "time first, part of a wider tensor": _layouts,
        "decoding, one step": _decoding,
    }
    on_cuda: dict[str, Callable[[Run], Record]] = {
        "another stream": _streams,
        "CUDA graph of a layer": _graph_of_a_layer,
        "CUDA graph of cema with a state": _graph_with_a_state,
        "inductor": _inductor,
        "inductor, reduce-overhead": lambda run: _inductor(run, "reduce-overhead"),
    }
    cases = cases if run.tiny else on_cuda | cases
    yield from run.checks({name: lambda f=f: f(run) for name, f in cases.items()})


def large(run: Run) -> Iterator[Record]:
    """Yield the records of calls that are large in number or size."""
    cases = {"70,000 sequences": _many_heads, "more than 2**31 elements": _more_than_32_bits}
    yield from run.checks({name: lambda f=f: f(run) for name, f in cases.items()})
