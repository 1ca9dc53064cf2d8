"""Refuse values that no setting of their kind can have, before anything is read or built.

OmegaConf checks types only, and raises errors of its own where fairseq fills in the defaults of a
component; fairseq looks up names of components without a check, takes any number, and fails, divides by
zero or trains on NaN much later.
"""

import difflib
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megalodon_tasks.errors import UserError

# What training needs one of each of; the other components may be absent.
COMPONENTS = ("task", "model", "criterion", "optimizer", "lr_scheduler")
_OTHERS = ("common", "distributed_training", "dataset", "optimization", "checkpoint", "ema")
# Whole numbers beyond are not exact as double-precision numbers, others not finite in single precision.
LARGEST_INTEGER, LARGEST_FLOAT = 2**53, 3.4e38
# What is divided by, or of which nothing would be left at 0.
_POSITIVE = (
    "checkpoint.save_interval", "common.log_interval", "dataset.batch_size",
    "dataset.batch_size_valid", "dataset.max_tokens", "dataset.max_tokens_valid",
    "dataset.required_batch_size_multiple", "dataset.validate_interval", "optimization.update_freq",
    "task.chunk_parallel", "task.eval_multiple", "task.eval_streams", "task.max_source_positions",
    "task.max_target_positions", "task.required_seq_len_multiple", "task.tokens_per_sample",
)  # fmt: skip
_LIMITS = {
    **dict.fromkeys(_POSITIVE, (1, LARGEST_INTEGER)),
    "common.seed": (0, 2**32 - 1),
    "dataset.num_workers": (0, 1024),
}


def with_defaults(add_defaults: Callable[[Any], None], cfg: Any) -> None:
    """Fill in the defaults of the components that ``cfg`` names, and check every value.

    Raises :class:`UserError` for a component that there is not, an unknown field, a value of another
    type, an interpolation that leads nowhere, and a number that is out of range.
    """
    for section in COMPONENTS:
        _check_name(section, cfg.get(section))
    try:
        add_defaults(cfg)
        OmegaConf.to_container(cfg, resolve=True)
        for section in (*COMPONENTS, *_OTHERS):
            if isinstance(
                cfg[section], DictConfig
            ):  # models of fairseq's first kind have a Namespace
                _check_numbers(section, cfg[section])
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, cfg)) from None


def _check_name(section: str, part: Any) -> None:
    known = {"task": TASK_REGISTRY, "model": {**MODEL_REGISTRY, **ARCH_MODEL_REGISTRY}}
    names = known[section] if section in known else REGISTRIES[section]["registry"]
    try:
        name = part if isinstance(part, str) else getattr(part, "_name", None)
    except OmegaConfBaseException as error:
        raise UserError(f"{section}._name: {_first_line(error)}") from None
    if not isinstance(name, str) or name not in names:
        near = difflib.get_close_matches(str(name), names, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known are {_few(names)}"
        raise UserError(f"{section}._name={name!r}: there is no {section} of this name; {advice}")


def _few(names: Any) -> str:
    ours_first = sorted(names, key=lambda n: (not n.startswith("megalodon"), n))
    more = f" and {len(ours_first) - 20} more" if len(ours_first) > 20 else ""
    return ", ".join(ours_first[:20]) + more


def _first_line(error: OmegaConfBaseException) -> str:
    return str(error).strip().splitlines()[0]


def _explain(error: OmegaConfBaseException, cfg: Any) -> str:
    """Return what is wrong, and where: fairseq checks a component without the name of its section."""
    field = error.full_key or ""
    places = [f"{section}.{field}" for section in COMPONENTS if field in cfg[section]]
    return ": ".join(filter(None, (" or ".join(places) or field, _first_line(error))))


def _check_numbers(section: str, part: DictConfig) -> None:
    defaults = dict(_defaults(section, part))
    for name, value in part.items():
        place, default = f"{section}.{name}", defaults.get(name)
        entries = value if isinstance(value, ListConfig) else [value]
        if any(isinstance(entry, ListConfig) for entry in entries):
            raise UserError(f"{place}={value} is a list of lists, where a list is expected")
        if not entries and isinstance(default, str):  # an interpolation
            raise UserError(f"{place} is an empty list; leave it out, or give it a number")
        if _are_numbers(default) and not _are_numbers(value):
            raise UserError(f"{place}={value} is not a list of numbers, such as {default}")
        for number in entries:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            least, most = _LIMITS.get(place, _usual_limits(number, default))
            if number != default and not least <= number <= most:  # NaN is not either
                shown = textwrap.shorten(str(value), 60)
                must = f"at least {least:g}" if number < least else f"at most {most:g}"
                must = must if math.isfinite(number) else "finite"
                raise UserError(f"{place}={shown} must be {must}")


def _are_numbers(value: Any) -> bool:
    """Return whether ``value`` is a list of at least one number, and nothing else."""
    entries = list(value) if isinstance(value, (list, ListConfig)) else []
    return bool(entries) and all(type(entry) in (int, float) for entry in entries)


def _usual_limits(number: float, default: Any) -> tuple[float, float]:
    """Limit a number that has no meaning below 0, unless its default has (-1 often stands for none)."""
    most = LARGEST_INTEGER if isinstance(number, int) else LARGEST_FLOAT
    return (-most if isinstance(default, (int, float)) and default < 0 else 0), most


def _defaults(section: str, part: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the name and default value of each field that is declared."""
    declared = OmegaConf.get_type(part)
    if not is_dataclass(declared):
        declared = FairseqConfig.__dataclass_fields__.get(section)
        declared = getattr(declared, "default", None)
    for field in fields(declared) if is_dataclass(declared) else ():
        factory = field.default_factory
        yield field.name, field.default if factory is MISSING else factory()
