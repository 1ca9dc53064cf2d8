"""Mega registered with fairseq: in recipes, the name of the model is all that differs."""

import pytest
import torch
from fairseq import models, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

import megalodon_tasks  # noqa: F401
from megalodon_tasks.configuration import recipes, training_configuration
from megalodon_tasks.errors import UserError
from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.models.mega import MegaStack
from megalodon_tasks.models.presets import MEGA_PRESETS

CLASSIFICATION = [recipe for recipe in recipes() if not recipe.id.startswith(("lm", "translation"))]


class TaskOf:
    """As much of a task as building a classifier needs."""

    inputs = ClassifierInputs("tokens", num_classes=10, vocab_size=17)


def build(cfg):
    with torch.device("meta"):
        return models.build_model(cfg, TaskOf())


def assert_has(model, preset: str, **changes: int) -> None:
    assert type(model).__name__ == f"Model_{preset}"
    assert isinstance(model.stack, MegaStack)
    sizes = MEGA_PRESETS[preset] | changes
    assert len(model.stack.blocks) == sizes["num_layers"]
    layer = model.stack.blocks[0].attention
    assert (layer.prenorm, layer.laplace) == (
        sizes["prenorm"], sizes["attention_activation"] == "laplace",
    )  # fmt: skip


def from_yaml(preset: str):
    schema = OmegaConf.structured(models.MODEL_DATACLASS_REGISTRY[preset])
    return OmegaConf.merge(schema, {"_name": preset, "chunk_size": 8})


@pytest.mark.parametrize("preset", MEGA_PRESETS)
def test_a_yaml_builds_the_preset(preset):
    assert_has(build(from_yaml(preset)), preset)


@pytest.mark.parametrize("preset", ["mega_lra_listops", "mega_sc_raw_base"])
def test_the_command_line_builds_the_preset(preset):
    line = f"DATA --task lra_text --arch {preset} --criterion classification --chunk-size 8"
    parser = options.get_training_parser()
    parsed = options.parse_args_and_arch(parser, line.split())
    cfg = convert_namespace_to_omegaconf(parsed).model
    assert_has(build(cfg), preset)
    yaml = from_yaml(preset)
    assert {key: cfg[key] for key in yaml} == dict(yaml)


@pytest.mark.parametrize("recipe", CLASSIFICATION, ids=lambda recipe: recipe.id)
def test_recipes_take_it_by_its_name(recipe):
    """A demo's settings are those of the recipe and its own."""
    folder, name = recipe.script.parent, recipe.config_name(demo=True)
    _, *layers = OmegaConf.load(folder / f"{name}.yaml").defaults
    own = OmegaConf.merge(*(OmegaConf.load(folder / f"{layer}.yaml") for layer in layers)).model
    mega = own.pop("_name").replace("megalodon_", "mega_")
    config = training_configuration(folder, name, ["task.data=D", f"model._name={mega}"]).model
    assert_has(build(config), mega, num_layers=own.num_layers)
    assert {key: config[key] for key in own} == dict(own)


def test_impossible_values_are_refused_before_training():
    recipe = CLASSIFICATION[0]
    overrides = ["model._name=mega_lra_text", "model.positions=none"]
    with pytest.raises(UserError, match=r"model\.positions='none' is unknown"):
        training_configuration(recipe.script.parent, recipe.config_name(False), overrides)
