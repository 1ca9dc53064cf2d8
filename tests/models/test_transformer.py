"""The Transformer: against plain equations, in pieces, packed, padded, and its sizes."""

import math

import pytest
import torch
from fairseq import models
from omegaconf import OmegaConf
from torch.nn import functional as F

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.decoding import OrdinaryDecoder, decoder_for
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.presets import (
    CLASSIFIER_PRESETS,
    LM_PRESETS,
    TRANSFORMER_CLASSIFIER_PRESETS,
    TRANSFORMER_LM_PRESETS,
)
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import (
    join_states,
    map_state,
    reorder_state,
    split_state,
    state_from_plain,
    state_to_plain,
)
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack
from tests.models import lm_cases
from tests.models.lm_cases import make_dictionary, make_tokens, perturbed, pieces_of

SIZES = {"model_dim": 16, "num_layers": 2, "attention_heads": 2, "transformer_ffn_dim": 20}
WINDOW = 4


def make_stack(**changes) -> TransformerStack:
    torch.manual_seed(0)
    return perturbed(TransformerStack(TransformerConfig(**(SIZES | changes))))


def make_lm(**changes) -> CausalLM:
    torch.manual_seed(0)
    config = TransformerConfig(**(SIZES | {"chunk_size": WINDOW} | changes), causal=True)
    return perturbed(CausalLM(config, 11, share_emb=True, stack_type=TransformerStack))


def make_input(length=11, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=generator)


def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * (norm.weight + 1)


def rotated(x_BLHK, base=10000.0):
    """Rotate the pair (2 i, 2 i + 1) at position p by p * base^(-2 i / K)."""
    length, width = x_BLHK.shape[1], x_BLHK.shape[3]
    position = torch.arange(length, dtype=torch.float64)[:, None, None]
    angle = position * base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    even, odd = x_BLHK[..., ::2], x_BLHK[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def by_the_equations(stack, x, seen_LS):
    """Compute the stack with all scores at once; ``seen``: bool, keys that each query sees."""
    for block in stack.blocks:
        qkv = block.attention.qkv_proj(rms(x, block.attention_norm))
        q, k, v = qkv.unflatten(-1, (3, block.attention.heads, -1)).unbind(2)
        scores = torch.einsum("blhk,bshk->bhls", rotated(q), rotated(k)) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~seen_LS, -torch.inf).softmax(-1)
        x = x + block.attention.out_proj(torch.einsum("bhls,bshk->blhk", weights, v).flatten(2))
        h = rms(x, block.ffn_norm)
        x = x + block.ffn.fc2(F.silu(block.ffn.fc1(h)) * block.ffn.fc3(h))
    return rms(x, stack.norm)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5, 50])
def test_outputs_and_gradients_are_those_of_the_equations(causal, chunk_size):
    stack, x = make_stack(causal=causal, chunk_size=chunk_size), make_input().requires_grad_()
    step = torch.arange(x.shape[1])
    distance, size = step[:, None] - step, chunk_size or 1000
    if causal:
        seen = (distance >= 0) & (distance < size)
    else:
        seen = step[:, None] // size == step // size
    given, state = stack(x)
    expected = by_the_equations(stack, x, seen)
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)
    assert (state is None) != causal
    leaves = (x, *stack.parameters())
    gradients = (torch.autograd.grad((y**3).sum(), leaves) for y in (given, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chunk_size", [WINDOW, None, 1])
@pytest.mark.parametrize("lengths", [[1] * 14, [7, 1, 1], [4, 4, 4], [13]])
def test_pieces_of_any_size_equal_one_pass(chunk_size, lengths):
    lm, tokens = make_lm(chunk_size=chunk_size), make_tokens()
    outputs, state = [], None
    for piece in pieces_of(tokens, lengths):
        scores, state = lm(piece, state)
        outputs.append(scores)
    torch.testing.assert_close(torch.cat(outputs, 1), lm(tokens)[0], rtol=1e-9, atol=1e-9)


def test_gradients_flow_through_the_state():
    stack, x = make_stack(causal=True, chunk_size=8), make_input().requires_grad_()
    weight = torch.randn_like(x)
    (whole_grad,) = torch.autograd.grad((stack(x)[0] * weight).sum(), x)
    first, state = stack(x[:, :6])
    second, _ = stack(x[:, 6:], state=state)
    (grad,) = torch.autograd.grad((torch.cat((first, second), 1) * weight).sum(), x)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-8, atol=1e-9)


def test_state_does_not_grow_beyond_the_window():
    lm, sizes = make_lm(), []
    for length in (WINDOW * 2, WINDOW * 30):
        stored = []
        map_state(lm(make_tokens(length=length))[1], lambda t, s=stored: s.append(t) or t)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in stored))
    assert sizes[0] == sizes[1]


