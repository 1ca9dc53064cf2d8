"""What every op and backend promises: splits, causality, padding, rows, layouts, gradients, numerics."""

import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from megalodon_tasks.cuda_ops.complex_ema.torch_op import block_length
from tests.cuda_ops.cases import (
    CARRYING,
    FLOAT,
    PADDED,
    TYPICAL,
    Attention,
    Cema,
    RmsNorm,
    SequenceNorm,
    TimestepNorm,
    assert_close,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    each,
    evaluate,
    gradients,
    make_mask,
    randn,
)

DOUBLE = torch.float64
AUTOGRAD = "reference", "fused"  # backends that autograd differentiates


LENGTHS_OF_PARTS = {
    100: ([1, 99], [64, 36], [30, 1, 1, 68], [97, 3]),
    27: ([1, 26], [8, 19], [1, 2, 5, 16, 3], [26, 1]),
    12: ([1] * 12,),
}


@each(
    [
        *(Cema(2, length, mask, True) for length in (100, 12) for mask in ("none", "random")),
        *(TimestepNorm(2, 27, mask, state) for mask in ("none", "left") for state in (False, True)),
        TimestepNorm(2, 12, "left"),
        *(
            Attention(2, 27, mask, chunk_size=size)
            for mask in ("none", "left", "random")
            for size in (1, 4, 9, None)
        ),
        Attention(2, 12, chunk_size=5),
    ],
    dtypes=(DOUBLE, FLOAT),
)
def test_parts_with_the_state_carried_equal_the_whole(case, backend, dtype):
    tolerances = (1e-12, 1e-11) if dtype == DOUBLE else (1e-5, 1e-4)
    whole = evaluate(case, backend, dtype)
    for sizes in LENGTHS_OF_PARTS[case.length]:
        assert_equal_calls(evaluate(case, backend, dtype, sizes=sizes), whole, *tolerances)


@each([Cema(length=130), TimestepNorm(length=30), Attention(length=30, chunk_size=None)])
def test_the_future_does_not_matter(case, backend, dtype):
    before, leaves, now = evaluate(case, backend)[0]["y"], case.leaves(), case.length // 2
    for name in case.timed:
        leaves[name][:, now:] = 3.0
    after = evaluate(case, backend, dtype, leaves)[0]["y"]
    assert_close("y before the change", after[:, :now], before[:, :now], 1e-5)
    assert not torch.allclose(after[:, now:], before[:, now:], atol=0.1)


def steps_of_a_block(case, backend):
    """Steps of an output that NaN in one of them reaches, earlier ones too; 1 is later ones only."""
    if case.op == "cema":
        known = {"torch": block_length(case.length), "triton": 16, "fft": case.length}
        return known.get(backend, 1)
    return 1


@torch.no_grad()
def output(case, backend, dtype, leaves):
    """The output alone."""
    leaves = cast(case, leaves, dtype)
    return case.call(leaves, case.padding(), case.initial_state(leaves), backend)[0]


