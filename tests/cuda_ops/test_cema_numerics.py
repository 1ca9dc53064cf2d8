"""cema where numbers are extreme, sequences long, or memory matters."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from megalodon_tasks.cuda_ops import cema
from tests.cuda_ops.cema_cases import Case, cast, in_blocks, outputs_and_gradients
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close

IN_FLOAT64 = ["torch", "fft"]
IN_FLOAT32 = [*IN_FLOAT64, "native"]
FAST = [*IN_FLOAT32, "triton"]
BACKENDS = ["reference", *FAST]
# Interpreted kernels take seconds where compiled ones take milliseconds.
PATIENT = [*IN_FLOAT32, pytest.param("triton", marks=pytest.mark.slow)]
FLOAT = torch.float32


def assert_accurate(found, truth, backend):
    # In float32 the reference multiplies a rounded q step by step; it is the oracle in float64 only.
    times = 10 if backend == "reference" else 1
    for name, tensor in found.items():
        tolerance = BACKWARD if name.startswith("gradient") else FORWARD
        assert_close(name, tensor, truth[name], times * tolerance[FLOAT])


@pytest.mark.parametrize(
    "case",
    [
        Case(length=9, dim=2, order=2, with_state=True),
        Case(length=8, dim=2, order=3, padded=0.3),
        Case(length=9, dim=2, order=2, bidirectional=True, padded=0.3),
        Case(length=3, dim=1, order=2, bidirectional=True),
        Case(length=1, dim=2, order=2, with_state=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_gradcheck(backend, case):
    inputs = case.inputs(torch.float64)
    mask = inputs.pop("padding_mask", None)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def run(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        options = {"padding_mask": mask, "bidirectional": case.bidirectional}
        if backend == "torch":
            y, state = in_blocks(**named, block=4, **options)
        else:
            y, state = cema(**named, **options, backend=backend)
        return y if state is None else (y, torch.view_as_real(state))

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_saturated_logits(backend, bidirectional, seed):
    """alpha, delta and theta at -40, 0 and 40: p and q at zero, q next to one, angles at the ends."""
    case = Case(2, 130, 6, 4, bidirectional, with_state=not bidirectional)
    inputs = case.inputs()
    draw = torch.Generator().manual_seed(seed)
    for name in ("alpha", "delta", "theta"):
        inputs[name] = 40.0 * torch.randint(-1, 2, inputs[name].shape, generator=draw)
    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference", bidirectional)
    assert_accurate(outputs_and_gradients(inputs, backend, bidirectional), truth, backend)


@pytest.mark.parametrize(
    ("alpha", "delta"),
    [(40.0, 40.0), (100.0, 100.0), (-60.0, 0.0), (0.0, -60.0), (100.0, 8.0)],
    ids=["q = 0", "q = 0 exactly", "p = 0", "q = 1", "q^c underflows"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_channels_at_one_extreme(backend, alpha, delta):
    inputs = Case(length=130, with_state=True).inputs()
    inputs["alpha"] = torch.full_like(inputs["alpha"], alpha)
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference")
    assert_accurate(outputs_and_gradients(inputs, backend), truth, backend)


def by_blocks(x, alpha, delta, theta, gamma, omega):
    """The recurrence in float64, in parallel over blocks of sqrt(L) steps and then over the blocks."""
    batch, length, dim = x.shape
    side = math.isqrt(length)
    p = alpha[..., 0].sigmoid()
    order = p.shape[1]
    log_q = torch.complex(
        (1 - p * delta[..., 0].sigmoid()).log(),
        2 * math.pi / order * torch.arange(1.0, order + 1).double() * theta[..., 0].sigmoid(),
    )
    state = torch.zeros(batch, side, dim, order, dtype=torch.complex128)
    x_blocks = x.view(batch, side, side, dim)
    eta = torch.view_as_complex(gamma) / math.sqrt(order)
    outputs = []
    for t in range(side):
        state = log_q.exp() * state + p * x_blocks[:, :, t, :, None]
        outputs.append((eta * state).sum(-1).real)
    carry, carried = torch.zeros_like(state[:, 0]), []
    for ends in state.unbind(1):
        carried.append(carry)
        carry = (side * log_q).exp() * carry + ends
    steps = torch.arange(1, side + 1, dtype=torch.float64)[:, None, None]
    far = torch.einsum("bidn,tdn->bitd", torch.stack(carried, 1), eta * (steps * log_q).exp()).real
    return (torch.stack(outputs, 2) + far).view_as(x) + omega[:, 0] * x, carry


LONG = pytest.mark.parametrize(
    ("backend", "length"),
    [
        *((backend, 1 << 16) for backend in IN_FLOAT32),
        *(pytest.param(backend, 1 << 20, marks=pytest.mark.slow) for backend in IN_FLOAT32),
        pytest.param("triton", 1 << 16, marks=pytest.mark.slow),
    ],
)


@LONG
@pytest.mark.parametrize(
    ("alpha", "delta", "constant"),
    [(0.0, 0.0, False), (-5.0, -5.0, False), (-6.0, -6.0, True), (0.0, -14.0, False)],
    ids=["usual", "slow decay", "slow decay of a constant", "almost undamped"],
)
def test_long_sequences(backend, alpha, delta, constant, length):
    inputs = Case(1, length, 1, 4).inputs()
    inputs["alpha"] = 0.2 * inputs["alpha"] + alpha
    inputs["delta"] = 0.2 * inputs["delta"] + delta
    if constant:
        inputs["x"].fill_(1.0)
        inputs["theta"].fill_(-40.0)
    wide = cast(inputs, torch.float64)
    truth = outputs_and_gradients(wide, None, function=lambda bidirectional, **t: by_blocks(**t))
    assert_accurate(outputs_and_gradients(inputs, backend), truth, backend)


def saved_numbers(inputs, **options):
    """The numbers of all tensors saved for the backward that are not inputs of the call."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = cema(**inputs, **options)
    return sum(saved.values()), y


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", PATIENT)
def test_saved_memory_is_linear_and_small(backend, bidirectional):
    def of(length):
        inputs = Case(4, length, 16, 16, bidirectional).inputs()
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        return saved_numbers(leaves, bidirectional=bidirectional, backend=backend)[0]

    short, long = of(1 << 12), of(1 << 13)
    per_step = (long - short) / (1 << 12)
    times = per_step / (4 * 16)
    assert times <= {"torch": 3, "native": 2}.get(backend, 5), (
        f"{times:.2f} numbers saved per input"
    )


