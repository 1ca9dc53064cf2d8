"""Build from a checkpoint only components that evaluate none of its settings as code.

``load_model_ensemble_and_task`` builds the model and the task that the settings in a file name,
whichever fairseq registers (checkpoint_utils.py:444), and several pass a setting to ``eval``
(models/fconv.py:123, models/transformer_lm.py:283, utils.py:791).  ``weights_only`` does not help: the
settings are plain text.  The patch builds classes of this project and those of :data:`ALLOWED`, and
checks the sizes in the settings against the tensors in the file before anything is allocated.
Optimizers and schedulers are never built from a file.

A plugin of another project calls :func:`trust` with the name of its package to have its own classes
built too.  ``MEGALODON_TRUST_CHECKPOINTS=1`` in the environment turns off the checks of fairseq's own
commands, for files that the user made with other models of fairseq.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.model_size import count_numbers
from megalodon_tasks.fairseq_compat.patching import wrap

# Modules of fairseq whose registered classes read their settings as plain values.
ALLOWED = {
    "fairseq.criterions.adaptive_loss",
    "fairseq.criterions.cross_entropy",
    "fairseq.criterions.label_smoothed_cross_entropy",
    "fairseq.criterions.sentence_prediction",
    "fairseq.tasks.language_modeling",
    "fairseq.tasks.sentence_prediction",
    "fairseq.tasks.translation",
}
TRUST_VARIABLE = "MEGALODON_TRUST_CHECKPOINTS"
_trusted = {__name__.split(".")[0]}


def install() -> None:
    """Check every checkpoint from which fairseq builds a model."""
    wrap(checkpoint_utils, "load_model_ensemble_and_task", _after_checks)


def trust(package: str) -> None:
    """Let checkpoints name the models, tasks and criteria that ``package`` registers."""
    _trusted.add(package)


def check_components(path: str, state: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if the settings in ``state`` name what must not be built from a file.

    state: a checkpoint as ``load_checkpoint_to_cpu`` returns it.  path: its file, for the message.
    """
    if state.get("args") is not None or not isinstance(state.get("cfg"), DictConfig):
        raise UserError(
            f"{path}: its settings are not those of a training run of this project; name a file that "
            "such a run wrote, such as checkpoint_best.pt"
        )
    for section in ("model", "task", "criterion"):
        name = _name(state["cfg"].get(section))
        component = _registered(section, name)
        if component is None or not _is_trusted(component):
            raise UserError(
                f"{path}: its settings name the {section} {name!r}, which is not one of this project; "
                "building it could run code that the settings hold.  Use a checkpoint that a training "
                f"run of this project wrote; {TRUST_VARIABLE}=1 in the environment lets fairseq's own "
                "commands load one that you made with another model"
            )


def _name(section: Any) -> str | None:
    """Return the name of a component; None where fairseq could take it from elsewhere."""
    if not isinstance(section, DictConfig) or isinstance(section.get("task"), str):
        return None
    name = section.get("_name")
    return name if isinstance(name, str) else None


def _registered(section: str, name: str | None) -> type | None:
    if section == "model":
        return ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
    return {"task": TASK_REGISTRY, "criterion": CRITERION_REGISTRY}[section].get(name)


def _is_trusted(component: type) -> bool:
    module = component.__module__
    return module in ALLOWED or any(
        module == package or module.startswith(f"{package}.") for package in _trusted
    )


def check_sizes(path: str, state: Mapping[str, Any], task: Any) -> None:
    """Raise :class:`UserError` if the settings ask for a larger model than the file has tensors for.

    Nothing is allocated: the model is built without memory, on torch's ``meta`` device.
    """
    settings, tensors = state["cfg"].model, state["model"]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: holds no model: not all of its entries are tensors")
    check_depth(path, settings, len(tensors))
    needed = count_numbers(
        lambda: task.build_model(copy.deepcopy(settings), from_checkpoint=True), f"{path}: "
    )
    # a tensor may repeat its numbers (stride 0) and pretend to a size that the file does not have
    stored = sum(
        min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in tensors.values()
    )
    if needed > 2 * stored:
        raise UserError(
            f"{path}: does not fit the model that its settings name, which has {needed:,} numbers; the "
            f"file holds {stored:,}"
        )


def check_depth(path: Any, settings: Mapping[str, Any], tensors: int) -> None:
    """Raise :class:`UserError` if a number of layers in ``settings`` exceeds the number of tensors."""
    for field, value in settings.items():
        # fairseq converts text that is a number
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if "layers" in str(field) and isinstance(number, int) and number > tensors:
            raise UserError(
                f"{path}: its settings say {field}={number}, but it holds {tensors:,} tensors: the file "
                "is damaged, or its settings are those of another model"
            )


def _after_checks(
    stock: Callable,
    filenames: list[str],
    arg_overrides: dict[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict[str, Any] | None = None,
) -> tuple[list, Any, Any]:
    if os.environ.get(TRUST_VARIABLE) == "1":
        return stock(filenames, arg_overrides, task, strict, suffix, num_shards, state)
    if num_shards != 1:
        raise UserError(
            f"{', '.join(filenames)}: {num_shards} shards: a checkpoint is loaded from one file"
        )
    models, cfg = [], None
    for filename in filenames:
        loaded = state
        if loaded is None:
            name = checkpoint_utils.get_maybe_sharded_checkpoint_filename(filename, suffix, 0, 1)
            loaded = checkpoint_utils.load_checkpoint_to_cpu(name, arg_overrides)
        check_components(filename, loaded)
        if task is None:
            task = tasks.setup_task(loaded["cfg"].task, from_checkpoint=True)
        check_sizes(filename, loaded, task)
        built, cfg, task = stock([filename], arg_overrides, task, strict, suffix, state=loaded)
        models += built
    return models, cfg, task
