"""The C kernels: their threads, how they store outputs, what Python passes to them."""

import ctypes
import re
import sys

import pytest
import torch

from megalodon_tasks.cuda_ops import native
from megalodon_tasks.cuda_ops.complex_ema import native_op
from megalodon_tasks.cuda_ops.norms import native_op as norms_native_op
from tests.cuda_ops.cases import (
    BACKWARD,
    FLOAT,
    FORWARD,
    Cema,
    SequenceNorm,
    TimestepNorm,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    evaluate,
)

COMPILER = native.why_not(native.CEMA)
pytestmark = pytest.mark.skipif(COMPILER is not None, reason=str(COMPILER))


@pytest.fixture
def threads():
    """Set the number of threads, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# More sequences and tiles of channels than threads, and fewer, which all threads then share: in windows
# of some 8 groups of 256 steps for each.
DIVIDED = (
    Cema(5, 700, "right", True, dim=37),
    Cema(5, 700, "right", dim=37, bidirectional=True),
    Cema(1, 5000, state=True, dim=3),
    Cema(1, 8192, dim=16, order=3),
    Cema(2, 3000, "random", True, dim=4, order=1),
    Cema(2, 9001, "left", dim=4, bidirectional=True),
    Cema(3, 1500, "right", dim=17, order=5, bidirectional=True),
)


@pytest.mark.parametrize("case", DIVIDED, ids=str)
def test_the_number_of_threads_changes_nothing_but_the_order_of_sums(case, threads):
    found = []
    for count in (1, 3, 4):
        threads(count)
        found.append(evaluate(case, "native"))
    for other in found[1:]:
        assert torch.equal(found[0][0]["y"], other[0]["y"])
        assert torch.equal(found[0][1]["x"], other[1]["x"])
        if case.state:
            assert torch.equal(found[0][0]["state"], other[0]["state"])
            assert torch.equal(found[0][1]["state"], other[1]["state"])
        assert_equal_calls(found[0], other, 1e-5, 1e-5)


@pytest.mark.parametrize("case", DIVIDED[2:], ids=str)
def test_results_repeat_bit_for_bit(case, threads):
    threads(3)
    first, second = (evaluate(case, "native") for _ in range(2))
    for tensors, others in zip(first, second, strict=True):
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("case", DIVIDED[2:], ids=str)
def test_shared_sequences_match_the_other_backends(case, threads):
    threads(4)
    truth = evaluate(case, "torch", torch.float64)
    assert_equal_calls(evaluate(case, "native"), truth, FORWARD[FLOAT], BACKWARD[FLOAT])


SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_denormal_numbers_are_taken_for_zeros(bidirectional, count, threads):
    """In states that decay, where each would cost a hundred cycles; and only inside the kernels."""
    threads(count)
    case = Cema(1, 4096, dim=20, bidirectional=bidirectional)
    leaves = cast(case, case.leaves(), FLOAT)
    with torch.no_grad():
        leaves["x"][:, 100:-100] = 0.0
        leaves["delta"].fill_(0.0)
        leaves["alpha"].fill_(-2.0)
    y, _ = case.call(leaves, None, None, "native")
    (grad,) = torch.autograd.grad(
        y, leaves["x"], torch.zeros_like(y).index_fill_(1, torch.tensor(7), 1)
    )
    for tensor in (y, grad):
        assert ((tensor == 0) | (tensor.abs() >= SMALLEST_NORMAL)).all()
    assert not y[:, 2000].any()
    # Elsewhere they stay: in this thread and in all others.
    small = torch.full((1 << 18,), SMALLEST_NORMAL / 8, dtype=torch.float32)
    assert (small / 2 > 0).all()


def test_large_outputs_are_written_around_the_caches(monkeypatch):
    module = sys.modules["megalodon_tasks.cuda_ops.complex_ema.native_op"]
    case = Cema(2, 300, "right", True, dim=32)
    usual = evaluate(case, "native")
    monkeypatch.setattr(module, "_LARGE", 0)
    assert_equal_calls(evaluate(case, "native"), usual, 0.0, 0.0)


@pytest.mark.parametrize(
    ("source", "name", "structure"),
    [(native.CEMA, "call", native_op._Call), (native.NORMS, "norm", norms_native_op._Norm)],
)
def test_the_structure_of_a_call_is_that_of_the_c_file(source, name, structure):
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", source.read_text(), re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    names = re.findall(r"\*?(\w+)[,;]", body)
    assert names == [name for name, _ in structure._fields_]
    assert ctypes.sizeof(structure) == 8 * len(names)


# Sequences that threads divide evenly, and that they have to cut between groups.
NORMS = (
    TimestepNorm(5, 70, "right", True, dim=96, groups=6),
    TimestepNorm(1, 70, dim=80, groups=5),
    SequenceNorm(5, 70, "random", dim=96, groups=6),
    SequenceNorm(1, 70, dim=83, groups=83),
)


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_the_number_of_threads_changes_no_norm(case, threads):
    found = []
    for count in (1, 3, 4):
        threads(count)
        found.append(evaluate(case, "native"))
    for outputs, grads in found[1:]:
        assert all(torch.equal(tensor, found[0][0][name]) for name, tensor in outputs.items())
        assert all(torch.equal(grad, found[0][1][name]) for name, grad in grads.items())


@pytest.mark.parametrize("features", [1, 2, 3, 4, 7, 8, 11, 16, 19, 32, 45])
@pytest.mark.parametrize("kind", [TimestepNorm, SequenceNorm])
def test_groups_of_any_number_of_features(kind, features):
    """Of vectors of two lengths, and of the numbers that these leave."""
    case = kind(2, 70, "right", kind is TimestepNorm, dim=3 * features, groups=3)
    assert_matches_reference(case, "native")


@pytest.mark.parametrize("case", NORMS[:3], ids=str)
def test_a_norm_of_numbers_around_a_level_that_moves(case):
    """Means far from zero that change by many deviations, and one step far from all others."""
    leaves = case.leaves()
    leaves["x"][:, :30] += 1e4
    leaves["x"][:, 40:] -= 3e3
    leaves["x"][:, 50] *= 100
    assert_matches_reference(case, "native", leaves=leaves)
