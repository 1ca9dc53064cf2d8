"""Grids of the Triton kernels stay within what CUDA allows, however many heads, groups or channels."""

import pytest
import torch

from megalodon_tasks.cuda_ops import chunk_attention, sequence_norm, timestep_norm

triton = pytest.importorskip("triton")

# Programs along the three axes of a grid.
MOST = (2**31 - 1, 65535, 65535)


@pytest.fixture
def grids(monkeypatch):
    """Names and grids of the kernels launched in a test; none of them runs."""
    from megalodon_tasks.cuda_ops.triton_helpers import INTERPRETED

    if not INTERPRETED:
        pytest.skip("launches are recorded under the interpreter")
    from triton.runtime.interpreter import InterpretedFunction

    launches = {}

    def record(kernel, grid):
        launches[kernel.fn.__name__] = grid
        return lambda *args, **options: None

    monkeypatch.setattr(InterpretedFunction, "__getitem__", record)
    return launches


def attention(batch, heads):
    q = torch.zeros(batch, 1, heads, 8, requires_grad=True)
    options = {"chunk_size": 4, "causal": True, "dropout_p": 0.1, "backend": "triton"}
    chunk_attention(q, q, q, **options)[0].sum().backward()
    return 4


def attention_of_many_sequences():
    return attention(70_000, 1)


def attention_of_many_heads():
    return attention(1, 66_000)


def dropkey_of_a_long_chunk():
    from megalodon_tasks.cuda_ops.attention.triton_launch import dropkey

    dropkey(torch.zeros(1, dtype=torch.int64), (1, 1, 2_100_000, 2), 0.1)
    return 1


def timestep_norm_of_many_groups():
    x = torch.zeros(1, 1, 4_300_000, requires_grad=True)
    w = torch.zeros(x.shape[2])
    timestep_norm(x, w, w, x.shape[2], backend="triton")[0].sum().backward()
    return 4


def sequence_norm_of_many_groups():
    x = torch.zeros(1, 1, 4_300_000, requires_grad=True)
    w = torch.zeros(x.shape[2])
    sequence_norm(x, w, w, x.shape[2], backend="triton").sum().backward()
    return 5


def cema_of_many_channels():
    from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients
    from megalodon_tasks.cuda_ops.complex_ema.triton_launch import Direction, plan_for

    x = torch.empty(1, 1, 1_100_000, device="meta")
    coeffs = Coefficients(*(x.new_empty(x.shape[2], 16) for _ in Coefficients._fields))
    direction = Direction(plan_for(x, 16), coeffs, x[0, 0], None, backward=False)
    ends = x.new_empty(direction.plan.ends_shape(2))
    direction.ends(x, ends)
    direction.carry(ends, ends[:1], None)
    direction.output(x, torch.empty_like(x), ends, adjoint=False)
    direction.gradients(direction.sums(x, x, ends))
    return 6


@pytest.mark.parametrize(
    "call",
    [
        attention_of_many_sequences,
        attention_of_many_heads,
        dropkey_of_a_long_chunk,
        timestep_norm_of_many_groups,
        sequence_norm_of_many_groups,
        cema_of_many_channels,
    ],
)
def test_grids_fit_cuda(grids, call):
    kernels = call()
    assert len(grids) >= kernels, sorted(grids)
    for name, grid in grids.items():
        assert all(size <= most for size, most in zip(grid, MOST, strict=False)), (name, grid)


def test_a_chunk_may_be_longer_than_any_sequence():
    q = torch.randn(1, 5, 1, 4, generator=torch.Generator().manual_seed(0))
    options = {"causal": True, "backend": "triton"}
    longest, _ = chunk_attention(q, q, q, chunk_size=2**31 - 1, **options)
    full, _ = chunk_attention(q, q, q, chunk_size=None, **options)
    assert torch.equal(longest, full)
