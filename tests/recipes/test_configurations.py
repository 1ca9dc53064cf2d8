"""Every recipe's YAML loads and builds what it names; the three ways to a run give one configuration."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import models, options
from fairseq.data import Dictionary
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS, LM_PRESETS, SEQ2SEQ_PRESETS

RECIPES = Path(__file__).parents[2] / "recipes"
YAMLS = sorted(path for path in RECIPES.glob("*/*.yaml") if path.stem != "base")
SETTINGS = sorted(RECIPES.glob("*/settings/*.yaml"))


def dictionary_of(size: int) -> Dictionary:
    dictionary = Dictionary()
    for word in range(size):
        dictionary.add_symbol(f"w{word}")
    return dictionary


class TaskOf:
    """As much of a task as building a classifier or a language model needs."""

    inputs = ClassifierInputs("tokens", num_classes=10, vocab_size=17)
    source_dictionary = dictionary_of(70_000)  # more than the cutoffs of any adaptive softmax
    target_dictionary = source_dictionary


def composed(path: Path, *overrides: str):
    """A YAML file with the files of its defaults list and overrides, checked as far as hydra does."""
    GlobalHydra.instance().clear()
    hydra_init(cfg_name=path.stem)
    with initialize_config_dir(str(path.parent), version_base="1.1"):
        return compose(config_name=path.stem, overrides=list(overrides))


def load_yaml(path: Path, *overrides: str):
    """What fairseq-hydra-train makes of a YAML file and overrides."""
    config = composed(path, *overrides)
    add_defaults(config)
    container = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return OmegaConf.create(container)


def load_command_line(*arguments: str):
    """What fairseq-train makes of its arguments."""
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(arguments)))


def test_recipes_are_found():
    assert {path.stem for path in YAMLS} >= {"listops", "listops_demo"}
    assert [path.stem for path in SETTINGS] == [path.stem for path in YAMLS]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_recipe_file_names_its_layers_and_nothing_else(path):
    """A setting there would bring fairseq's defaults with it, over those of base.yaml."""
    names = [path.stem.removesuffix("_demo"), path.stem]
    settings = [f"settings/{name}" for name in dict.fromkeys(names)]
    assert OmegaConf.load(path) == {"defaults": ["_self_", "base", *settings]}


def flat(config, prefix: str = "") -> dict[str, object]:
    values = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def layers(path: Path, last: int | None = None):
    """The settings of a recipe's layers on top of each other, without fairseq's defaults."""
    _, *names = OmegaConf.load(path).defaults
    parts = [OmegaConf.load(path.parent / f"{name}.yaml") for name in names]
    return OmegaConf.merge(*parts[:last])


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_settings_state_only_what_differs(path):
    below = flat(OmegaConf.to_container(layers(path.parents[1] / path.name, -1)))
    stated = flat(OmegaConf.to_container(OmegaConf.load(path)))
    assert not [field for field, value in stated.items() if below.get(field, stated) == value]


@pytest.fixture
def family(tmp_path):
    """A copy of the family lra, with base.yaml above it."""
    shutil.copy(RECIPES / "base.yaml", tmp_path)
    shutil.copytree(RECIPES / "lra", tmp_path / "lra", symlinks=True)
    return tmp_path / "lra"


@pytest.mark.parametrize("layer", ["../base.yaml", "settings/listops.yaml"])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("optimization.clip_normm=8", "clip_normm"),
        ("optimization.clip_norm=high", "high"),
        ("model.chunk_sizee=8", "chunk_sizee"),
        ("commons.seed=1", "commons"),
    ],
)
def test_an_unknown_field_or_a_wrong_type_is_refused_in_every_layer(family, layer, wrong, named):
    path = family / layer
    content = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist([wrong]))
    path.write_text("# @package _global_\n" + OmegaConf.to_yaml(content))
    with pytest.raises((HydraException, OmegaConfBaseException), match=named):
        load_yaml(family / "listops.yaml", "task.data=DATA")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_builds_the_model_that_it_names(path):
    config = load_yaml(path, "task.data=DATA", "model.chunk_size=16")
    assert config.model.chunk_size == 16
    preset = (CLASSIFIER_PRESETS | LM_PRESETS | SEQ2SEQ_PRESETS)[config.model._name]
    written = composed(path, "model.chunk_size=16").model
    for field, value in preset.items():
        assert config.model[field] == written.get(field, value), field
    with torch.device("meta"):
        model = models.build_model(config.model, TaskOf())
    if config.model._name in SEQ2SEQ_PRESETS:
        stack = model.encoder.plain.stack
    else:
        stack = model.decoder.lm.stack if config.model._name in LM_PRESETS else model.stack
    assert len(stack.blocks) == config.model.num_layers


@pytest.mark.parametrize(
    "name", ["lra/pathfinder_demo", "lm/wikitext103_demo", "imagenet/imagenet"]
)
def test_the_name_of_the_model_is_all_that_makes_a_transformer_of_equal_size(name):
    path, counts = RECIPES / f"{name}.yaml", []
    own = composed(path).model._name
    for model_name in (own, own.replace("megalodon_", "transformer_")):
        config = load_yaml(path, "task.data=DATA", f"model._name={model_name}")
        with torch.device("meta"):
            model = models.build_model(config.model, TaskOf())
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert type(model).__name__ == f"Model_{own.replace('megalodon_', 'transformer_')}"
    assert counts[1] == pytest.approx(counts[0], rel=6e-3)


def test_command_line_and_yaml_build_the_same_configuration():
    yaml = load_yaml(RECIPES / "lra" / "listops.yaml", "task.data=DATA", "model.chunk_size=128")
    words = """DATA --user-dir megalodon_tasks --task lra_text --arch megalodon_lra_listops
        --benchmark listops --max-positions 2002 --chunk-size 128 --dropout 0.1
        --criterion classification --optimizer adamw_groups --adam-betas (0.9,0.98)
        --weight-decay 0.01 --clip-norm 1.0 --lr 0.001 --lr-scheduler linear_decay
        --warmup-updates 3000 --max-update 90000 --batch-size 64 --batch-size-valid 32
        --effective-batch 64
        --required-batch-size-multiple 1 --num-workers 2 --seed 1 --save-dir outputs/lra/listops
        --keep-last-epochs 1 --best-checkpoint-metric accuracy --log-format json
        --maximize-best-checkpoint-metric"""
    line = load_command_line(*words.split())
    for section in ("task", "model", "criterion", "optimizer", "lr_scheduler"):
        ours, theirs = dict(yaml[section]), dict(line[section])
        differing = {
            key: (ours.get(key), theirs.get(key))
            for key in ours.keys() & theirs.keys()
            if _plain(ours[key]) != _plain(theirs[key])
        }
        assert differing == {}, section
    for section in ("dataset", "optimization", "checkpoint"):
        assert _plain(yaml[section]) == _plain(line[section]), section


def _plain(value: object) -> object:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    return re.sub(r"\s", "", value) if isinstance(value, str) else value
