"""The Triton kernels of cema where they could go wrong: edges of tiles and segments, strides, masks,
carried states, registration.  What every backend owes is in test_cema.py."""

import importlib

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, cema
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close

# The package's name `cema` is the function, so that the modules below it are reached by name.
MODULES = "megalodon_tasks.cuda_ops.complex_ema"
NAMES = ("x", "alpha", "delta", "theta", "gamma", "omega", "state")


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Segments of two blocks, so that short sequences are cut."""
    monkeypatch.setattr(importlib.import_module(f"{MODULES}.triton_launch"), "LEAST_SEGMENT", 32)


def inputs(batch, length, dim, order, *, bidirectional=False, state=False, dtype=torch.float32):
    """Tensors of :func:`cema` in float64, rounded to what ``dtype`` and float32 hold."""
    rng = torch.Generator().manual_seed(length + 7 * dim + order)
    rows = 2 * dim if bidirectional else dim
    shapes = [(rows, order, 1), (rows, order, 1), (rows, 1, 1), (rows, order, 2), (dim, 1)]
    x = torch.randn(batch, length, dim, generator=rng).to(dtype).double()
    tensors = [x, *(torch.randn(shape, generator=rng).double() for shape in shapes)]
    if state:
        pairs = torch.randn(batch, dim, order, 2, generator=rng).double()
        tensors.append(torch.view_as_complex(pairs))
    return tensors


def run(tensors, backend, *, mask=None, bidirectional=False, outgoing=True):
    """Outputs and the gradients of all inputs, for a loss that weighs every output differently."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    state = leaves[6] if len(leaves) == 7 else None
    y, last = cema(
        *leaves[:6], state=state, padding_mask=mask, bidirectional=bidirectional, backend=backend
    )
    outputs = {"y": y} if last is None else {"y": y, "last state": last}
    loss = sum(
        (torch.view_as_real(out) if out.is_complex() else out).double().mul(weight).sum()
        for out, weight in zip(outputs.values(), weights(outputs), strict=True)
        if outgoing or out is y
    )
    grads = torch.autograd.grad(loss, leaves)
    return outputs, dict(zip(NAMES, grads, strict=False))


def weights(outputs):
    rng = torch.Generator().manual_seed(5)
    for out in outputs.values():
        pairs = torch.view_as_real(out) if out.is_complex() else out
        weight = torch.randn(pairs.shape, generator=rng, dtype=torch.float64)
        # Exact in bf16, so that the gradients start from equal numbers.
        yield weight.bfloat16().double().to(out.device)


def assert_like_reference(tensors, device, *, dtype=torch.float32, **options):
    def narrow(tensor):
        return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32).to(device)

    mask = options.get("mask")
    truth = run(tensors, "reference", **options)
    options["mask"] = None if mask is None else mask.to(device)
    got = run([tensors[0].to(device, dtype), *map(narrow, tensors[1:])], "triton", **options)
    tolerances = (FORWARD[dtype], BACKWARD[dtype])
    for values, expected, tolerance in zip(got, truth, tolerances, strict=True):
        for name, value in values.items():
            assert_close(name, value.cpu(), expected[name], tolerance)
    return got


def some_padding(batch, length):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(3)) < 0.3
    mask[0] = True
    return mask


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 67])
def test_edges_of_blocks_and_segments(device, length):
    assert_like_reference(inputs(2, length, 3, 4, state=True), device)


@pytest.mark.parametrize("length", [1, 16, 31, 33, 67])
def test_edges_in_both_directions(device, length):
    tensors = inputs(2, length, 3, 4, bidirectional=True)
    assert_like_reference(tensors, device, bidirectional=True)


@pytest.mark.parametrize(("dim", "order"), [(1, 1), (8, 16), (9, 5), (17, 20)])
def test_edges_of_channels_and_orders(device, dim, order):
    assert_like_reference(inputs(1, 19, dim, order, state=True), device)


@pytest.mark.parametrize("batch", [15, 17])
def test_rows_of_several_sequences_share_a_tile(device, batch):
    assert_like_reference(inputs(batch, 40, 2, 2, state=True), device)


def test_default_length_of_segments(device, monkeypatch):
    launch = importlib.import_module(f"{MODULES}.triton_launch")
    monkeypatch.setattr(launch, "LEAST_SEGMENT", 256)
    assert_like_reference(inputs(1, 300, 2, 2), device)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, dtype, bidirectional):
    tensors = inputs(2, 67, 3, 4, bidirectional=bidirectional, dtype=dtype)
    outputs, grads = assert_like_reference(
        tensors, device, dtype=dtype, bidirectional=bidirectional
    )
    assert outputs["y"].dtype == grads["x"].dtype == dtype
    assert grads["alpha"].dtype == torch.float32


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_holds_anything(device, bidirectional):
    tensors, mask = inputs(3, 67, 3, 4, bidirectional=bidirectional), some_padding(3, 67)
    tensors[0][mask] = float("nan")
    outputs, grads = assert_like_reference(tensors, device, mask=mask, bidirectional=bidirectional)
    assert not outputs["y"].cpu()[mask].any()
    assert not grads["x"].cpu()[mask].any()


def test_loss_on_the_outputs_alone(device):
    assert_like_reference(inputs(2, 67, 3, 4, state=True), device, outgoing=False)


