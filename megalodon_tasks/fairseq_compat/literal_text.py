"""Keep ``${...}`` in a path or another text when a configuration is made again of plain values.

OmegaConf takes such a text for a reference unless it is escaped.  fairseq resolves a configuration,
which removes the escapes, and makes another one of the result: before it trains
(fairseq_cli/hydra_train.py:45) and through each checkpoint (trainer.py:405, checkpoint_utils.py:358).
"""

import re
import sys
from typing import Any

from fairseq import trainer
from omegaconf import OmegaConf

from megalodon_tasks.fairseq_compat.patching import training_modules


def install() -> None:
    """Patch what resolves a configuration, also where this plugin is imported only then."""
    modules: list[Any] = [trainer, sys.modules.get("fairseq_cli.hydra_train")]
    for module in filter(None, modules):
        module.OmegaConf = LiteralOmegaConf
    trains: list[Any] = training_modules()
    for module in trains:
        module.OmegaConf = _ResolvedOmegaConf


def literal(text: str) -> str:
    """Write ``text`` so that OmegaConf gives it back as it is."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


class LiteralOmegaConf(OmegaConf):
    """OmegaConf whose plain containers become the same configuration again."""

    @staticmethod
    def to_container(*args: Any, **kwargs: Any) -> Any:
        """Return what OmegaConf does, with each ``${`` escaped."""
        return _escaped(OmegaConf.to_container(*args, **kwargs))


class _ResolvedOmegaConf(OmegaConf):
    """OmegaConf for the settings of logging, which fairseq takes as they are written (train.py:61)."""

    @staticmethod
    def to_container(cfg: Any, **kwargs: Any) -> Any:
        """Return what OmegaConf does, without escapes."""
        return OmegaConf.to_container(cfg, **{**kwargs, "resolve": True})


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return literal(value) if isinstance(value, str) else value
