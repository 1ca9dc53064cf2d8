"""Megalodon without one or several of its ideas, against the equations in double precision."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import dispatch
from megalodon_tasks.models.config import ABLATIONS, MegalodonConfig
from megalodon_tasks.models.decoding import Decoder, OrdinaryDecoder, decoder_for
from megalodon_tasks.models.documents import run_documents
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.layers.real_ema import RealEMA
from megalodon_tasks.models.released.names import config_to_released
from megalodon_tasks.models.seq2seq import Seq2Seq, Seq2SeqConfig
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import state_from_plain, state_to_plain

SIZES = {"model_dim": 6, "num_layers": 2, "num_heads": 2, "z_dim": 8, "value_dim": 10}
SIZES |= {"ffn_hidden_dim": 8, "cema_ndim": 3, "norm_num_groups": 3, "chunk_size": 4}
CHOICES = [
    dict(zip(ABLATIONS, values, strict=True)) for values in itertools.product(*ABLATIONS.values())
]
EACH = [{name: value} for name, values in ABLATIONS.items() for value in values[1:]]
EACH += [{"moving_average": "none", "norm_type": "layer"}]
NONE = {name: values[-1] for name, values in ABLATIONS.items()}


def named(choice):
    return "-".join(choice.values())


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():  # large enough for every part to matter
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def average(x_LD, layer, kind):
    """The recurrence, one direction after the other; the backward one is read one step late."""
    if kind == "none":
        return x_LD
    length, dim = x_LD.shape
    p, share = layer.alpha.sigmoid()[..., 0], layer.delta.sigmoid()[..., 0]
    order = p.shape[1]
    eta = layer.gamma[..., 0] / order**0.5
    q = (1 - p * share).to(torch.complex128)
    if kind == "complex":
        eta = torch.complex(layer.gamma[..., 0], layer.gamma[..., 1]) / order**0.5
        angle = torch.arange(1, order + 1) * layer.theta[:, :, 0].sigmoid() * 2 * torch.pi / order
        q = q * torch.polar(torch.ones_like(angle), angle)

    def run(steps, rows):
        state, outputs = torch.zeros(dim, order, dtype=torch.complex128), []
        for step_D in steps:
            state = q[rows] * state + p[rows] * step_D[:, None]
            outputs.append((eta[rows] * state).sum(1).real)
        return torch.stack(outputs)

    y_LD = run(x_LD, slice(dim)) + layer.omega[:, 0] * x_LD
    if layer.bidirectional:
        backward_LD = run(x_LD.flip(0), slice(dim, None)).flip(0)
        y_LD = y_LD + torch.cat([backward_LD[1:], torch.zeros(1, dim, dtype=torch.float64)])
    return y_LD


def norm(x_LD, layer, kind, causal):
    """Over each step, or over the steps (so far if causal) and the features of a group."""
    if kind == "layer":
        normed_LD = F.layer_norm(x_LD, x_LD.shape[1:])
    else:
        groups = x_LD.unflatten(1, (layer.num_groups, -1))
        steps = []
        for t in range(len(x_LD)):
            seen = groups[: t + 1] if causal else groups
            mean, var = seen.mean((0, 2)), seen.var((0, 2), correction=0)
            steps.append(((groups[t] - mean[:, None]) / (var + 1e-5).sqrt()[:, None]).flatten())
        normed_LD = torch.stack(steps)
    return normed_LD * (layer.weight + 1) + layer.bias


def turned(x_K, position):
    pairs = torch.view_as_complex(x_K.view(-1, 2))
    angle = position * 10000 ** -(torch.arange(len(pairs)).double() / len(pairs))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def attention(x_LD, layer, config):
    normed_LD = norm(x_LD, layer.norm, config.norm_type, config.causal)
    m_LD = F.rms_norm(
        average(normed_LD, layer.cema, config.moving_average),
        x_LD.shape[1:], layer.cema_norm.weight + 1, 1e-5,
    )  # fmt: skip
    z_LZ, v_LV = layer.z_proj(m_LD), F.silu(layer.v_proj(normed_LD))
    heads = []
    for h, (z_LK, v_LW) in enumerate(zip(z_LZ.chunk(2, 1), v_LV.chunk(2, 1), strict=True)):
        width = z_LK.shape[1]
        temperature = width**0.5
        if config.attention_scores == "normalised":
            z_LK = z_LK / (z_LK.square().sum(1, keepdim=True) + 1e-5 * width).sqrt()
            temperature = 1
        columns = slice(h * width, (h + 1) * width)
        scale, bias = layer.qk_scale[:, columns] + 1, layer.qk_bias[:, columns]
        q_LK, k_LK = (z_LK * scale[i] + bias[i] for i in (0, 1))
        outputs = []
        for t in range(len(x_LD)):
            start = t - t % config.chunk_size
            stop = t + 1 if config.causal else min(start + config.chunk_size, len(x_LD))
            query = turned(q_LK[t], t - start)
            keys = torch.stack([turned(k_LK[s], s - start) for s in range(start, stop)])
            outputs.append((keys @ query / temperature).softmax(0) @ v_LW[start:stop])
        heads.append(torch.stack(outputs))
    gated_LV = torch.cat(heads, 1) * F.silu(layer.gate_proj(m_LD))
    return layer.skip_proj(m_LD) + layer.out_proj(gated_LV)


def feed_forward(y_LD, layer):
    normed_LD = F.layer_norm(y_LD, y_LD.shape[1:]) * (layer.norm.weight + 1) + layer.norm.bias
    return layer.fc2(F.silu(layer.fc1(normed_LD)))


def run(stack, x_LD, config):
    for block in stack.blocks:
        y_LD = attention(x_LD, block.attention, config) + x_LD
        x_LD = feed_forward(y_LD, block.feed_forward) + (
            x_LD if config.residual == "two_hop" else y_LD
        )
    return norm(x_LD, stack.norm, config.norm_type, config.causal)


@pytest.mark.parametrize(
    ("choice", "causal"),
    [
        *((choice, False) for choice in CHOICES[::2]),
        *((choice, True) for choice in [*CHOICES[1::2], {}, *EACH]),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "causal" if value else "both",
)
def test_the_equations_in_double_precision(choice, causal):
    config = MegalodonConfig(**SIZES, **choice, causal=causal)
    stack = randomised(MegalodonStack(config))
    x_1LD = draw(1, 7, 6).requires_grad_()
    found, expected = stack(x_1LD)[0], run(stack, x_1LD[0], config)[None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights, leaves = draw(1, 7, 6, seed=9), [x_1LD, *stack.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "torch", "fft", "native", "triton"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_real_average_runs_on_every_backend(backend, bidirectional):
    torch.manual_seed(0)
    layer, exact = (RealEMA(5, 4, bidirectional) for _ in range(2))
    exact.load_state_dict(layer.state_dict())
    x_LD = draw(37, 5).requires_grad_()
    expected_LD = average(x_LD, exact.double(), "real")
    narrow_LD = x_LD.detach().float().requires_grad_()
    with dispatch.use_backend(backend):
        found_LD = layer(narrow_LD[None])[0][0]
    for y_LD in (found_LD, expected_LD):
        y_LD.square().sum().backward()
    pairs = [(found_LD, expected_LD), (narrow_LD.grad, x_LD.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), exact.parameters(), strict=True)]
    for found, expected in pairs:
        assert ((found - expected).norm() / (expected.detach().norm() + 1e-6)).item() < 2e-4


def make_lm(choice) -> CausalLM:
    return randomised(CausalLM(MegalodonConfig(**SIZES, **choice, causal=True), 11)).eval()


@pytest.mark.parametrize("choice", [*EACH, NONE], ids=named)
def test_states_streams_and_documents(choice):
    """Pieces with the state carried, through a file's form, and documents packed in a row."""
    lm = make_lm(choice)
    tokens_BL = torch.randint(11, (2, 13), generator=torch.Generator().manual_seed(3))
    whole_BLV, last = lm(tokens_BL)
    scores, state = [], None
    for piece in tokens_BL.split((5, 1, 7), dim=1):
        piece_scores, state = lm(piece, state)
        state = state_from_plain(state_to_plain(state))
        scores.append(piece_scores)
    torch.testing.assert_close(torch.cat(scores, 1), whole_BLV, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state_to_plain(state), state_to_plain(last), rtol=1e-9, atol=1e-9)
    x_BLD = lm.embed(tokens_BL)
    starts_BL = torch.zeros(2, 13, dtype=torch.bool)
    starts_BL[:, 0] = starts_BL[1, 6] = True
    y_BLD, _ = run_documents(lm.stack, x_BLD, starts_BL)
    torch.testing.assert_close(y_BLD[1:, 6:], lm.stack(x_BLD[1:, 6:])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choice", [*EACH, NONE], ids=named)
def test_padding_changes_nothing(choice):
    stack = randomised(MegalodonStack(MegalodonConfig(**SIZES, **choice)))
    short_BLD = draw(1, 6, 6)
    x_BLD = torch.cat([F.pad(short_BLD, (0, 0, 0, 7), value=50.0), draw(1, 13, 6, seed=2)])
    y_BLD, _ = stack(x_BLD, torch.arange(13) >= torch.tensor([[6], [13]]))
    torch.testing.assert_close(y_BLD[:1, :6], stack(short_BLD)[0], rtol=1e-9, atol=1e-9)
    assert not y_BLD[0, 6:].any()


@pytest.mark.parametrize("choice", EACH, ids=named)
def test_decoding_goes_through_ordinary_calls(choice):
    lm = make_lm(choice)
    tokens_BL = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(3))
    _, state = lm(tokens_BL[:, :6])
    decoder = decoder_for(lm, state)
    assert isinstance(decoder, OrdinaryDecoder)
    found = [decoder(tokens_BL[:, t : t + 1]) for t in range(6, 9)]
    torch.testing.assert_close(torch.cat(found, 1), lm(tokens_BL)[0][:, 6:], rtol=1e-9, atol=1e-9)
    name, value = next(iter(choice.items()))
    with pytest.raises(ValueError, match=f"model.{name}={value}.*prepared steps.*decoder_for"):
        Decoder(lm, state)