def test_states_are_reordered_divided_joined_and_saved():
    lm, tokens = make_lm(), make_tokens(batch=3)
    _, state = lm(tokens[:, :9])
    expected, _ = lm(tokens[:, 9:], state)
    again = state_from_plain(state_to_plain(join_states(split_state(state))))
    torch.testing.assert_close(lm(tokens[:, 9:], again)[0], expected)
    order = torch.tensor([2, 0, 0])
    scores, _ = lm(tokens[order, 9:], reorder_state(state, order))
    torch.testing.assert_close(scores, expected[order])


@pytest.mark.parametrize("chunk_size", [WINDOW, None])
def test_packed_documents_equal_separate_ones(chunk_size):
    lm, tokens = make_lm(chunk_size=chunk_size), make_tokens(length=15)
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[0, [0, 5, 14]] = starts[1, [0, 1, 2, 6]] = True
    padded = torch.zeros(2, 15, dtype=torch.bool)
    padded[1, 9:] = True
    x, states = lm.features(tokens, None, padded, starts)
    for row, edges in enumerate(([0, 5, 14, 15], [0, 1, 2, 6, 9])):
        for start, stop in zip(edges, edges[1:], strict=False):
            expected, state = lm.features(tokens[row : row + 1, start:stop])
            torch.testing.assert_close(x[row, start:stop], expected[0], rtol=1e-9, atol=1e-9)
        follow = tokens[row : row + 1, :3]
        torch.testing.assert_close(lm(follow, states[row])[0], lm(follow, state)[0])
    assert not x[1, 9:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk_size", [3, 4, None])
def test_padding_changes_nothing_and_gives_zeros(causal, chunk_size):
    stack, x = make_stack(causal=causal, chunk_size=chunk_size), make_input(batch=3)
    lengths = (11, 5, 0)
    padding = torch.arange(11) >= torch.tensor(lengths)[:, None]
    x[padding] = 1e3
    x.requires_grad_()
    y, state = stack(x, padding)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert not y[padding].any()
    assert grad.isfinite().all()
    assert not grad[padding].any()
    for row, length in enumerate(lengths[:2]):
        alone, _ = stack(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :length], alone[0], rtol=1e-9, atol=1e-9)
    if causal:  # what follows does not see the padding
        with_cache, _ = stack(make_input(3, batch=3), None, state)
        moved = torch.where(padding[..., None], -x, x)
        again, _ = stack(make_input(3, batch=3), None, stack(moved, padding)[1])
        torch.testing.assert_close(with_cache, again, rtol=1e-9, atol=1e-9)


def test_half_precision_is_close():
    lm, tokens = make_lm(), make_tokens()
    expected, _ = lm(tokens)
    scores, state = lm.bfloat16()(tokens)
    assert (scores.double() - expected).norm() < 5e-2 * expected.norm()
    assert state.blocks[0].attention.key.dtype == torch.bfloat16


