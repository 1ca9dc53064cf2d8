"""cema: goldens, its equations, blocks and segments, extreme logits, long sequences, errors."""

import math
from pathlib import Path

import pytest
import torch

from megalodon_tasks.cuda_ops import cema, dispatch
from megalodon_tasks.cuda_ops.complex_ema import fft
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.torch_op import cema_torch
from tests.cuda_ops.cases import (
    BACKWARD,
    FLOAT,
    FORWARD,
    HALF,
    Cema,
    assert_close,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    each,
    evaluate,
)

BACKENDS = tuple(dispatch.BACKENDS["cema"])
DATA = Path(__file__).parents[1] / "data"
TWO_WAYS = (Cema(2, 130, state=True), Cema(2, 130, bidirectional=True))


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend, name):
    golden = torch.load(DATA / f"cema_{name}.pt", weights_only=True)
    leaves = {key: value.requires_grad_() for key, value in golden["params"].items()}
    x = golden["x"].transpose(1, 2).requires_grad_()
    y, _ = cema(x, **leaves, bidirectional=name == "bidirectional", backend=backend)
    y.backward(golden["grad_y"].transpose(1, 2))
    assert_close("y", y, golden["y"].transpose(1, 2), 1e-5)
    assert_close("gradient of x", x.grad, golden["grad_x"].transpose(1, 2), 1e-5)
    for key, leaf in leaves.items():
        assert_close(f"gradient of {key}", leaf.grad, golden["grad_params"][key], 1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch", "fft"])
def test_is_equation_2_once_the_phase_is_in_eta(backend):
    """The paper turns the input too: h_t = p e^{i theta} x_t + q h_{t-1}, y_t = Re(eta' h_t)."""
    leaves = Cema(2, 40).leaves()
    alpha, delta = leaves["alpha"][..., 0].sigmoid(), leaves["delta"][..., 0].sigmoid()
    order = alpha.shape[1]
    base = leaves["theta"][..., 0].sigmoid()
    theta = 2 * torch.pi * torch.arange(1.0, order + 1).double() / order * base  # equation 3
    phase = torch.polar(torch.ones_like(theta), theta)
    eta = torch.view_as_complex(leaves["gamma"]) / order**0.5 / phase
    h = torch.zeros(2, 3, order, dtype=torch.complex128)
    outputs = []
    for x in leaves["x"].unbind(1):
        h = alpha * phase * x[..., None] + (1 - alpha * delta) * phase * h
        outputs.append((eta * h).sum(-1).real + leaves["omega"][:, 0] * x)
    y, _ = cema(**leaves, backend=backend)
    assert_close("y", y, torch.stack(outputs, 1), 1e-12)


@each([Cema(2, 100)], dtypes=HALF)
def test_half_inputs_with_float32_parameters(case, backend, dtype):
    leaves = case.leaves()
    narrow = {name: leaf.to(dtype if name == "x" else FLOAT) for name, leaf in leaves.items()}
    truth, true_state = cema(**leaves, backend="reference")
    y, state = cema(**narrow, backend=backend)
    assert (y.dtype, state.dtype) == (dtype, torch.complex64)
    assert_close("y", y, truth, FORWARD[dtype])
    assert_close("state", state, true_state, FORWARD[FLOAT])


class InBlocks(Cema):
    """A call of backend ``torch`` in blocks of ``backend`` steps, or of a backend by name."""

    def call(self, leaves, padding, state, backend):
        if isinstance(backend, str):
            return super().call(leaves, padding, state, backend)
        tensors = [leaves[name] for name in CemaCall._fields[:6]]
        return cema_torch(CemaCall(*tensors, state, padding, self.bidirectional), backend)


@pytest.mark.parametrize(
    ("block", "length"),
    # The last: more than one segment, the last of them shorter and cut within a block.
    [*((block, 101) for block in (2, 6, 16, 64, 200)), (8, 2 * 64 * 8 + 8 * 5 + 3)],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_block_length_changes_nothing(bidirectional, block, length):
    case = InBlocks(
        2, length, "right", state=not bidirectional, dim=2, order=2, bidirectional=bidirectional
    )
    truth = evaluate(case, "fft", torch.float64)
    assert_equal_calls(evaluate(case, block), truth, FORWARD[FLOAT], BACKWARD[FLOAT])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_channels_that_are_transformed_together_change_nothing(monkeypatch, bidirectional):
    case = Cema(2, 50, "right", dim=5, bidirectional=bidirectional)
    truth = evaluate(case, "fft")
    monkeypatch.setattr(fft, "_LINE", 2)
    monkeypatch.setattr(fft, "_CHUNK", 1)
    assert_equal_calls(evaluate(case, "fft"), truth, 1e-5, 1e-4)


@each([Cema(1, 300, dim=2, order=2, state=True)], "reference")
def test_default_length_of_segments(case, backend, dtype, monkeypatch):
    launch = pytest.importorskip("megalodon_tasks.cuda_ops.complex_ema.triton_launch")
    monkeypatch.setattr(launch, "LEAST_SEGMENT", 256)
    assert_matches_reference(case, backend, dtype)


@each([Cema(2, 40, "random", dim=3, order=4, state=True)], "reference", "fft")
def test_frozen_coefficients_change_no_other_gradient(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    frozen = {n: leaf if n in ("x", "state") else leaf.detach() for n, leaf in leaves.items()}
    found = []
    for tensors in (leaves, frozen):
        y, state = case.call(tensors, case.padding(), case.initial_state(tensors), backend)
        inputs = [tensors["x"], tensors["state"]]
        grads = torch.autograd.grad(y.sum() + state.real.sum(), inputs)
        found.append((y, state, *grads))
    with torch.no_grad():
        found.append(case.call(leaves, case.padding(), case.initial_state(leaves), backend))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0][:2], found[2]))