@pytest.mark.parametrize("choice", [{"norm_type": "layer"}, {"moving_average": "none"}], ids=named)
def test_a_state_of_another_architecture_is_refused(choice):
    lm, published = make_lm(choice), make_lm({})
    tokens_BL = torch.ones(1, 3, dtype=torch.int64)
    for one, other in ((lm, published), (published, lm)):
        with pytest.raises(ValueError, match="the state is of another architecture"):
            one(tokens_BL, other(tokens_BL)[1])


@pytest.mark.parametrize("choice", EACH, ids=named)
def test_the_released_form_has_none_of_them(choice):
    (name, value), *_ = choice.items()
    with pytest.raises(ValueError, match=f"model.{name}={value}: the released model has"):
        config_to_released(make_lm(choice))


@pytest.mark.parametrize("name", ABLATIONS)
def test_unknown_values_are_named(name):
    with pytest.raises(
        ValueError, match=rf"model\.{name}='other' is unknown.*{ABLATIONS[name][0]}"
    ):
        MegalodonConfig(**{name: "other"}).validate()


def test_an_encoder_decoder_with_plain_residuals_and_scaled_scores():
    """Each branch of a decoder's block adds to the sum before it; cross attention is scaled, too."""
    config = Seq2SeqConfig(**SIZES, residual="plain", attention_scores="scaled")
    model = randomised(Seq2Seq(config, 11, 11, 0)).eval()
    block = model.decoder.stack.blocks[0]
    encoded_BSD, x_BLD = draw(1, 5, 6), draw(1, 4, 6, seed=2)
    source = block.cross.keys_and_values(encoded_BSD, None)
    y_BLD = x_BLD + block.attention(x_BLD)[0]
    cross = block.cross
    width = cross.qk_scale.shape[1] // 2
    q_BLZ, k_BSZ = (
        proj(vectors) * (cross.qk_scale[row] + 1) + cross.qk_bias[row]
        for row, (proj, vectors) in enumerate(
            ((cross.q_proj, cross.norm(y_BLD)), (cross.k_proj, encoded_BSD))
        )
    )
    weights_BHLS = torch.stack(
        [
            (q_BLK @ k_BSK.transpose(1, 2) / width**0.5).softmax(-1)
            for q_BLK, k_BSK in zip(q_BLZ.chunk(2, -1), k_BSZ.chunk(2, -1), strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(cross.weights(y_BLD, source), weights_BHLS)
    y_BLD = y_BLD + cross(y_BLD, source)
    expected_BLD = y_BLD + block.feed_forward(y_BLD)
    torch.testing.assert_close(block(x_BLD, source)[0], expected_BLD)
