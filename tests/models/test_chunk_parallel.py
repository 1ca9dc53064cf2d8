"""One sequence over several processes: losses, gradients and states of one process."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from megalodon_tasks.models.chunk_parallel import set_chunk_parallel
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.stack import MegalodonStack

CHUNK, VOCABULARY = 4, 11
CHANGES = [
    {"norm_num_groups": 0, "swiglu": True},
    {"checkpoint_activations": True},
    {"moving_average": "real", "attention_scores": "scaled", "residual": "plain"},
    {"moving_average": "none", "norm_type": "layer"},
]


def config(**changes):
    sizes = {
        "model_dim": 12, "num_layers": 2, "num_heads": 2, "z_dim": 8, "value_dim": 16,
        "ffn_hidden_dim": 20, "cema_ndim": 3, "norm_num_groups": 3, "chunk_size": CHUNK,
    }  # fmt: skip
    return MegalodonConfig(**(sizes | {"causal": True} | changes))


def model_of(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    model = CausalLM(config(**changes), VOCABULARY).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens_of(batch=4, length=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (batch, length + 1), generator=generator)


def loss_of(model, inputs, targets, state=None):
    """Return the summed loss, in the model's precision, and the state after the last step."""
    scores, state = model(inputs, state)
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum"), state


def loss_and_gradients(model, tokens, state=None):
    """Return the loss over whole sequences, all gradients, and the state after them."""
    loss, state = loss_of(model, tokens[:, :-1], tokens[:, 1:], state)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}, state