def test_a_decoder_continues_and_reorders():
    lm, tokens = make_lm(), make_tokens(batch=2)
    decoder = decoder_for(lm, lm(tokens[:, :6])[1])
    assert isinstance(decoder, OrdinaryDecoder)
    decoder(tokens[:, 6:7])
    decoder.reorder(torch.tensor([1, 1]))
    given = decoder(tokens[[1, 1], 7:8])
    torch.testing.assert_close(given, lm(tokens[[1, 1], :8])[0][:, -1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lm(tokens[:, :2], decoder.state())[0].shape, (2, 2, 11))


def test_a_slower_sampling_rate_scales_positions_and_chunks():
    config = TransformerConfig(**SIZES, chunk_size=8)

    class Classifier(SequenceClassifier):
        stack_type = TransformerStack

    model = Classifier(config, ClassifierInputs("waveform", num_classes=3)).double().eval()
    before = model(torch.randn(1, 12, dtype=torch.float64))
    model.set_time_step(2)
    attention = model.stack.blocks[0].attention
    assert (attention.chunk_size, attention.rotary.time_step) == (4, 2)
    assert before.shape == (1, 3)


@pytest.mark.parametrize("name", [*CLASSIFIER_PRESETS, *LM_PRESETS])
def test_a_transformer_has_as_many_parameters_as_megalodon(name):
    sizes = (CLASSIFIER_PRESETS | LM_PRESETS)[name]
    known = {key: value for key, value in sizes.items() if hasattr(MegalodonConfig, key)}
    config = TransformerConfig(**known, causal=name in LM_PRESETS)
    config.validate()
    with torch.device("meta"):
        ours = MegalodonStack(MegalodonConfig(**known, causal=name in LM_PRESETS))
        theirs = TransformerStack(config)
    counts = [sum(p.numel() for p in stack.parameters()) for stack in (ours, theirs)]
    assert counts[1] == pytest.approx(counts[0], rel=4e-3)


def build(name, task, **changes):
    """Build what fairseq makes of ``model._name`` in a YAML."""
    dataclass = models.MODEL_DATACLASS_REGISTRY[name]
    return models.build_model(
        OmegaConf.merge(OmegaConf.structured(dataclass), {"_name": name, **changes}), task
    )


class TaskOf:
    """As much of a task as a model needs."""

    def __init__(self, inputs=None):
        self.inputs = inputs
        self.source_dictionary = self.target_dictionary = make_dictionary()


@pytest.mark.parametrize("name", TRANSFORMER_LM_PRESETS)
def test_language_models_are_registered_with_their_sizes(name):
    sizes = TRANSFORMER_LM_PRESETS[name]
    cutoffs = {"adaptive_cutoffs": "5"} if "adaptive_cutoffs" in sizes else {}
    with torch.device("meta"):
        model = build(name, TaskOf(), **cutoffs)
    assert isinstance(model.decoder.lm.stack, TransformerStack)
    assert model.decoder.lm.stack.causal
    assert len(model.decoder.lm.stack.blocks) == sizes["num_layers"]
    assert model.decoder.lm.config.chunk_size == sizes.get("chunk_size")


def test_the_model_of_7b_is_llama_2():
    with torch.device("meta"):
        config = TransformerConfig(**TRANSFORMER_LM_PRESETS["transformer_lm_7b"], causal=True)
        lm = CausalLM(config, 32_000, stack_type=TransformerStack)
    assert sum(p.numel() for p in lm.parameters()) == 6_738_415_616
    assert config.heads == 32


@pytest.mark.parametrize("name", TRANSFORMER_CLASSIFIER_PRESETS)
def test_classifiers_are_registered_with_their_sizes(name):
    kind = {"lra_image": "pixels", "imagenet": "patches", "sc_raw": "waveform"}
    kind = next((k for part, k in kind.items() if part in name), "tokens")
    inputs = ClassifierInputs(kind, 10, vocab_size=30)
    with torch.device("meta"):
        model = build(name, TaskOf(inputs), chunk_size=64)
        megalodon = build(name.replace("transformer", "megalodon"), TaskOf(inputs), chunk_size=64)
    assert isinstance(model.stack, TransformerStack)
    assert model.stack.blocks[0].attention.chunk_size == 64
    counts = [sum(p.numel() for p in each.parameters()) for each in (megalodon, model)]
    assert counts[1] == pytest.approx(counts[0], rel=4e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_heads": 3}, "model.attention_heads=3 does not divide model.model_dim=16"),
        ({"attention_heads": 16}, "into heads of an even width"),
        ({"model_dim": 15, "norm_num_groups": 0}, "does not divide model.model_dim=15"),
        ({"attention_heads": 0}, "model.attention_heads=0 must be a positive integer"),
        ({"transformer_ffn_dim": -1}, "model.transformer_ffn_dim=-1 must be a positive integer"),
        ({"residual": "plain"}, "model.residual=plain changes Megalodon's block"),
    ],
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**(SIZES | {"attention_heads": None} | changes)).validate()


def test_a_state_of_another_model_is_refused():
    lm, tokens = make_lm(), make_tokens()
    _, wide = make_lm(attention_heads=4)(tokens)
    with pytest.raises(
        ValueError, match=r"the state has \(heads, width\) \(4, 4\), this model \(2, 8\)"
    ):
        lm(tokens, wide)
    _, deep = make_lm(num_layers=3)(tokens)
    with pytest.raises(ValueError, match="the state has 3 blocks, this stack 2"):
        lm(tokens, deep)
    megalodon = lm_cases.make_lm()
    for model, other in ((lm, megalodon), (megalodon, lm)):
        with pytest.raises(ValueError, match="the state is of another architecture"):
            model(tokens, other(tokens)[1])