# In float32 the reference multiplies a rounded q step by step; it is exact enough in float64 only.
LOOSENED = {"reference": 10}


@each(TWO_WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_saturated_logits(case, backend, dtype, seed):
    """alpha, delta and theta at -40, 0 and 40: p and q at zero, q next to one, angles at the ends."""
    leaves, draw = case.leaves(), torch.Generator().manual_seed(seed)
    for name in ("alpha", "delta", "theta"):
        leaves[name] = 40.0 * torch.randint(-1, 2, leaves[name].shape, generator=draw).double()
    assert_matches_reference(case, backend, dtype, leaves, loosened=LOOSENED.get(backend, 1))


@each([Cema(2, 130, state=True)])
@pytest.mark.parametrize(
    ("alpha", "delta"),
    [(40.0, 40.0), (100.0, 100.0), (-60.0, 0.0), (0.0, -60.0), (100.0, 8.0), (5.52, 40.0)],
    ids=["q = 0", "q = 0 exactly", "p = 0", "q = 1", "q^c underflows", "q^130 is subnormal"],
)
def test_all_channels_at_one_extreme(case, backend, dtype, alpha, delta):
    leaves = case.leaves()
    leaves["alpha"].fill_(alpha)
    leaves["delta"].fill_(delta)
    assert_matches_reference(case, backend, dtype, leaves, loosened=LOOSENED.get(backend, 1))


class ByBlocks(Cema):
    """The recurrence in float64, in parallel over blocks of sqrt(L) steps and then over the blocks."""

    def call(self, leaves, padding, state, backend):
        if backend != "by blocks":
            return super().call(leaves, padding, state, backend)
        x, alpha, delta, theta, gamma, omega = leaves.values()
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
        read = eta * (steps * log_q).exp()
        far = torch.einsum("bidn,tdn->bitd", torch.stack(carried, 1), read).real
        return (torch.stack(outputs, 2) + far).view_as(x) + omega[:, 0] * x, carry


@pytest.mark.parametrize(
    ("backend", "length"),
    [
        *((backend, 1 << 16) for backend in ("torch", "fft", "native")),
        *(
            pytest.param(backend, 1 << 20, marks=pytest.mark.slow)
            for backend in ("torch", "fft", "native")
        ),
        pytest.param("triton", 1 << 16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("alpha", "delta", "constant"),
    [(0.0, 0.0, False), (-5.0, -5.0, False), (-6.0, -6.0, True), (0.0, -14.0, False)],
    ids=["usual", "slow decay", "slow decay of a constant", "almost undamped"],
)
def test_long_sequences(backend, alpha, delta, constant, length):
    case = ByBlocks(1, length, dim=1)
    leaves = case.leaves()
    leaves["alpha"] = 0.2 * leaves["alpha"] + alpha
    leaves["delta"] = 0.2 * leaves["delta"] + delta
    if constant:
        leaves["x"].fill_(1.0)
        leaves["theta"].fill_(-40.0)
        leaves["gamma"].abs_()  # components of one sign: a sum that cancels would magnify rounding
    leaves = cast(case, leaves, FLOAT)
    truth = evaluate(case, "by blocks", torch.float64, leaves)
    assert_equal_calls(evaluate(case, backend, FLOAT, leaves), truth, 1e-5, 1e-4)


@pytest.mark.parametrize(
    ("device", "length"),
    [
        # The interpreter would take eight times as long for the million.
        pytest.param("cpu", 1 << 17, marks=pytest.mark.slow),
        pytest.param("cuda", 1 << 20, marks=pytest.mark.gpu),
    ],
)
def test_states_that_never_decay_over_many_segments(device, length):
    case = Cema(1, length, state=True, dim=1)
    leaves = case.leaves()
    leaves["delta"].fill_(-40.0)
    truth = evaluate(case, "torch", torch.float64, leaves)
    found = evaluate(case, "triton", FLOAT, leaves, device=device)
    assert_equal_calls(found, truth, 1e-5, 1e-4)


def wrong_arguments():
    good = cast(Cema(2, 70, state=True), Cema(2, 70, state=True).leaves(), FLOAT)
    x, state = good["x"], good["state"]
    yield {"x": x[0]}, r"x has shape \(70, 3\), expected \(any, any, any\)"
    yield {"x": x.long()}, "x has dtype torch.int64"
    for name in ("alpha", "delta", "theta", "gamma", "omega"):
        shape = ", ".join(map(str, good[name][1:].shape))
        yield {name: good[name][1:]}, rf"{name} has shape \({shape}\), expected \(3, "
    yield {"alpha": good["alpha"][:, :0]}, "alpha has shape .* expected an order of at least 1"
    yield {"delta": good["delta"][:, 1:]}, r"delta has shape \(3, 3, 1\), expected \(3, 4, 1\)"
    yield {"gamma": good["gamma"].to(torch.complex64)}, "gamma has dtype torch.complex64"
    yield {"state": state[:1]}, r"state has shape \(1, 3, 4\), expected \(2, 3, 4\)"
    yield {"state": state.real}, "state has dtype torch.float32, expected complex64 or complex128"
    yield {"padding_mask": torch.zeros(2, 69, dtype=torch.bool)}, "padding_mask has shape"
    yield (
        {"padding_mask": torch.zeros(2, 70)},
        "padding_mask has dtype torch.float32, expected bool",
    )
    yield {"omega": good["omega"].to("meta")}, "omega is on meta but x is on cpu"
    yield {"bidirectional": True, "state": None}, r"alpha has shape \(3, 4, 1\), expected \(6, any"
    yield {"backend": "cudnn"}, "backend 'cudnn' is not one of"


@pytest.mark.parametrize(("change", "message"), list(wrong_arguments()))
def test_wrong_arguments_are_named(change, message):
    case = Cema(2, 70, state=True)
    with pytest.raises(ValueError, match=f"cema: {message}"):
        cema(**(cast(case, case.leaves(), FLOAT) | change))


def test_both_directions_take_no_state():
    leaves = Cema(bidirectional=True).leaves() | {"state": torch.zeros(2, 3, 4, dtype=torch.cfloat)}
    with pytest.raises(ValueError, match=r"cema: state of shape \(2, 3, 4\) was given with bidir"):
        cema(**leaves, bidirectional=True)