def assert_equal(name, value, expected, tolerance=1e-10):
    apart = (value - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert apart < tolerance, f"{name}: {float(apart):.1e} apart"


def assert_sums_equal(model, loss, gradients, expected_loss, tolerance=1e-10):
    """Check the loss and gradients of ``model``, summed over all processes."""
    dist.all_reduce(loss)
    assert_equal("loss", loss, expected_loss, tolerance)
    for name, parameter in model.named_parameters():
        grad = parameter.grad.clone()
        dist.all_reduce(grad)
        assert_equal(name, grad, gradients[name], tolerance)


def equals_one_process(group, changes, dtype=torch.float64, tolerance=1e-10):
    tokens = tokens_of()
    expected_loss, gradients, expected_state = loss_and_gradients(
        model_of(dtype, **changes), tokens
    )
    model = model_of(dtype, **changes)
    parallel = set_chunk_parallel(model, group)
    inputs = parallel.piece(tokens[:, :-1], CHUNK)
    loss, state = loss_of(model, inputs, parallel.piece(tokens[:, 1:], CHUNK))
    loss.backward()
    assert_sums_equal(model, loss.detach(), gradients, expected_loss, tolerance)
    state = parallel.last(state)
    for layer, expected in zip(state.blocks, expected_state.blocks, strict=True):
        if expected.cema is not None:
            assert_equal("CEMA's state", layer.cema, expected.cema, tolerance)
        if expected.norm is not None:
            assert_equal("mean", layer.norm.mean, expected.norm.mean, tolerance)
            assert_equal("variance", layer.norm.var, expected.norm.var, tolerance)
            assert torch.equal(layer.norm.count, expected.norm.count)


def continues_a_sequence(group):
    """A second sequence that continues the first, as training on a stream has it."""
    first, second = tokens_of(length=128)[:, :65], tokens_of(length=128)[:, 64:]
    model = model_of()
    with torch.no_grad():
        _, state = model(first[:, :-1])
    expected_loss, gradients, _ = loss_and_gradients(model, second, state)
    model = model_of()
    parallel = set_chunk_parallel(model, group)
    with torch.no_grad():
        _, state = model(parallel.piece(first[:, :-1], CHUNK))
    inputs, targets = (parallel.piece(t, CHUNK) for t in (second[:, :-1], second[:, 1:]))
    loss, _ = loss_of(model, inputs, targets, parallel.last(state))
    loss.backward()
    assert_sums_equal(model, loss.detach(), gradients, expected_loss)


def pads_where_one_process_pads(group):
    """Padding of whole pieces, and before the first step."""
    torch.manual_seed(2)
    x = torch.randn(3, 32, 12, dtype=torch.float64) + 1e3
    mask = torch.zeros(3, 32, dtype=torch.bool)
    mask[0, :9], mask[1, 20:], mask[2] = True, True, True
    x[mask] = 7.0

    def run(parallel, stack):
        leaf = x.clone().requires_grad_()
        parts = (parallel.piece(t, CHUNK) if parallel else t for t in (leaf, mask))
        y, _ = stack(*parts)
        y.square().sum().backward()
        return y.detach(), leaf.grad

    def build():
        torch.manual_seed(3)
        return MegalodonStack(config()).double()

    y, gradient = run(None, build())
    stack = build()
    parallel = set_chunk_parallel(stack, group)
    part, gradient_of_piece = run(parallel, stack)
    assert_equal("outputs", part, parallel.piece(y, CHUNK))
    own = parallel.piece(gradient, CHUNK)
    assert_equal("gradient", parallel.piece(gradient_of_piece, CHUNK), own)
    assert (own[parallel.piece(mask, CHUNK)] == 0).all()


def keeps_its_causality(group):
    """NaN in the last piece reaches no piece before it."""
    model = model_of()
    parallel = set_chunk_parallel(model.stack, group)
    x = torch.randn(2, 16, 12, dtype=torch.float64)
    if parallel.rank == parallel.size - 1:
        x[:] = torch.nan
    y, _ = model.stack(x)
    assert y.isfinite().all() == (parallel.rank < parallel.size - 1)


def with_data_parallelism(rank):
    """Two pairs of processes: each pair has its own sequences, and DDP averages over all four."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    tokens = tokens_of()
    expected_loss, gradients, _ = loss_and_gradients(model_of(), tokens)
    model = model_of()

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs, targets):
            return loss_of(self.model, inputs, targets)[0]

    parallel = set_chunk_parallel(model, pairs[rank // 2])
    own = tokens.chunk(2)[rank // 2]
    inputs, targets = (parallel.piece(t, CHUNK) for t in (own[:, :-1], own[:, 1:]))
    averaged = DistributedDataParallel(Loss())
    loss = averaged(inputs, targets)
    (loss * dist.get_world_size()).backward()
    for name, parameter in model.named_parameters():
        assert_equal(name, parameter.grad, gradients[name])
    loss = loss.detach()
    dist.all_reduce(loss)
    assert_equal("loss", loss, expected_loss)


def run_checks(rank, size, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        everyone = dist.group.WORLD
        for changes in CHANGES:
            equals_one_process(everyone, changes)
        equals_one_process(everyone, {}, torch.float32, tolerance=1e-3)
        continues_a_sequence(everyone)
        pads_where_one_process_pads(everyone)
        keeps_its_causality(everyone)
        with_data_parallelism(rank)
    finally:
        dist.destroy_process_group()


def test_four_processes_equal_one(tmp_path):
    """Runs all checks in one go, since each process needs seconds to start."""
    multiprocessing.set_forkserver_preload([__name__])  # imports once for all of them
    arguments = (4, tmp_path / "meeting")
    multiprocessing.start_processes(run_checks, arguments, nprocs=4, start_method="forkserver")


@pytest.mark.parametrize(("length", "chunk_size"), [(30, 4), (2, 4), (8, None)])
def test_refuses_a_length_that_does_not_divide(group_of_one, length, chunk_size):
    parallel = set_chunk_parallel(model_of(), group_of_one)
    with pytest.raises(ValueError, match=rf"{length} steps.*chunk_size={chunk_size}.*multiple"):
        parallel.piece(torch.zeros(1, length), chunk_size)


def test_refuses_a_model_that_sees_both_directions(group_of_one):
    inputs = ClassifierInputs("tokens", num_classes=3, vocab_size=5)
    model = SequenceClassifier(config(causal=False), inputs)
    with pytest.raises(ValueError, match="SequenceClassifier has no causal stack"):
        set_chunk_parallel(model, group_of_one)


def test_none_turns_it_off(group_of_one):
    model, tokens = model_of(), tokens_of(length=10)
    expected = model(tokens)[0]
    set_chunk_parallel(model, group_of_one)
    set_chunk_parallel(model, None)
    assert torch.equal(model(tokens)[0], expected)
