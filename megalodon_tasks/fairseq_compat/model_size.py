"""Refuse sizes of a model that no machine can hold, without allocating anything.

fairseq builds whatever the settings say: a number with a few zeros too many ends in an error of the
allocator, or fills the memory for minutes until the system ends the process.
"""

import copy
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fairseq import models
from omegaconf.errors import OmegaConfBaseException

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap

# What building a model raises for sizes and types that no model can have.
_BUILDING_ERRORS = (
    AssertionError, OverflowError, RuntimeError, TypeError, OmegaConfBaseException,
)  # fmt: skip
_LAYERS = ("num_layers", "decoder_layers")  # settings that repeat a part of the model
_BYTES = 4  # of a parameter, when a model is built


def install() -> None:
    """Check the size of every model of this project before it is built to be trained."""
    wrap(models, "build_model", _within_memory)


def count_numbers(build: Callable[[], torch.nn.Module], where: str = "") -> int:
    """Count the parameters and other numbers of the model that ``build`` makes, without memory.

    Raises :class:`UserError` that begins with ``where`` if no model can be built.
    """
    try:
        with torch.device("meta"):
            model = build()
    except _BUILDING_ERRORS as error:  # OmegaConf's may be a ValueError too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where}no model can be built from its settings: {reason}") from error
    except ValueError as error:
        raise UserError(f"{where}{error}") from error
    return sum(t.numel() for t in itertools.chain(model.parameters(), model.buffers()))


def _within_memory(stock: Callable, cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
    name = getattr(cfg, "_name", None)
    ours = getattr(models.ARCH_MODEL_REGISTRY.get(name), "__module__", "").split(".")[0]
    takes_memory = torch.get_default_device().type != "meta"
    if takes_memory and not from_checkpoint and ours == __name__.split(".")[0]:
        _check_memory(lambda settings: stock(settings, task), cfg)
    return stock(cfg, task, from_checkpoint)


def _check_memory(build: Callable[[Any], torch.nn.Module], cfg: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for a model that is larger than the memory of this machine.

    Its size follows from those with one and with two layers: there may be any number of layers.
    """
    layers = {name: cfg[name] for name in _LAYERS if isinstance(cfg.get(name), int)}

    def size(**counts: int) -> int:
        settings: Any = copy.deepcopy(cfg)
        for name, count in counts.items():
            settings[name] = count
        return count_numbers(lambda: build(settings))

    few = {name: min(count, 1) for name, count in layers.items()}
    smallest = size(**few)
    each = {n: size(**few | {n: 2}) - smallest for n, count in layers.items() if count > 1}
    needed = _BYTES * (smallest + sum((layers[n] - 1) * numbers for n, numbers in each.items()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"the model of these settings takes {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB of memory; choose smaller sizes in the section model"
        )