def test_loss_on_the_last_state_alone(device):
    x, *parameters = (tensor.float().to(device) for tensor in inputs(2, 40, 3, 4))
    x.requires_grad_()
    y, last = cema(x, *parameters, backend="triton")
    y_reference, last_reference = cema(x, *parameters, backend="reference")
    (grad,) = torch.autograd.grad(last.abs().sum(), x)
    (truth,) = torch.autograd.grad(last_reference.abs().sum(), x)
    assert_close("gradient of x", grad, truth, 1e-5)


@pytest.mark.parametrize("alpha", [-40.0, 40.0])
@pytest.mark.parametrize("delta", [-40.0, 40.0])
@pytest.mark.parametrize("theta", [-40.0, 40.0])
def test_saturated_logits(device, alpha, delta, theta):
    tensors = inputs(1, 67, 2, 3, state=True)
    for tensor, value in zip(tensors[1:4], (alpha, delta, theta), strict=True):
        tensor[0] = value
    assert_like_reference(tensors, device)


@pytest.mark.parametrize(
    ("device", "length"),
    [
        # The interpreter would take eight times as long for the million.
        pytest.param("cpu", 1 << 17, marks=pytest.mark.slow),
        pytest.param("cuda", 1 << 20, marks=pytest.mark.gpu),
    ],
)
def test_states_that_never_decay_over_many_segments(device, length, monkeypatch):
    launch = importlib.import_module(f"{MODULES}.triton_launch")
    monkeypatch.setattr(launch, "LEAST_SEGMENT", launch.MOST_SEGMENT)
    tensors = inputs(1, length, 1, 4, state=True)
    tensors[2][:] = -40.0
    truth = run(tensors, "torch")
    narrow = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in tensors]
    got = run([tensor.to(device) for tensor in narrow], "triton")
    for values, expected, tolerance in zip(got, truth, (1e-5, 1e-4), strict=True):
        for name, value in values.items():
            assert_close(name, value.cpu(), expected[name], tolerance)


def test_time_first_memory_is_read_in_place(device):
    tensors = [tensor.float().to(device) for tensor in inputs(3, 40, 5, 4)]
    time_first = tensors[0].transpose(0, 1).contiguous().transpose(0, 1)
    expected, grads = run(tensors, "triton")
    got, got_grads = run([time_first, *tensors[1:]], "triton")
    assert torch.equal(got["y"], expected["y"])
    assert torch.equal(got_grads["x"], grads["x"])


def test_channels_far_apart_are_accepted(device):
    x, *parameters = (tensor.float().to(device) for tensor in inputs(2, 20, 5, 4))
    apart = x.transpose(1, 2).contiguous().transpose(1, 2)
    y, _ = cema(apart, *parameters, backend="triton")
    assert torch.equal(y, cema(x, *parameters, backend="triton")[0])


def test_a_broadcast_gradient_is_accepted(device):
    x, *parameters = (tensor.float().to(device) for tensor in inputs(2, 20, 5, 4))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(cema(x, *parameters, backend="triton")[0].sum(), x)
    (truth,) = torch.autograd.grad(cema(x, *parameters, backend="reference")[0].sum(), x)
    assert_close("gradient of x", grad, truth, 1e-5)


def test_results_repeat_bit_for_bit(device):
    tensors = [tensor.float().to(device) for tensor in inputs(9, 67, 3, 4)]
    first, second = (run(tensors, "triton")[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_empty_batch(device):
    tensors = [tensor.float().to(device) for tensor in inputs(0, 20, 3, 4)]
    outputs, grads = run(tensors, "triton")
    assert outputs["y"].shape == (0, 20, 3)
    assert not grads["alpha"].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_operator_is_registered_as_pytorch_wants_it(device, bidirectional):
    op = importlib.import_module(f"{MODULES}.triton_op").cema_op
    coefficients = importlib.import_module(f"{MODULES}.coefficients").coefficients
    tensors = inputs(2, 35, 3, 4, bidirectional=bidirectional, state=not bidirectional)
    x, *parameters = (tensor.to(device) for tensor in tensors)
    leaves = [x.float(), *coefficients(*parameters[:4]), parameters[4][:, 0].float()]
    state = None if bidirectional else torch.view_as_real(parameters[5]).float().requires_grad_()
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    mask = some_padding(2, 35).to(device)
    torch.library.opcheck(op, (*leaves, state, mask, bidirectional))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_as_one_graph(device, compiler):
    tensors = [
        t.to(torch.complex64 if t.is_complex() else torch.float32)
        for t in inputs(2, 35, 3, 4, state=True)
    ]
    leaves = [tensor.to(device).requires_grad_() for tensor in tensors]

    def loss(*args):
        y, last = cema(*args[:6], state=args[6], backend="triton")
        return y.square().sum() + torch.view_as_real(last).square().sum()

    torch.compiler.reset()
    got = torch.compile(loss, fullgraph=True, backend=compiler)(*leaves)
    expected = loss(*leaves)
    assert torch.equal(got, expected)
    pairs = zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True
    )
    assert all(torch.equal(grad, truth) for grad, truth in pairs)


def test_float64_is_refused_by_name(device):
    tensors = [tensor.to(device) for tensor in inputs(1, 5, 3, 4)]
    with pytest.raises(BackendUnavailable, match="float64"):
        cema(*tensors, backend="triton")


def test_float64_falls_back_by_default(device):
    tensors = [tensor.to(device) for tensor in inputs(1, 5, 3, 4)]
    assert torch.equal(cema(*tensors)[0], cema(*tensors, backend="torch")[0])
