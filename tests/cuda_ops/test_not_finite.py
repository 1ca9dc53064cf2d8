"""Which outputs NaN and infinity at a real step reach, as the docstrings of the ops say."""

import pytest
import torch

from megalodon_tasks.cuda_ops.complex_ema.torch_op import block_length
from tests.cuda_ops.cases import Attention, Cema, TimestepNorm, cast, each


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
