"""What only the Triton backends promise: repeatable results, refusals."""

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, chunk_attention
from tests.cuda_ops.cases import (
    CARRYING,
    Attention,
    Cema,
    SequenceNorm,
    TimestepNorm,
    assert_equal_calls,
    evaluate,
)

CASES = (*CARRYING, Cema(9, 67, bidirectional=True), SequenceNorm(2, 50), Attention(dropout_p=0.2))


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_repeat_bit_for_bit(backend, device, case):
    first, second = (evaluate(case, backend, device=device) for _ in range(2))
    assert_equal_calls(second, tuple({n: t.cpu() for n, t in s.items()} for s in first), 0.0, 0.0)


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("case", [Cema(), TimestepNorm(), SequenceNorm(), Attention()], ids=str)
def test_float64_is_refused_by_name_and_left_to_torch_by_default(backend, device, case):
    leaves = {name: leaf.to(device) for name, leaf in case.leaves().items()}
    with pytest.raises(BackendUnavailable, match="'triton' cannot run: .*float64"):
        case.call(leaves, None, None, backend)
    default, torch_y = (case.call(leaves, None, None, b)[0] for b in (None, "torch"))
    assert torch.equal(default, torch_y)


@pytest.mark.parametrize("backend", ["triton"])
def test_wide_keys_are_refused_by_name_and_left_to_torch_by_default(backend, device):
    q, v = torch.zeros(1, 2, 1, 513, device=device), torch.zeros(1, 2, 1, 4, device=device)
    with pytest.raises(BackendUnavailable, match="hold 512 features .*, these have 513"):
        chunk_attention(q, q, v, chunk_size=2, causal=True, backend=backend)
    assert not chunk_attention(q, q, v, chunk_size=2, causal=True)[0].any()
