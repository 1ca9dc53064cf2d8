"""What every operator of ``torch.library`` promises: its registration, compilation, derivatives."""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megalodon_tasks.cuda_ops import cema, native, use_backend
from tests.cuda_ops.cases import Cema, cast, make_mask, randn

OPS = "megalodon_tasks.cuda_ops"


def leaf(*shape, seed=0, dtype=torch.float32):
    return randn(*shape, seed=seed).to(dtype).requires_grad_()


def cema_calls(state_dtype):
    """Arguments from x to ``bidirectional``, with and without a state."""
    for bidirectional, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        rows, mask = 6 if bidirectional else 3, make_mask("random", 2, 18)
        coeffs = [randn(rows, 4, seed=i).sigmoid().requires_grad_() for i in range(5)]
        coeffs[1] = (-randn(rows, 4).sigmoid()).requires_grad_()
        state = None if bidirectional else leaf(2, 3, 4, 2, seed=8, dtype=state_dtype)
        omega = leaf(3, dtype=torch.float64)
        yield leaf(2, 18, 3, dtype=dtype), *coeffs, omega, state, mask, bidirectional


def torch_operator_calls():
    double = torch.float64
    logs = (-leaf(3, 4).abs()).detach().double().requires_grad_(), leaf(3, 4, dtype=double)
    for count, wide in ((1, True), (9, False)):
        yield "complex_ema.coefficients", "cema_powers_op", "torch", (*logs, count, wide)
    mask = make_mask("random", 2, 20)
    for directions in (0, 1, 2):
        states = 8 * directions
        write, read = leaf(3, 8, states), leaf(3, states, 8)
        decay = (randn(3, directions, 4, 2) / 4).requires_grad_()
        state = leaf(3, 2, 4, 2, dtype=double) if directions == 1 else None
        call = leaf(2, 20, 3), leaf(3, 15), write, read, decay, state, mask, True
        yield "complex_ema.block_product", "cema_torch_op", "torch", call
    yield "complex_ema.fft", "fft_convolution_op", "fft", (leaf(2, 20, 3), leaf(3, 40), True)
    yield "complex_ema.fft", "fft_block_sums_op", "fft", (leaf(2, 20, 3), leaf(3, 6, 8))
    norm = leaf(2, 20, 6), leaf(6), leaf(6)
    yield "norms.sequence.torch_op", "sequence_norm_torch_op", "torch", (*norm, mask, 3, 1e-5)
    count, moments = (~mask).cumsum(1), (leaf(2, 3), leaf(2, 3).square().detach())
    for low in (None, torch.zeros(2, 3)):
        call = (*norm, *moments, low, count, mask, 1e-5)
        yield "norms.timestep.torch_op", "timestep_norm_torch_op", "torch", call
    for weight in (leaf(6), None):
        yield "norms.rms.torch_op", "rms_norm_op", "torch", (leaf(2, 20, 6), weight, 1e-5)


def operator_calls():
    """(module, operator, backend, arguments): one block and several, with and without a state."""
    for arguments in cema_calls(torch.float32):
        yield "complex_ema.triton_op", "cema_op", "triton", (*arguments, True)
    for save in (True, False):
        for arguments in cema_calls(torch.float64):
            yield "complex_ema.native_op", "cema_native_op", "native", (*arguments, save)
    for length in (5, 12):
        mask, norm = make_mask("random", 2, length), (leaf(2, length, 6), leaf(6), leaf(6))
        call = (*norm, mask, 3, 1e-5)
        yield "norms.sequence.triton_op", "sequence_norm_op", "triton", call
        yield "norms.native_op", "sequence_norm_native_op", "native", call
        past = torch.arange(2), *(leaf(2, 3, seed=i, dtype=torch.float64).square() for i in (3, 4))
        past = past[0], *(tensor.detach().requires_grad_() for tensor in past[1:])
        for state in ((None,) * 3, past):
            call = (*norm, *state, mask, 3, 1e-5, True)
            yield "norms.native_op", "timestep_norm_native_op", "native", call
        call = (*norm, mask, 3, 1e-5)
        past = torch.arange(2), leaf(2, 3), torch.zeros(2, 3), leaf(2, 3).square().detach()
        for state in ((None,) * 4, past):
            call = (*norm, *state, mask, 3, 1e-5)
            yield "norms.timestep.triton_op", "timestep_norm_op", "triton", call
    yield from torch_operator_calls()
    mask, seed = make_mask("random", 2, 18)[1:], torch.tensor([3])
    for causal in (False, True):
        qkv = leaf(1, 16, 2, 5), leaf(1, 18, 2, 5), leaf(1, 18, 2, 7)
        call = (*qkv, mask, seed, 10, causal, 0.1)
        yield "attention.triton_op", "chunk_attention_op", "triton", call


