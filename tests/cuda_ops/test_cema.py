"""cema: every backend against the float64 reference, and the promises of its contract."""

import importlib
from pathlib import Path

import pytest
import torch

from megalodon_tasks.cuda_ops import cema
from tests.cuda_ops.cema_cases import PARAMETERS, Case, cast, in_blocks, outputs_and_gradients
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close

FAST = ["torch", "native", "fft", "triton"]
BACKENDS = ["reference", *FAST]
IN_FLOAT64 = ["reference", "torch", "fft"]
DATA = Path(__file__).parents[1] / "data"
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "both ways"])


def assert_all_close(found, truth, dtype=torch.float32):
    assert found.keys() == truth.keys()
    for name, tensor in found.items():
        tolerance = BACKWARD if name.startswith("gradient") else FORWARD
        assert_close(name, tensor, truth[name], tolerance[dtype])


def compare(case, backend, dtype=torch.float32, **options):
    inputs = case.inputs(dtype)
    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference", case.bidirectional)
    found = outputs_and_gradients(inputs, backend, case.bidirectional, **options)
    assert found["y"].dtype == dtype
    assert_all_close(found, truth, dtype)


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


# 1 and 2; one block of 16, of 64 or of its largest size and those beside it; several blocks; a prime;
# more than a group of blocks.
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 95, 96, 97, 127, 128, 129, 211, 300]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", FAST)
def test_lengths(backend, length):
    compare(Case(length=length, with_state=True, padded=0.2), backend)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", FAST)
