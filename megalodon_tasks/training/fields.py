"""Overrides name fields that there are: said here before hydra and fairseq say it in their words."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from megalodon_tasks.errors import UserError

_OVERRIDE = re.compile(r"([A-Za-z_]\w*)(?:\.(\w+)[\w.]*)?=(.*)", re.DOTALL)


def check(config: Path, overrides: Sequence[str]) -> None:
    """Raise :class:`UserError`, with the nearest names, for a field that the configuration lacks.

    Words of hydra's other forms (``+key=value``, ``~key``, options) are left to hydra.
    """
    written = _composed(config)
    found = [match for match in map(_OVERRIDE.fullmatch, overrides) if match]
    chosen = {match[1]: match[3] for match in found if match[2] == "_name"}
    known = {section: _fields(section, written, chosen) for section in _sections(written)}
    for match in found:
        section, name = match[1], match[2]
        names = known.get(section)
        if section not in known or (names and name is not None and name not in names):
            given = section if name is None else f"{section}.{name}"
            raise UserError(f"{given}: there is no such field{_suggestion(given, known)}")


def _composed(config: Path) -> dict[str, Any]:
    """Compose the file with those in its defaults list; what is missing or refers elsewhere stays so."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.parent.absolute()), version_base="1.1"):
        return OmegaConf.to_container(compose(config_name=config.stem))


def _sections(written: Mapping[str, Any]) -> set[str]:
    return {field.name for field in fields(FairseqConfig)} | set(written) | {"hydra"}


def _fields(section: str, written: Mapping[str, Any], chosen: Mapping[str, str]) -> set[str]:
    """The names that ``section`` may hold; none if that is not known."""
    below = written.get(section)
    below = below if isinstance(below, Mapping) else {}
    plain = {field.name: field.type for field in fields(FairseqConfig)}.get(section)
    if not is_dataclass(plain):
        plain = _registered(section).get(chosen.get(section, below.get("_name")))
    if not is_dataclass(plain):
        return set()
    return {field.name for field in fields(plain)} | set(below) | {"_name"}


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
