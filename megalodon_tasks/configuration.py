"""Find recipes, compose their configurations with hydra, and check overrides against them."""

import difflib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megalodon_tasks.errors import UserError
from megalodon_tasks.models.config import EncoderConfig

RECIPES = Path(str(importlib.resources.files("megalodon_tasks.recipes")))

# hydra knows only those fields of these sections that the YAML writes out, and takes others with ++;
# fairseq checks their names afterwards.
_COMPONENT_FIELD = re.compile(r"(model|task|criterion|optimizer|lr_scheduler)\.\w+=")
_OVERRIDE = re.compile(r"([A-Za-z_]\w*)(?:\.(\w+)[\w.]*)?=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Recipe:
    """A run script and the YAML files beside it.  ``id`` is ``family/name``."""

    id: str
    script: Path

    def config_name(self, demo: bool) -> str:
        """Return the name of the YAML file that the script trains with."""
        return f"{self.script.stem}_demo" if demo else self.script.stem


def recipes() -> list[Recipe]:
    """List the recipes of this project by id."""
    return [_recipe(path) for path in sorted(RECIPES.glob("*/*.sh")) if _has_configuration(path)]


def _recipe(script: Path) -> Recipe:
    return Recipe(f"{script.parent.name}/{script.stem}", script)


def _has_configuration(script: Path) -> bool:
    return script.with_suffix(".yaml").is_file()


def find_recipe(name: str) -> Recipe:
    """Return the recipe with this id or name, or the one whose script lies at this path.

    Raises :class:`UserError`, which lists the recipes, if none or several have the name.
    """
    script = Path(name).absolute()
    if script.suffix == ".sh" and _has_configuration(script):
        return _recipe(script)
    matches = [recipe for recipe in recipes() if name in (recipe.id, recipe.script.stem)]
    if len(matches) != 1:
        known = ", ".join(recipe.id for recipe in recipes())
        state = "ambiguous" if matches else "unknown"
        raise UserError(f"recipe {name!r} is {state}; choose one of {known}")
    return matches[0]


def quoted(value: str) -> str:
    """Write ``value`` as a string of hydra's override grammar, whatever characters it has."""
    # a quote is written \', and backslashes are doubled before a quote and nowhere else
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """Prefix with ``++`` the overrides of component fields that hydra would refuse as unknown."""
    return [f"++{word}" if _COMPONENT_FIELD.match(word) else word for word in overrides]


def compose_configuration(folder: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``folder/name.yaml`` with hydra, before fairseq fills in the components' defaults.

    Raises :class:`UserError` for an override that hydra refuses, and for a file that is not YAML.
    """
    GlobalHydra.instance().clear()
    hydra_init(cfg_name=name)
    try:
        with initialize_config_dir(str(folder), version_base="1.1"):
            return compose(config_name=name, overrides=hydra_overrides(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise _refused(folder, name, overrides, error) from None
    except (YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / name}.yaml, or a file it names, is not YAML: {reason}"
        ) from None


def training_configuration(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose what fairseq trains with: the YAML, the overrides, and the components' defaults.

    Raises :class:`UserError` for a value of the wrong type, or sizes that make no model.
    """
    config: Any = compose_configuration(folder, name, overrides)
    try:
        add_defaults(config)
        OmegaConf.resolve(config)
        model = MODEL_DATACLASS_REGISTRY.get(config.model._name)
        if isinstance(model, type) and issubclass(model, EncoderConfig):
            model(**config.model).validate()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _refused(folder, name, overrides, error) from None
    return config


def _refused(folder: Path, name: str, overrides: Sequence[str], error: Exception) -> UserError:
    message = str(error.__cause__ or error).strip().splitlines()[0]
    return UserError(f"{folder / name}.yaml with {' '.join(overrides)}: {message}")


def check_fields(folder: Path, name: str, overrides: Sequence[str]) -> None:
    """Raise :class:`UserError`, with the nearest names, for a field that the configuration lacks.

    Words of hydra's other forms (``+key=value``, ``~key``, options) are left to hydra.
    """
    written = OmegaConf.to_container(compose_configuration(folder, name))
    matches = [match for match in map(_OVERRIDE.fullmatch, overrides) if match]
    chosen = {match[1]: match[3] for match in matches if match[2] == "_name"}
    sections = {field.name for field in fields(FairseqConfig)} | set(written) | {"hydra"}
    known = {section: _fields(section, written, chosen) for section in sections}
    for match in matches:
        section, field = match[1], match[2]
        names = known.get(section)
        if section not in known or (names and field is not None and field not in names):
            given = section if field is None else f"{section}.{field}"
            raise UserError(f"{given}: there is no such field{_suggestion(given, known)}")


def _fields(section: str, written: Mapping[str, Any], chosen: Mapping[str, str]) -> set[str]:
    """Return the names that ``section`` may hold; none if that is not known."""
    below = written.get(section)
    below = below if isinstance(below, Mapping) else {}
    schema = {field.name: field.type for field in fields(FairseqConfig)}.get(section)
    if not is_dataclass(schema):
        schema = _registered(section).get(chosen.get(section, below.get("_name")))
    if not is_dataclass(schema):
        return set()
    return {field.name for field in fields(schema)} | set(below) | {"_name"}


def _registered(section: str) -> Mapping[str, Any]:
    if section == "model":
        return MODEL_DATACLASS_REGISTRY
    if section == "task":
        return TASK_DATACLASS_REGISTRY
    return REGISTRIES.get(section, {}).get("dataclass_registry", {})


def _suggestion(given: str, known: Mapping[str, set[str]]) -> str:
    every = [f"{section}.{name}" for section, names in known.items() for name in names]
    last = given.rpartition(".")[2]
    same_name = sorted(name for name in every if name.rpartition(".")[2] == last)
    near = same_name or difflib.get_close_matches(given, sorted(every), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
