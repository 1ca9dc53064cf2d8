"""The stack, causal and bidirectional: shapes, causality, states, padding, gradients."""

import pytest
import torch

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.stack import MegalodonStack, _compiled
from megalodon_tasks.models.state import detach_state, reorder_state

B, L, D = 2, 23, 16


def make_stack(**changes) -> MegalodonStack:
    torch.manual_seed(0)
    sizes = {
        "model_dim": D,
        "num_layers": 2,
        "num_heads": 2,
        "z_dim": 8,
        "value_dim": 24,
        "ffn_hidden_dim": 20,
        "cema_ndim": 4,
        "norm_num_groups": 4,
    }
    stack = MegalodonStack(MegalodonConfig(**(sizes | changes))).double().eval()
    # Away from the symmetric start, where scales of zero would hide a missing term.
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return stack


def make_input(length: int = L) -> torch.Tensor:
    return torch.randn(
        B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 5, 8, 64])
@pytest.mark.parametrize("pieces", [(23,), (1,) * 23, (8, 15), (3, 1, 12, 7)])
def test_pieces_with_state_equal_the_whole(chunk_size, pieces):
    stack = make_stack(causal=True, chunk_size=chunk_size)
    x = make_input()
    whole, _ = stack(x)
    outputs, state = [], None
    for piece in x.split(pieces, dim=1):
        y, state = stack(piece, state=state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-9, atol=1e-9)


def test_gradients_flow_through_the_state():
    stack = make_stack(causal=True, chunk_size=8)
    x = make_input().requires_grad_()
    weight = torch.randn_like(x)
    (whole_grad,) = torch.autograd.grad((stack(x)[0] * weight).sum(), x)
    first, state = stack(x[:, :10])
    second, _ = stack(x[:, 10:], state=state)
    (grad,) = torch.autograd.grad((torch.cat((first, second), 1) * weight).sum(), x)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-8, atol=1e-9)


def test_detached_state_cuts_the_graph():
    stack = make_stack(causal=True, chunk_size=8)
    x = make_input().requires_grad_()
    _, state = stack(x[:, :10])
    y, _ = stack(x[:, 10:], state=detach_state(state))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad[:, :10].abs().max() == 0
    assert grad[:, 10:].abs().max() > 0


def test_reordered_state_follows_the_rows():
    stack = make_stack(causal=True, chunk_size=8)
    x = make_input()
    order = torch.tensor([1, 1, 0])
    _, state = stack(x[:, :10])
    y, _ = stack(x[order, 10:], state=reorder_state(state, order))
    torch.testing.assert_close(y, stack(x)[0][order, 10:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_causal_output_ignores_the_future(chunk_size):
    stack = make_stack(causal=True, chunk_size=chunk_size)
    x = make_input()
    changed = x.clone()
    changed[:, 12:] += 1.0
    y, y_changed = stack(x)[0], stack(changed)[0]
    torch.testing.assert_close(y[:, :12], y_changed[:, :12], rtol=1e-10, atol=1e-10)
    assert (y[:, 12:] - y_changed[:, 12:]).abs().max() > 1e-3


def test_bidirectional_output_sees_the_future():
    stack = make_stack(chunk_size=4)
    x = make_input()
    changed = x.clone()
    changed[:, -1] += 1.0
    assert (stack(x)[0] - stack(changed)[0])[:, 0].abs().max() > 1e-6


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_right_padding_changes_nothing(causal, chunk_size):
    stack = make_stack(causal=causal, chunk_size=chunk_size)
    x = make_input()
    mask = torch.zeros(B, L + 9, dtype=torch.bool)
    mask[:, L:] = True
    padded = torch.cat((x, torch.full((B, 9, D), 7.0, dtype=x.dtype)), 1)
    y, _ = stack(padded, mask)
    torch.testing.assert_close(y[:, :L], stack(x)[0], rtol=1e-9, atol=1e-9)
    assert y[:, L:].abs().max() == 0


def test_rows_do_not_depend_on_each_other():
    stack = make_stack(chunk_size=8)
    x = make_input()
    torch.testing.assert_close(stack(x)[0][:1], stack(x[:1])[0], rtol=1e-9, atol=1e-9)


def test_every_parameter_gets_a_gradient():
    stack = make_stack(chunk_size=8, swiglu=True, rescale_nffn=True)
    x = make_input()
    (stack(x)[0] * torch.randn_like(x)).sum().backward()
    silent = [n for n, p in stack.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_state_of_another_model_is_refused():
    _, state = make_stack(causal=True, num_layers=1)(make_input())
    with pytest.raises(ValueError, match="state has 1 blocks, this stack 2"):
        make_stack(causal=True)(make_input(), state=state)
    with pytest.raises(ValueError, match="bidirectional stack carries no state"):
        make_stack()(make_input(), state=state)


@pytest.fixture
def compiled(monkeypatch):
    """The blocks that a stand-in for torch.compile ran."""
    ran = []

    def stand_in(function):
        return lambda block, *inputs: ran.append(block) or function(block, *inputs)

    monkeypatch.setattr(torch, "compile", stand_in)
    _compiled.cache_clear()
    yield ran
    _compiled.cache_clear()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_are_compiled_in_training_only(compiled, checkpointed):
    settings = {"chunk_size": 8, "checkpoint_activations": checkpointed}
    stack, plain = make_stack(compile_blocks=True, **settings), make_stack(**settings)
    x = make_input()
    assert torch.equal(stack(x)[0], plain(x)[0])
    assert compiled == []
    assert torch.equal(stack.train()(x)[0], plain.train()(x)[0])
    assert compiled == list(stack.blocks)
    assert stack.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"causal": True}, {"drop_path": 0.2, "num_layers": 3}])
def test_compiled_blocks_compute_the_same(changes):
    compiled, plain = (
        make_stack(chunk_size=8, compile_blocks=c, **changes).float().train() for c in (True, False)
    )
    x = make_input().float()
    results = []
    for stack in (compiled, plain):
        torch.manual_seed(1)
        if "drop_path" in changes:  # random numbers differ
            assert stack(x)[0].isfinite().all()
            return
        y = stack(x)[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), list(stack.parameters()))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