@pytest.mark.parametrize("backend", FAST)
def test_nothing_is_saved_without_gradients(backend):
    inputs = {name: t.requires_grad_() for name, t in Case(length=200).inputs().items()}
    with torch.no_grad():
        numbers, y = saved_numbers(inputs, backend=backend)
    assert numbers == 0
    assert not y.requires_grad


@pytest.mark.parametrize("backend", FAST)
def test_checkpoint_recomputes_the_same(backend):
    inputs = Case(length=150, with_state=True).inputs()

    def checkpointed(**named):
        return checkpoint(cema, use_reentrant=False, **named)

    found = outputs_and_gradients(inputs, backend, function=checkpointed)
    truth = outputs_and_gradients(inputs, backend)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("backend", FAST)
def test_autocast_does_not_round_the_states(backend):
    inputs = Case(length=150, with_state=True).inputs()
    truth, end = cema(**inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = cema(**inputs, backend=backend)
    assert torch.equal(y, truth)
    assert torch.equal(state, end)


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_are_refused(backend):
    inputs = Case(length=100).inputs()
    x = inputs["x"].requires_grad_()
    y, _ = cema(**inputs, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|no autograd formula"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
def test_compiled_code_may_call_it(backend):
    inputs = Case(length=150, with_state=True).inputs()
    truth = outputs_and_gradients(inputs, backend)
    compiled = torch.compile(lambda x, **named: cema(2 * x, **named), backend="eager")
    found = outputs_and_gradients(inputs | {"x": inputs["x"] / 2}, backend, function=compiled)
    found["gradient of x"] = found["gradient of x"] / 2
    assert all(torch.equal(found[name], truth[name]) for name in truth)