# Triton's interpreter warns of numbers that are not finite.
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@each([Cema(1, 200), Cema(1, 95, state=True), TimestepNorm(1, 26, state=True)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@quietly
def test_what_is_not_finite_reaches_no_output_before_its_block(case, backend, dtype, value):
    clean = output(case, backend, dtype, case.leaves())
    for at in (0, case.length // 3, case.length - 2):
        leaves = case.leaves()
        leaves["x"][:, at] = value
        y = output(case, backend, dtype, leaves)
        block = steps_of_a_block(case, backend)
        first = at // block * block
        assert torch.equal(y[:, :first], clean[:, :first])
        assert not y[:, at:].isfinite().any()


@each([Attention(1, 21, chunk_size=None), Attention(1, 21, chunk_size=16, state=True)])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@quietly
def test_nan_reaches_no_output_of_another_chunk(case, backend, dtype, name):
    clean = output(case, backend, dtype, case.leaves())
    past = case.past if case.state else 0
    chunk_L = (torch.arange(case.length) + past) // (case.chunk_size or case.length)
    for at in (2, 13):
        leaves = case.leaves()
        leaves[name][:, at] = torch.nan
        y = output(case, backend, dtype, leaves)
        assert y[:, at].isnan().all()
        other = torch.arange(case.length) != at if name == "q" else chunk_L != chunk_L[at]
        if name != "v" or backend != "reference":
            assert torch.equal(y[:, other], clean[:, other])


@each(TYPICAL)
def test_rows_of_a_batch_are_independent(case, backend, dtype):
    """A row beside rows of NaN and of huge numbers equals the row in a batch of one."""
    single = cast(case, case.leaves(), dtype)
    together = dict(single)
    for name in case.timed:
        row = single[name].detach()[:1]
        single[name] = row.clone().requires_grad_()
        others = torch.full_like(row, torch.nan), torch.full_like(row, 1e15)
        together[name] = torch.cat([row, *others]).requires_grad_()
    y, _ = case.call(single, None, None, backend)
    y_3, _ = case.call(together, None, None, backend)
    assert_close("y", y_3[:1], y, 1e-6)
    timed, grad_y = list(case.timed), randn(*y_3.shape, seed=4).float()
    grads = torch.autograd.grad(y, [single[name] for name in timed], grad_y[:1])
    grads_3 = torch.autograd.grad(y_3, [together[name] for name in timed], grad_y)
    for name, grad, grad_3 in zip(timed, grads, grads_3, strict=True):
        assert_close(f"gradient of {name}", grad_3[:1], grad, 1e-5)


@each(
    [
        Attention(2, 8, chunk_size=None),
        Attention(2, 8, chunk_size=None, causal=False),
        TimestepNorm(2, 8),
        SequenceNorm(2, 8),
        Cema(2, 90),
        Cema(2, 90, bidirectional=True),
    ]
)
@pytest.mark.parametrize("start", ["first", "middle", "last"])
def test_padding_changes_nothing_and_nan_does_not_spread(case, backend, dtype, start):
    """As if the padded steps were not there, in outputs and gradients."""
    if start == "middle" and case.op == "cema":
        pytest.skip("time passes at padded steps, so that the state decays")
    at = {"first": 0, "middle": case.length // 2, "last": case.length}[start]
    mask = torch.zeros(2, case.length + 4, dtype=torch.bool)
    mask[:, at : at + 4] = True
    plain = cast(case, case.leaves(), dtype)
    padded = dict(plain)
    for name in case.timed:
        leaf = plain[name].detach()
        padded[name] = torch.full((2, case.length + 4, *leaf.shape[2:]), torch.nan)
        padded[name][~mask] = leaf.flatten(0, 1)
        padded[name].requires_grad_()
    y, _ = case.call(plain, None, None, backend)
    padded_y, _ = case.call(padded, mask, None, backend)
    grad_y = randn(*padded_y.shape, seed=4).float()
    grads = torch.autograd.grad(y, list(plain.values()), grad_y[~mask].view_as(y))
    grad_y[mask] = torch.nan
    padded_grads = torch.autograd.grad(padded_y, list(padded.values()), grad_y)
    assert_close("y", padded_y[~mask], y.flatten(0, 1), 1e-5)
    assert not padded_y[mask].any()
    for name, grad, padded_grad in zip(plain, grads, padded_grads, strict=True):
        if name in case.timed:
            assert not padded_grad[mask].any()
            padded_grad = padded_grad[~mask].view_as(grad)
        assert_close(f"gradient of {name}", padded_grad, grad, 1e-4)


@each([*PADDED, *CARRYING])
def test_what_padding_holds_reaches_nothing(case, backend, dtype):
    """Rows of nothing but padding too: zeros, and a state that stays what it was."""
    mask, leaves = make_mask("random", case.batch, case.length), case.leaves()
    clean = evaluate(case, backend, dtype, padding=mask)
    for name in case.timed:
        leaves[name][mask] = torch.nan
    dirty = evaluate(case, backend, dtype, leaves, padding=mask)
    assert not dirty[0]["y"][mask].any()
    assert not any(dirty[1][name][mask].any() for name in case.timed)
    assert_equal_calls(dirty, clean, 0.0, 0.0)


@each([TimestepNorm(2, 5, state=True, groups=2)])
def test_rows_of_padding_keep_the_moments(case, backend, dtype):
    leaves, mask = case.leaves(), torch.ones(2, 5, dtype=torch.bool)
    outputs, grads = evaluate(case, backend, dtype, leaves, padding=mask)
    assert torch.equal(outputs["mean"], leaves["mean"])
    assert torch.equal(outputs["var"].double(), leaves["var"])
    assert torch.equal(outputs["count"], torch.tensor([0.0, 3.0]).double())
    for i, name in enumerate(("mean", "var"), 1):
        assert torch.equal(grads[name].double(), randn(2, 2, seed=20 + i))


@each([Cema(2, 1), Cema(2, 150), TimestepNorm(), Attention()])
def test_no_state_is_an_empty_state(case, backend, dtype):
    """Zeros for cema, moments of no steps whatever they say, no keys."""
    truth = evaluate(case, backend, dtype)
    started = type(case)(
        **vars(case) | {"state": True} | ({"past": 0} if case.op == "chunk_attention" else {})
    )
    leaves = started.leaves()
    if case.op == "cema":
        leaves["state"] = torch.zeros_like(leaves["state"])
    if case.op == "timestep_norm":
        # The reference starts from the given mean, and loses a digit on the way from it.
        started = NothingSeen(**vars(started))
    found = evaluate(started, backend, dtype, leaves)
    shared = {name: grad for name, grad in found[1].items() if name in truth[1]}
    assert_equal_calls((found[0], shared), truth, 1e-5, 1e-4)


class NothingSeen(TimestepNorm):
    """A state of moments of no steps."""

    def initial_state(self, leaves):
        state = super().initial_state(leaves)
        return state._replace(count=torch.zeros_like(state.count))


@each([Cema(length=100), Cema(length=100, bidirectional=True), *TYPICAL[2:]], "reference")
@pytest.mark.parametrize("layout", ["time first", "features first", "expanded"])
def test_any_memory_layout(case, backend, dtype, layout):
    leaves = cast(case, case.leaves(), dtype)
    strided = dict(leaves)
    for name in case.timed:
        leaf = leaves[name].detach()
        if layout == "expanded":
            leaf = leaf[:, :1].expand_as(leaf)
            leaves[name] = leaf.contiguous().requires_grad_()
        else:
            axes = (0, 1) if layout == "time first" else (1, -1)
            leaf = leaf.transpose(*axes).contiguous().transpose(*axes)
        strided[name] = leaf.requires_grad_()
    results = []
    for tensors in (leaves, strided):
        outputs = case.outputs(*case.call(tensors, None, case.initial_state(tensors), backend))
        # The gradient of a sum is one number seen many times.
        (grad,) = torch.autograd.grad(
            outputs["y"].sum(), tensors[case.timed[-1]], retain_graph=True
        )
        results.append((outputs, gradients(outputs, tensors) | {"sum": grad}))
    assert_equal_calls(*reversed(results), 1e-6, 1e-5)


@each([*TYPICAL[:5], *CARRYING[:2]])
def test_autocast_changes_nothing(case, backend, dtype):
    """Where states and statistics are float32: all ops but attention."""
    plain = evaluate(case, backend, dtype)
    leaves = cast(case, case.leaves(), dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = case.call(leaves, None, case.initial_state(leaves), backend)
    outputs = case.outputs(y, state)
    assert_equal_calls((outputs, gradients(outputs, leaves)), plain, 0.0, 0.0)


@each([*TYPICAL, *CARRYING], "reference")
def test_compiled_code_may_call_it(case, backend, dtype):
    """Without a graph break."""
    leaves = cast(case, case.leaves(), dtype)

    def run(tensors):
        tensors = tensors | {name: 2 * tensors[name] for name in case.timed}
        return case.call(tensors, case.padding(), case.initial_state(tensors), backend)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    truth, found = case.outputs(*run(leaves)), case.outputs(*compiled(leaves))
    # The plain form of rms_norm is compiled.
    tolerance = 1e-6 if case.op == "rms_norm" else 0.0
    assert_equal_calls(
        (found, gradients(found, leaves)), (truth, gradients(truth, leaves)), tolerance, tolerance
    )


@each([*TYPICAL, *CARRYING], *AUTOGRAD)
def test_gradients_one_at_a_time(case, backend, dtype):
    truth = evaluate(case, backend, dtype)[1]
    for name in truth:
        leaves = cast(case, case.leaves(), dtype)
        for other in leaves.keys() - {name}:
            leaves[other].requires_grad_(False)
        outputs = case.outputs(*case.call(leaves, None, case.initial_state(leaves), backend))
        (grad,) = gradients(outputs, {name: leaves[name]}).values()
        assert_close(f"gradient of {name}", grad, truth[name], 1e-5)


@each(CARRYING, "reference")
def test_gradients_of_the_output_or_the_state_only(case, backend, dtype):
    for only_state in (False, True):
        found = []
        for name, kind in ((backend, dtype), ("reference", DOUBLE)):
            leaves = cast(case, case.leaves(), kind)
            y, state = case.call(leaves, None, case.initial_state(leaves), name)
            outputs = case.outputs(y, state)
            chosen = {n: out for n, out in outputs.items() if (n != "y") == only_state}
            found.append((chosen, gradients(chosen, leaves)))
        assert_equal_calls(*found, 1e-5, 1e-4, 1.0)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_default_dtype_changes_nothing(case, backend, dtype, default):
    truth = evaluate(case, backend, dtype)
    with default_dtype(default):
        found = evaluate(case, backend, dtype)
    for tensors, true_tensors in zip(found, truth, strict=True):
        for name, tensor in tensors.items():
            assert tensor.dtype == true_tensors[name].dtype
            assert torch.equal(tensor, true_tensors[name]), name


@each(
    [
        *(*TYPICAL, *CARRYING),
        *(Cema(2, 130, "random", True), Cema(2, 130, bidirectional=True), Cema(2, 1, state=True)),
        *(TimestepNorm(2, 30, "left", True), SequenceNorm(2, 30, "right")),
        *(Attention(causal=False), Attention(mask="random", dropout_p=0.3)),
    ],
    "triton",
)
@pytest.mark.parametrize("default", [DOUBLE, torch.bfloat16])
def test_the_default_dtype_changes_nothing(case, backend, dtype, default):
    assert_default_dtype_changes_nothing(case, backend, dtype, default)


@each(
    [*CARRYING, SequenceNorm(2, 9), Cema(2, 9, bidirectional=True)],
    *("reference", "torch", "native", "fft"),
)
def test_the_default_dtype_changes_nothing_of_kernels(case, backend, dtype):
    assert_default_dtype_changes_nothing(case, backend, dtype, torch.bfloat16)


@each(CARRYING, "reference", "triton")
@pytest.mark.parametrize("default", [DOUBLE, torch.bfloat16])
def test_the_default_dtype_changes_no_gradient_of_the_state(case, backend, dtype, default):
    """That is, where only the state is in the loss."""
    leaves = cast(case, case.leaves(), dtype)
    found = []
    for kind in (FLOAT, default):
        with default_dtype(kind):
            y, state = case.call(leaves, None, case.initial_state(leaves), backend)
            outputs = case.outputs(y, state)
            outputs.pop("y")
            found.append(gradients(outputs, leaves))
    assert all(torch.equal(found[0][name], found[1][name]) for name in leaves)


def saved_numbers(case, backend, leaves):
    """Output, and float32 numbers of all tensors saved for the backward that are not ``leaves``."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = case.call(leaves, None, None, backend)
    return y, sum(saved.values())


@each(TYPICAL)
def test_nothing_is_saved_without_gradients(case, backend, dtype):
    with torch.no_grad():
        y, numbers = saved_numbers(case, backend, cast(case, case.leaves(), dtype))
    assert numbers == 0
    assert not y.requires_grad


@each(
    [Cema(4, 4096, dim=16, order=16), Cema(4, 4096, dim=16, order=16, bidirectional=True)],
    "reference",
)
def test_saved_memory_is_linear_and_small(case, backend, dtype):
    if backend == "triton":
        pytest.skip("interpreted kernels take a minute; all that they save is the input")
    twice = type(case)(**vars(case) | {"length": 8192})
    short, long = (saved_numbers(c, backend, cast(c, c.leaves(), dtype))[1] for c in (case, twice))
    times = (long - short) / (4096 * 4 * 16)
    assert times <= {"torch": 3, "native": 2, "fft": 5}[backend], f"{times:.2f} numbers per input"


@each([*TYPICAL[2:], Cema(length=150, state=True)], "reference")
def test_checkpoint_recomputes_the_same(case, backend, dtype):
    def again(leaves):
        return checkpoint(
            lambda tensors: case.outputs(
                *case.call(tensors, None, case.initial_state(tensors), backend)
            ),
            leaves,
            use_reentrant=False,
        )

    leaves = cast(case, case.leaves(), dtype)
    outputs = again(leaves)
    assert_equal_calls(
        (outputs, gradients(outputs, leaves)), evaluate(case, backend, dtype), 0.0, 0.0
    )


@each([*TYPICAL, *CARRYING])
@pytest.mark.parametrize("axis", ["batch", "length"])
def test_no_rows_and_no_steps(case, backend, dtype, axis):
    """An empty output, and the state that was given."""
    empty = type(case)(**vars(case) | {axis: 0})
    leaves = cast(empty, empty.leaves(), dtype)
    outputs, grads = evaluate(empty, backend, dtype, leaves)
    assert outputs["y"].shape[:2] == (empty.batch, empty.length)
    assert not any(grads[name].any() for name in (*case.timed, "scale", "omega") if name in grads)
    if axis == "length" and case.state:
        state = empty.initial_state(leaves)
        if case.op == "timestep_norm":
            state = state._replace(mean_low=torch.zeros_like(state.mean))
        for name, given in empty.outputs(outputs["y"], state).items():
            assert torch.equal(outputs[name], given), name


# Of values around 1e4, float32 keeps 1e-3 of the differences that weights have their gradients from:
# u . (v_j - y_i) in equation 5 of attention/README.md.
FAR = {"chunk_attention": 50}


@each(TYPICAL, "reference")
@pytest.mark.parametrize("value", [0.0, 3.0, -0.1, 1e4])
def test_constant_inputs(case, backend, dtype, value):
    """Norms divide a variance of zero, attention sees equal scores."""
    leaves = case.leaves()
    for name in case.timed:
        leaves[name][:] = min(value, 1.0) if name in "qk" else value
    loosened = FAR.get(case.op, 1) if value == 1e4 else 1
    assert_matches_reference(case, backend, dtype, leaves, loosened=loosened)


@each(
    [
        *TYPICAL[:2],
        TimestepNorm(2, 100),
        SequenceNorm(2, 300, "right", dim=8, groups=2),
        Attention(),
    ],
    "reference",
)
def test_mean_of_ten_thousand_and_deviation_of_one(case, backend, dtype):
    """The numbers that are averaged: x, or the values of attention."""
    leaves = case.leaves()
    leaves[case.timed[-1]] += 1e4
    assert_matches_reference(case, backend, dtype, leaves, loosened=FAR.get(case.op, 1))


GRADCHECK = [
    Cema(2, 9, dim=2, order=2, state=True),
    Cema(2, 8, "random", dim=2, order=3),
    Cema(2, 9, "random", dim=2, order=2, bidirectional=True),
    Cema(2, 3, dim=1, order=2, bidirectional=True),
    Cema(2, 1, dim=2, order=2, state=True),
    *(TimestepNorm(2, 4, mask, True, dim=4, groups=2) for mask in ("none", "random")),
    *(SequenceNorm(2, 4, mask, dim=4, groups=2) for mask in ("none", "random")),
    RmsNorm(2, 2, dim=3),
]


@each(GRADCHECK, *AUTOGRAD, dtypes=(DOUBLE,))
def test_gradcheck(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)

    def run(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        y, state = case.call(named, case.padding(), case.initial_state(named), backend)
        return tuple(out for out in case.outputs(y, state).values() if out.requires_grad)

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))