def test_lengths_both_ways(backend, length):
    compare(Case(length=length, bidirectional=True, padded=0.2), backend)


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, length=100, dim=1, order=1),
        Case(batch=1, length=20, dim=5, order=3, with_state=True),
        Case(batch=5, length=130, dim=2, order=16, padded=0.5),
        Case(batch=3, length=90, dim=7, order=2, bidirectional=True),
        Case(batch=1, length=150, dim=1, order=1, bidirectional=True),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (backend, dtype)
        for backend in FAST
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        if dtype != torch.float64 or backend in IN_FLOAT64
    ],
)
def test_shapes_and_dtypes(backend, dtype, case):
    compare(case, backend, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_inputs_with_float32_parameters(backend, dtype):
    inputs = Case(length=100).inputs()
    truth, end = cema(**cast(inputs, torch.float64), backend="reference")
    inputs["x"] = inputs["x"].to(dtype)
    y, state = cema(**inputs, backend=backend)
    assert y.dtype == dtype
    assert state.dtype == torch.complex64
    assert_close("y", y, truth, FORWARD[dtype])
    assert_close("state", state, end, FORWARD[torch.float32])


@pytest.mark.parametrize("block", [2, 6, 16, 64, 200])
@DIRECTIONS
def test_block_length_changes_nothing(bidirectional, block):
    case = Case(length=101, bidirectional=bidirectional, with_state=not bidirectional, padded=0.1)
    inputs = case.inputs()
    found = outputs_and_gradients(inputs, None, bidirectional, function=in_blocks, block=block)
    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference", bidirectional)
    assert_all_close(found, truth)


@DIRECTIONS
def test_channels_that_are_transformed_together_change_nothing(monkeypatch, bidirectional):
    fft = importlib.import_module("megalodon_tasks.cuda_ops.complex_ema.fft")
    inputs = Case(length=50, dim=5, bidirectional=bidirectional, padded=0.1).inputs()
    truth = outputs_and_gradients(inputs, "fft", bidirectional)
    monkeypatch.setattr(fft, "_LINE", 2)
    monkeypatch.setattr(fft, "_CHUNK", 1)
    found = outputs_and_gradients(inputs, "fft", bidirectional)
    assert_all_close(found, truth)


@DIRECTIONS
def test_many_segments(bidirectional):
    """More than one segment, the last of them shorter and cut within a block."""
    case = Case(1, 2 * 64 * 8 + 8 * 5 + 3, 2, 2, bidirectional, with_state=not bidirectional)
    inputs = case.inputs()
    found = outputs_and_gradients(inputs, None, bidirectional, function=in_blocks, block=8)
    assert_all_close(
        found, outputs_and_gradients(cast(inputs, torch.float64), "fft", bidirectional)
    )


@pytest.mark.parametrize("cuts", [[1, 99], [64, 36], [30, 1, 1, 68], [97, 3]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_with_carried_state_is_the_whole(backend, cuts):
    case = Case(length=100, with_state=True, padded=0.1)

    def in_parts(x, padding_mask, state, **named):
        outputs = []
        for x_part, mask in zip(x.split(cuts, 1), padding_mask.split(cuts, 1), strict=True):
            y, state = cema(x_part, **named, state=state, padding_mask=mask)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    inputs = case.inputs()
    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference")
    assert_all_close(outputs_and_gradients(inputs, backend, function=in_parts), truth)


@pytest.mark.parametrize("length", [1, 30, 150])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_is_a_state_of_zeros(backend, length):
    inputs = Case(length=length).inputs()
    state = torch.zeros(2, 3, 4, dtype=torch.complex64)
    found = outputs_and_gradients({**inputs, "state": state}, backend)
    del found["gradient of state"]
    assert_all_close(found, outputs_and_gradients(inputs, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_does_not_matter(backend):
    inputs = Case(length=130).inputs()
    y, _ = cema(**inputs, backend=backend)
    changed = inputs | {"x": inputs["x"].clone()}
    changed["x"][:, 70:] = 3.0
    after, _ = cema(**changed, backend=backend)
    assert_close("y before the change", after[:, :70], y[:, :70], 1e-5)
    assert not torch.allclose(after[:, 70:], y[:, 70:], atol=0.1)


@DIRECTIONS
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_are_independent(backend, bidirectional):
    inputs = Case(batch=4, length=110, bidirectional=bidirectional).inputs()
    together, _ = cema(**inputs, bidirectional=bidirectional, backend=backend)
    alone, _ = cema(
        **(inputs | {"x": inputs["x"][2:3]}), bidirectional=bidirectional, backend=backend
    )
    assert_close("y of a row", alone, together[2:3], 1e-6)


@DIRECTIONS
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend, side, bidirectional):
    """As if the padded steps were not there; what they hold, NaN too, reaches nothing."""
    inputs = Case(length=90, bidirectional=bidirectional).inputs()
    padding = torch.full((2, 17, 3), torch.nan)
    parts = [inputs["x"], padding] if side == "right" else [padding, inputs["x"]]
    padded = inputs | {
        "x": torch.cat(parts, 1),
        "padding_mask": torch.cat([part[:, :, 0].isnan() for part in parts], 1),
    }
    real = ~padded["padding_mask"]
    x = padded["x"].requires_grad_()
    y, _ = cema(**padded, bidirectional=bidirectional, backend=backend)
    truth, _ = cema(**inputs, bidirectional=bidirectional, backend=backend)
    assert_close("y", y[real], truth.flatten(0, 1), 1e-5)
    assert torch.equal(y[~real], torch.zeros_like(y[~real]))
    y.backward(torch.where(real[:, :, None], 1.0, torch.nan).expand_as(y))
    assert torch.isfinite(x.grad).all()
    assert torch.equal(x.grad[~real], torch.zeros_like(x.grad[~real]))


@DIRECTIONS
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_nothing_but_padding(backend, bidirectional):
    inputs = Case(length=100, bidirectional=bidirectional).inputs()
    inputs["x"][0] = torch.nan
    inputs["padding_mask"] = torch.tensor([True, False])[:, None].expand(2, 100)
    found = outputs_and_gradients(inputs, backend, bidirectional)
    assert torch.equal(found["y"][0], torch.zeros(100, 3))
    assert all(torch.isfinite(torch.view_as_real(t + 0j)).all() for t in found.values())


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_is_equation_2_once_the_phase_stands_in_eta(backend):
    """The paper turns the input too: h_t = p e^{i theta} x_t + q h_{t-1}, y_t = Re(eta' h_t)."""
    inputs = cast(Case(length=40).inputs(), torch.float64)
    alpha, delta = inputs["alpha"][..., 0].sigmoid(), inputs["delta"][..., 0].sigmoid()
    order = alpha.shape[1]
    base = inputs["theta"][..., 0].sigmoid()
    theta = 2 * torch.pi * torch.arange(1.0, order + 1).double() / order * base  # equation 3
    phase = torch.polar(torch.ones_like(theta), theta)
    eta = torch.view_as_complex(inputs["gamma"]) / order**0.5 / phase
    h = torch.zeros(2, 3, order, dtype=torch.complex128)
    outputs = []
    for x in inputs["x"].unbind(1):
        h = alpha * phase * x[..., None] + (1 - alpha * delta) * phase * h
        outputs.append((eta * h).sum(-1).real + inputs["omega"][:, 0] * x)
    y, _ = cema(**inputs, backend=backend)
    assert_close("y", y, torch.stack(outputs, 1), 1e-12)


@DIRECTIONS
@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_a_batch_of_nothing(backend, bidirectional):
    inputs = Case(batch=0, length=100, bidirectional=bidirectional).inputs()
    found = outputs_and_gradients(inputs, backend, bidirectional)
    assert found["y"].shape == (0, 100, 3)
    assert all(not found[f"gradient of {name}"].any() for name in PARAMETERS)


@pytest.mark.parametrize("backend", FAST)
def test_strided_tensors(backend):
    """A transposed input, and the gradient of a sum, which is one number seen many times."""
    inputs = Case(length=100).inputs()
    strided = inputs | {"x": inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)}
    gradients = []
    for named in (inputs, strided):
        x = named["x"].requires_grad_()
        cema(**named, backend=backend)[0].sum().backward()
        gradients.append(x.grad)
    assert_close("gradient of x", gradients[1], gradients[0], 1e-6)


@pytest.mark.parametrize("wanted", ["x", "gamma", "state"])
@pytest.mark.parametrize("backend", FAST)
def test_gradient_of_one_input_alone(backend, wanted):
    inputs = Case(length=100, with_state=True).inputs()
    truth = outputs_and_gradients(inputs, backend)[f"gradient of {wanted}"]

    def frozen(bidirectional, backend, **named):
        kept = {name: t if name == wanted else t.detach() for name, t in named.items()}
        return cema(**kept, backend=backend)

    found = outputs_and_gradients(inputs, backend, function=frozen)
    assert_close(wanted, found[f"gradient of {wanted}"], truth, 1e-6)


@pytest.mark.parametrize("backend", FAST)
def test_gradient_through_the_returned_state_alone(backend):
    inputs = Case(length=100, with_state=True).inputs()

    def state_alone(**named):
        y, state = cema(**named)
        return torch.zeros_like(y, requires_grad=True), state

    truth = outputs_and_gradients(cast(inputs, torch.float64), "reference", function=state_alone)
    found = outputs_and_gradients(inputs, backend, function=state_alone)
    for name in ("x", "alpha", "delta", "theta", "state"):
        assert_close(name, found[f"gradient of {name}"], truth[f"gradient of {name}"], 1e-4)


def wrong_arguments():
    good = Case(with_state=True).inputs()
    x, state = good["x"], good["state"]
    yield {"x": x[0]}, r"x has shape \(70, 3\), expected \(any, any, any\)"
    yield {"x": x[:, :0]}, r"x has shape \(2, 0, 3\), expected at least one step"
    yield {"x": x.long()}, "x has dtype torch.int64"
    for name in PARAMETERS:
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
    inputs = Case(with_state=True).inputs()
    with pytest.raises(ValueError, match=f"cema: {message}"):
        cema(**(inputs | change))


def test_both_ways_take_no_state():
    inputs = Case(bidirectional=True).inputs() | {"state": torch.zeros(2, 3, 4, dtype=torch.cfloat)}
    with pytest.raises(ValueError, match=r"cema: state of shape \(2, 3, 4\) was given with bidir"):
        cema(**inputs, bidirectional=True)
