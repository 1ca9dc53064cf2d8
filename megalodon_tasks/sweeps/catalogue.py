"""The recipes that there are, and whether their configuration takes a setting."""

import importlib.resources
import os
from dataclasses import dataclass, fields
from pathlib import Path

from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megalodon_tasks.cli.train import COMPONENT_FIELD
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.training.fields import check as check_fields

RECIPES = Path(str(importlib.resources.files("megalodon_tasks.recipes")))


@dataclass(frozen=True)
class Recipe:
    """A run script and the YAML files beside it.  ``id`` is ``family/name``."""

    id: str
    script: Path

    def config_name(self, demo: bool) -> str:
        """The name of the YAML file that the script trains with."""
        return f"{self.script.stem}_demo" if demo else self.script.stem


def recipes() -> list[Recipe]:
    """All recipes, by id."""
    scripts = [p for p in sorted(RECIPES.glob("*/*.sh")) if p.with_suffix(".yaml").is_file()]
    return [Recipe(f"{path.parent.name}/{path.stem}", path) for path in scripts]


def find(name: str) -> Recipe:
    """The recipe of this id or name, or of the script at this path.

    Raises ``ValueError`` listing the recipes for a name that none or several have.
    """
    path = os.path.abspath(name)
    found = [
        recipe
        for recipe in recipes()
        if name in (recipe.id, recipe.script.stem) or path == str(recipe.script)
    ]
    if len(found) != 1:
        known = ", ".join(recipe.id for recipe in recipes())
        state = "unknown" if not found else "the name of several"
        raise ValueError(f"recipe {name!r} is {state}; choose one of {known}")
    return found[0]


def configuration(folder: Path, name: str, overrides: list[str]) -> DictConfig:
    """What fairseq trains with: the YAML file, overrides, and the defaults of every component.

    Raises ``ValueError`` for a field that does not exist or a value that it cannot have.
    """
    GlobalHydra.instance().clear()
    hydra_init(cfg_name=name)
    words = [f"++{word}" if COMPONENT_FIELD.match(word) else word for word in overrides]
    try:
        with initialize_config_dir(str(folder), version_base="1.1"):
            config = compose(config_name=name, overrides=words)
        add_defaults(config)
        return OmegaConf.create(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / name}.yaml with {' '.join(overrides)}: {message}") from None


def check(recipe: Recipe, demo: bool, settings: dict[str, str]) -> None:
    """Raise ``ValueError`` if ``settings`` (field -> value) make no configuration of the recipe.

    Of a field that does not exist the message names those with similar names.
    """
    folder, name = recipe.script.parent, recipe.config_name(demo)
    if not (folder / f"{name}.yaml").is_file():
        raise ValueError(f"recipe {recipe.id} has no {'demo' if demo else 'configuration'}")
    overrides = [f"{field}={value}" for field, value in settings.items()]
    check_fields(folder / f"{name}.yaml", overrides)
    config = configuration(folder, name, ["task.data=DATA", *overrides])
    sizes = {
        f.name: config.model[f.name] for f in fields(MegalodonConfig) if f.name in config.model
    }
    MegalodonConfig(**sizes).validate()