# Interpreted kernels run many times in a check.
SLOW = {"triton": [pytest.mark.slow]}
CALLS = [pytest.param(*call, id=f"{call[1]}-{i}") for i, call in enumerate(operator_calls())]
each_operator = pytest.mark.parametrize(("module", "name", "backend", "arguments"), CALLS)


def operator(module, name):
    return getattr(importlib.import_module(f"{OPS}.{module}"), name)


@each_operator
def test_operators_are_registered(device, module, name, backend, arguments):
    if backend == "native" and device == "cuda":
        pytest.skip("the kernels run on a CPU")
    placed = [
        value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for value in arguments
    ]
    torch.library.opcheck(operator(module, name), tuple(placed))


class Recorded(TorchDispatchMode):
    """Keep the operators that are called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def differentiate(function, arguments):
    """Return the calls of a forward and a backward pass."""
    with Recorded() as mode:
        results = [out for out in function(*arguments) if out.requires_grad]
        torch.autograd.backward(results, [first_axis_innermost(out) for out in results])
    return mode.calls


def first_axis_innermost(out):
    axes = range(out.dim())[::-1]
    return torch.ones_like(out).permute(*axes).contiguous().permute(*axes)


@pytest.mark.parametrize(
    ("module", "name", "backend", "arguments"),
    [pytest.param(*call.values, id=call.id, marks=SLOW.get(call.values[2], ())) for call in CALLS],
)
def test_backward_operators_are_registered(module, name, backend, arguments):
    """Strides too, which inductor relies on."""
    calls = differentiate(operator(module, name), arguments)
    ((backward, values),) = [call for call in calls if str(call[0]).endswith("_backward.default")]
    values = [v.detach() if isinstance(v, torch.Tensor) else v for v in values]
    torch.library.opcheck(backward, tuple(values))
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in values]
        strides = [grad.stride() for grad in backward(*fakes)]
    assert [grad.stride() for grad in backward(*values)] == strides


@pytest.mark.parametrize("backend", ["triton"])
def test_nothing_is_copied_from_the_host(backend):
    """Such a copy makes a GPU wait and cannot be captured in a graph."""
    for arguments in cema_calls(torch.float32):
        calls = differentiate(operator("complex_ema.triton_op", "cema_op"), (*arguments, True))
        assert not [func for func, _ in calls if "lift" in str(func)]


@pytest.mark.skipif(native.why_not(native.CEMA) is not None, reason="no C compiler")
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("only", ["y", "state"])
def test_the_default_dtype_changes_nothing(default, only):
    case = Cema(state=True)
    leaves, found = cast(case, case.leaves(), torch.float32), []
    for dtype in (torch.float32, default):
        torch.set_default_dtype(dtype)
        try:
            outputs = case.outputs(*case.call(leaves, None, case.initial_state(leaves), "native"))
            grads = torch.autograd.grad(
                outputs[only].sum(), list(leaves.values()), materialize_grads=True
            )
        finally:
            torch.set_default_dtype(torch.float32)
        found.append((*outputs.values(), *grads))
    assert all(map(torch.equal, *found))


def test_compiled_code_honours_use_backend():
    case = Cema()
    leaves = cast(case, case.leaves(), torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda: cema(**leaves)[0], fullgraph=True, backend="eager")
    expected = {
        name: case.call(leaves, None, None, name)[0] for name in ("reference", "torch", "fft")
    }
    default = compiled()
    for name, y in expected.items():
        with use_backend(name):
            assert torch.equal(compiled(), y)
    assert torch.equal(compiled(), default)


def test_every_operator_is_in_these_tests():
    tested = {operator(*call.values[:2])._qualname.split("::")[1] for call in CALLS}
    registered = {name for name in dir(torch.ops.megalodon_tasks) if not name.startswith("_")}
    assert {name for name in registered if not name.endswith("_backward")} - {"name"} == tested
