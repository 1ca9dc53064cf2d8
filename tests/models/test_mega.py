"""Mega against its original code, and against its equations in double precision."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import dispatch
from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.models.config import MegaConfig
from megalodon_tasks.models.layers.mega_norm import MegaNorm
from megalodon_tasks.models.layers.real_ema import MegaEMA
from megalodon_tasks.models.mega import MegaSequenceClassifier, MegaStack
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS, MEGA_PRESETS
from tests.models import mega_reference

SIZES = {"model_dim": 6, "num_layers": 2, "z_dim": 4, "value_dim": 10, "ffn_hidden_dim": 8}
SIZES |= {"cema_ndim": 3, "max_positions": 20}
GOLDEN = torch.load(Path(__file__).parents[1] / "data" / "mega_encoder.pt", weights_only=True)
# The original names and ours.
NAMES = {
    "layers.": "blocks.",
    "mega_layer.rel_pos_bias.rel_pos_bias": "attention.position_bias.weight",
    "mega_layer.move.": "attention.ema.",
    "mega_layer.gamma": "attention.qk_scale",
    "mega_layer.beta": "attention.qk_bias",
    "mega_layer.h_proj": "attention.out_proj",
    "mega_layer.": "attention.",
    "nffn.": "feed_forward.",
}


def make_stack(**changes) -> MegaStack:
    torch.manual_seed(0)
    stack = MegaStack(MegaConfig(**(SIZES | changes))).double()
    for parameter in stack.parameters():  # large enough for every part to matter
        torch.nn.init.normal_(parameter, std=0.7)
    return stack


def draw(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(found, expected, stack, *leaves):
    """Compare outputs, and the gradients of all parameters and leaves."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = draw(*found.shape, seed=9)
    leaves = [*leaves, *stack.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def ours(name: str) -> str:
    for original, here in NAMES.items():
        name = name.replace(original, here)
    return name


@pytest.mark.parametrize("backend", ["reference", "torch", "fft"])
@pytest.mark.parametrize("case", GOLDEN)
def test_the_original_code_computes_the_same(case, backend):
    """To the precision of the original, which convolves in float32 whatever the dtype."""
    golden = GOLDEN[case]
    sizes = golden["config"]
    config = MegaConfig(
        model_dim=sizes["d"],
        num_layers=sizes["layers"],
        z_dim=sizes["z"],
        value_dim=sizes["v"],
        ffn_hidden_dim=sizes["ffn"],
        cema_ndim=sizes["h"],
        chunk_size=sizes["chunk"] if sizes["chunk"] > 0 else None,
        attention_activation=sizes["act"],
        max_positions=sizes["max_positions"],
    )
    stack = MegaStack(config).double()
    state = {ours(name): tensor for name, tensor in golden["state"].items()}
    embedding = state.pop("embed_tokens.embed.weight").clone().requires_grad_()
    stack.load_state_dict(state)
    with dispatch.use_backend(backend):
        y_BLD, _ = stack(F.embedding(golden["tokens"], embedding))
        pooled_BD = y_BLD.mean(1)
        (pooled_BD * torch.linspace(-1, 1, 36, dtype=torch.float64).view(3, 12)).sum().backward()
    close = {"rtol": 0, "atol": 5e-7}
    torch.testing.assert_close(y_BLD.transpose(0, 1), golden["last"], **close)
    torch.testing.assert_close(pooled_BD, golden["pooled"], **close)
    parameters = dict(stack.named_parameters()) | {"embed_tokens.embed.weight": embedding}
    assert {ours(name) for name in golden["grads"]} == set(parameters)
    for name, grad in golden["grads"].items():
        torch.testing.assert_close(parameters[ours(name)].grad, grad, **close)


CHOICES = [
    {"attention_activation": activation, "norm_type": norm_type, "prenorm": prenorm}
    | {"positions": positions, "chunk_size": chunk_size}
    for activation, (norm_type, prenorm, positions), chunk_size in itertools.product(
        ("softmax", "laplace"),
        [("layer", False, "simple"), ("scale", False, "rotary"), ("batch", True, "rope")]
        + [("batch", False, "simple"), ("scale", True, "rope"), ("syncbatch", True, "rotary")],
        (None, 4),
    )
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_the_equations_in_double_precision(choice):
    stack = make_stack(**choice)
    x_1LD = draw(1, 11, 6).requires_grad_()
    expected_LD = mega_reference.run(stack, x_1LD[0])
    assert_same(stack(x_1LD)[0], expected_LD[None], stack, x_1LD)


@pytest.mark.parametrize("backend", ["reference", "torch", "fft", "native", "triton"])
@pytest.mark.parametrize("length", [1, 37])
def test_the_moving_average_runs_on_every_backend(backend, length):
    torch.manual_seed(0)
    layer = MegaEMA(5, 4, bidirectional=True)
    x_LD = draw(length, 5).requires_grad_()
    exact = MegaEMA(5, 4, bidirectional=True).double()
    exact.load_state_dict(layer.state_dict())
    expected_LD = mega_reference.moving_average(x_LD, exact)
    expected_LD.square().sum().backward()
    narrow_LD = x_LD.detach().float().requires_grad_()
    with dispatch.use_backend(backend):
        y_LD = layer(narrow_LD[None])[0][0]
    y_LD.square().sum().backward()
    pairs = [(y_LD, expected_LD), (narrow_LD.grad, x_LD.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), exact.parameters(), strict=True)]
    for found, expected in pairs:
        scale = expected.detach().norm() + 1e-6
        assert ((found - expected).norm() / scale).item() < 2e-4


@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("norm_type", ["layer", "scale", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(activation, norm_type, training):
    """Of the first row two whole chunks are padding, and what padding holds does not matter."""
    choice = {"attention_activation": activation, "norm_type": norm_type, "chunk_size": 4}
    stack = make_stack(**choice).train(training)
    rows = [draw(1, 3, 6, seed=1), draw(1, 13, 6, seed=2)]
    mask_BL = torch.arange(13) >= torch.tensor([[3], [13]])
    x_BLD = torch.cat([F.pad(row, (0, 0, 0, 13 - row.shape[1]), value=1e3) for row in rows])
    y_BLD, _ = stack(x_BLD, mask_BL)
    other_BLD, _ = stack(x_BLD.masked_fill(mask_BL[..., None], -7.0), mask_BL)
    torch.testing.assert_close(y_BLD, other_BLD, rtol=1e-9, atol=1e-9)
    assert not y_BLD[0, 3:].any()
    if norm_type != "batch" or not training:
        for found, row in zip(y_BLD, rows, strict=True):
            torch.testing.assert_close(found[: row.shape[1]], stack(row)[0][0])
    y_BLD.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in stack.parameters())


def test_batch_norm_is_over_the_real_steps():
    norm = MegaNorm("batch", 3, 1e-5).double()
    x_BLD, mask_BL = 5 * draw(2, 4, 3) + 1, torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).bool()
    real_ND = norm(x_BLD, mask_BL)[~mask_BL]
    torch.testing.assert_close(real_ND.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * x_BLD[~mask_BL].mean(0))
    norm.eval()
    expected = (x_BLD - norm.norm.running_mean) / (norm.norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(x_BLD, mask_BL), expected)


def test_a_start_like_the_original():
    torch.manual_seed(0)
    layer = MegaEMA(64, 16, bidirectional=True)
    for parameter, std in ((layer.alpha, 0.2), (layer.delta, 0.2), (layer.gamma, 1.0)):
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    turns = torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    assert (layer.beta - turns).std().item() == pytest.approx(0.02, rel=0.05)
    block = MegaStack(MegaConfig(num_layers=1)).blocks[0]
    for linear in (block.attention.mx_proj, block.attention.out_proj, block.feed_forward.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("memory", [4, 64])
def test_the_memory_at_the_start_is_that_of_the_setting(memory):
    layer = MegaEMA(6, 16, bidirectional=True, memory=memory)
    forgotten = torch.sigmoid(layer.alpha.double()) * torch.sigmoid(layer.delta.double())
    tau = (-1 / torch.log1p(-forgotten))[..., 0].sort(dim=1).values
    expected = torch.linspace(4, memory, 16, dtype=torch.float64).expand_as(tau)
    torch.testing.assert_close(tau, expected, rtol=1e-3, atol=0.0)


def test_dropout_and_drop_path_act_in_training_only():
    for setting in ("dropout", "attention_dropout", "hidden_dropout", "drop_path"):
        stack = make_stack(**{setting: 0.4})
        x_BLD = draw(4, 9, 6)
        assert (stack(x_BLD)[0] - stack(x_BLD)[0]).abs().max() > 1e-6, setting
        stack.eval()
        assert torch.equal(stack(x_BLD)[0], stack(x_BLD)[0]), setting


def test_recomputed_activations_give_the_same_gradients():
    x_BLD, grads = draw(2, 9, 6), []
    for checkpoint_activations in (False, True):
        stack = make_stack(checkpoint_activations=checkpoint_activations)
        stack(x_BLD)[0].square().sum().backward()
        grads.append([parameter.grad for parameter in stack.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("choice", "length"), [({}, 21), ({"chunk_size": 8, "max_positions": 1}, None)]
)
def test_a_distance_that_was_not_learned_is_refused(choice, length):
    stack = make_stack(**choice)
    if length is None:
        for block in stack.blocks:
            block.attention.chunk_size = 16
    named = "chunk_size=8" if choice else "max_positions=20"
    with pytest.raises(ValueError, match=f"position bias of distance .* below model.{named}"):
        stack(draw(1, length or 16, 6))


@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_weights_serve_smaller_chunks_than_those_of_training(activation):
    trained = make_stack(attention_activation=activation).eval()
    smaller = make_stack(attention_activation=activation, chunk_size=4).eval()
    smaller.load_state_dict(trained.state_dict())
    x_BLD = draw(1, 4, 6)
    torch.testing.assert_close(smaller(x_BLD)[0], trained(x_BLD)[0])
    assert trained.state_dict().keys() == smaller.state_dict().keys()
    with pytest.raises(RuntimeError, match=r"the distances below 4, model.max_positions=20 needs"):
        trained.load_state_dict(smaller.state_dict())


@pytest.mark.parametrize("positions", ["simple", "rotary", "rope"])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_signals_at_half_the_rate(positions, activation):
    """The same slow signal, with half as many steps, has nearly the same scores."""
    torch.manual_seed(0)
    sizes = SIZES | {"positions": positions, "attention_activation": activation, "chunk_size": 64}
    model = MegaSequenceClassifier(MegaConfig(**sizes), ClassifierInputs("waveform", 5)).double()
    torch.nn.init.normal_(model.stack.blocks[0].attention.qk_scale)
    signal = torch.sin(torch.arange(256, dtype=torch.float64) / 40)[None]
    expected = model.eval()(signal)
    every_second = (signal[:, ::2] + signal[:, 1::2]) / 2
    model.set_time_step(2)
    torch.testing.assert_close(model(every_second), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_activation": "relu2"}, r"model\.attention_activation='relu2'.*laplace"),
        ({"norm_type": "rms"}, r"model\.norm_type='rms' is unknown.*syncbatch"),
        ({"positions": "none"}, r"model\.positions='none' is unknown"),
        ({"positions": "rope", "z_dim": 5}, r"model\.z_dim=5 is odd; model\.positions=rope"),
        ({"max_positions": 0}, r"model\.max_positions=0 must be a positive integer"),
        ({"z_dim": 0}, r"model\.z_dim=0"),
        ({"cema_init": "spread"}, r"model\.cema_memory=None"),
        ({"chunk_size": 0}, r"model\.chunk_size=0"),
        (
            {"norm_type": "batch", "checkpoint_activations": True},
            r"checkpoint_activations=true with model\.norm_type=batch",
        ),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MegaStack(MegaConfig(**changes))


# Inputs as in the counts of Megalodon; the exact count; the thousands of the original code, whose head
# has a hidden layer of width 2 d that classifiers here do not have.
COUNTS = {
    "mega_lra_listops": (ClassifierInputs("tokens", 10, 17), 594_738, 602),
    "mega_lra_text": (ClassifierInputs("tokens", 2, 138), 958_100, 980),
    "mega_lra_retrieval": (ClassifierInputs("tokens", 2, 101, pair=True), 1_480_862, 1460),
    "mega_lra_image": (ClassifierInputs("pixels", 10), 2_811_736, 2840),
    "mega_lra_pathfinder": (ClassifierInputs("pixels", 2), 1_370_106, 1390),
    "mega_lra_pathx": (ClassifierInputs("pixels", 2), 377_660, 382),
    "mega_sc_raw_base": (ClassifierInputs("waveform", 10), 338_874, 343),
    "mega_sc_raw_big": (ClassifierInputs("waveform", 10), 469_914, 476),
    "mega_imagenet_base": (ClassifierInputs("patches", 1000), 90_734_140, 90_730),
    # published nowhere
    "mega_imagenet_tiny": (ClassifierInputs("patches", 1000), 6_209_596, 6_210),
}


@pytest.mark.parametrize("preset", MEGA_PRESETS)
def test_parameter_counts_of_the_presets(preset):
    inputs, exact, published_thousands = COUNTS[preset]
    config = MegaConfig(**MEGA_PRESETS[preset])
    with torch.device("meta"):
        model = MegaSequenceClassifier(config, inputs)
    count, tail = (sum(p.numel() for p in part.parameters()) for part in (model, model.head))
    assert count == exact
    if inputs.kind != "patches":
        d = config.model_dim
        theirs = (2 * d if inputs.pair else d) * 2 * d + 2 * d + 2 * d * inputs.num_classes
        count += theirs - tail - (d * d + d)
    assert count / 1000 == pytest.approx(published_thousands, rel=0.006)


def test_every_preset_of_megalodon_has_its_predecessor():
    names = [name.replace("megalodon_", "mega_") for name in CLASSIFIER_PRESETS]
    assert names == list(MEGA_PRESETS)
