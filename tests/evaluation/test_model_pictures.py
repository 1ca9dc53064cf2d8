"""Kernels, attention and gates of a model, and the command that draws them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint
from megalodon_tasks.evaluation.model_pictures import draw, initial_model, kernels, observed, spread
from megalodon_tasks.models.config import MegaConfig, MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.mega import MegaSequenceClassifier
from megalodon_tasks.models.stack import MegalodonStack
from tests.data.prepared import write_random

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "lra"


@pytest.mark.parametrize("bidirectional", [False, True])
def test_kernels_are_what_the_layer_convolves_with(bidirectional):
    torch.manual_seed(0)
    layer = ComplexEMA(6, 4, bidirectional)
    found = kernels(layer, reach=20)
    x_BLD = torch.randn(1, 21, 6)
    y_BLD, _ = layer(x_BLD)
    for step in (0, 10, 20):
        expected = torch.zeros(6)
        for lag, weight in zip(found.lags.tolist(), found.values.T, strict=True):
            if 0 <= step - lag < 21:
                expected += weight * x_BLD[0, step - lag]
        torch.testing.assert_close(y_BLD[0, step], expected, atol=1e-5, rtol=1e-5)


def test_rates_are_in_steps():
    layer = ComplexEMA(1, 1, False)
    with torch.no_grad():
        layer.alpha.zero_()  # p = 1/2
        layer.delta.fill_(torch.logit(torch.tensor(0.2)))  # |q| = 0.9
        layer.theta.fill_(torch.logit(torch.tensor(0.25)))  # a quarter turn per step
    found = kernels(layer, 1)
    assert found.decay.item() == pytest.approx(-1 / torch.tensor(0.9).log().item(), rel=1e-5)
    assert found.period.item() == pytest.approx(4, rel=1e-5)


def test_channels_are_spread_from_short_to_long_memory():
    rates = torch.tensor([0.9, 0.1, 0.99, 0.5, 0.8])
    values = rates[:, None] ** torch.arange(200)
    assert spread(values, 3) == [1, 4, 2]
    assert spread(values, 9) == [1, 3, 4, 0, 2]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_observed_weights_give_the_attended_values(causal, chunk_size):
    torch.manual_seed(0)
    config = MegalodonConfig(
        model_dim=12, num_layers=2, num_heads=2, z_dim=8, value_dim=12, ffn_hidden_dim=16,
        cema_ndim=2, chunk_size=chunk_size, causal=causal, norm_num_groups=3,
    )  # fmt: skip
    stack = MegalodonStack(config).double().eval()
    layer = stack.blocks[0].attention
    x_BLD = torch.randn(1, 20, 12, dtype=torch.float64)
    with observed(stack) as (first, second), torch.no_grad():
        stack(x_BLD)
        normed_BLD, _ = layer.norm(x_BLD)
        value = torch.nn.functional.silu(layer.v_proj(normed_BLD)).unflatten(-1, (2, -1))[0]
    assert (first.layer, second.layer) == (layer, stack.blocks[1].attention)
    steps = first.chunk_steps
    attended = [
        first.attention(0, chunk) @ value[chunk * steps : (chunk + 1) * steps].transpose(0, 1)
        for chunk in range(-(-20 // steps))
    ]
    attended = torch.cat(attended, dim=1).transpose(0, 1).flatten(1)
    # through the rest of the layer it must give what the layer gives
    averaged_BLD, _ = layer.cema(normed_BLD)
    mixed = layer.cema_norm(averaged_BLD)
    output = layer.skip_proj(mixed) + layer.out_proj(attended * first.gate)
    torch.testing.assert_close(output, layer(x_BLD)[0], atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="the item has the chunks 0 to"):
        first.attention(0, 9)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run whose rate is so small that its one update changes nothing."""
    folder = tmp_path_factory.mktemp("inspect")
    write_random(folder / "data", vocabulary=tuple(f"s{i}" for i in range(17)))
    sizes = {"model_dim": 8, "num_layers": 2, "z_dim": 4, "value_dim": 8, "ffn_hidden_dim": 8}
    subprocess.run(
        [
            sys.executable, "-m", "megalodon_tasks", "train", "--config-dir", str(RECIPE),
            "--config-name", "listops_demo", "--data", str(folder / "data"),
            "--save-dir", str(folder / "run"), "optimization.max_update=1",
            "optimization.lr=[1.0e-30]", "lr_scheduler.warmup_init_lr=1.0e-31",
            *(f"model.{name}={size}" for name, size in sizes.items()),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return folder / "run" / "checkpoint_last.pt"


def test_the_model_before_training_is_the_one_that_training_began_with(untrained):
    trained = checkpoint.load(untrained, device=torch.device("cpu"))
    began = initial_model(trained)
    for (name, old), new in zip(began.named_parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-20, rtol=0, msg=name)


def test_three_pictures(untrained, tmp_path, capsys):
    assert main(["inspect", str(untrained), "--output", str(tmp_path), "--reach", "9"]) == 0
    printed = capsys.readouterr().out
    for name in ("kernels", "attention", "gates"):
        assert imread(tmp_path / f"{name}.png").std() > 0
        assert f"{name}.png" in printed


@pytest.mark.parametrize(
    ("average", "drawn"),
    [("real", {"attention", "kernels", "gates"}), ("none", {"attention", "gates"})],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_pictures_without_angles_and_without_a_moving_average(untrained, tmp_path, average, drawn):
    trained = checkpoint.load(untrained, device=torch.device("cpu"))
    trained.cfg.model.moving_average = average
    trained = dataclasses.replace(trained, model=initial_model(trained).eval())
    draw(trained, "valid", 0, 0, None, 9, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    assert all(imread(path).std() > 0 for path in tmp_path.iterdir())


def test_there_are_no_pictures_of_mega(untrained, tmp_path):
    trained = checkpoint.load(untrained, device=torch.device("cpu"))
    model = MegaSequenceClassifier(MegaConfig(num_layers=1), trained.task.inputs)
    with pytest.raises(ValueError, match="MegaSequenceClassifier: there are pictures of Megalodon"):
        draw(dataclasses.replace(trained, model=model), "valid", 0, 0, None, 9, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--item", "99"], "--item 99: the split valid has the items 0 to 11"),
        (["--layers", "2"], "--layers 2: the model has the layers 0 to 1"),
        (["--chunk", "5"], "chunk 5: the item has the chunks 0 to 0 of"),
        (["--split", "dev"], "no split 'dev'"),
    ],
)
def test_what_is_not_there_is_named(untrained, tmp_path, words, message):
    with pytest.raises(UserError) as caught:
        main(["inspect", str(untrained), "--output", str(tmp_path), *words])
    assert message in str(caught.value)
