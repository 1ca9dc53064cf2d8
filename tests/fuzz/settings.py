"""Settings with one wrong value: each field of each recipe, and of each component that it names."""

import copy
import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fairseq.dataclass.initialize import add_defaults
from omegaconf import ListConfig, OmegaConf

from tests.fuzz.outcomes import Case
from tests.fuzz.runs import Run, start

COMPONENTS = ("model", "task", "criterion", "optimizer", "lr_scheduler")

# Values as on a command line.  The first are wrong in every field of the kind.
_ANYWHERE = {"reference": "${nope}", "mapping": "{a:1}"}
_NO_NUMBER = {**_ANYWHERE, "empty": "''", "word": "seven", "list": "[1,2]"}
_WRONG = {
    "number": {**_NO_NUMBER, "nan": "nan", "inf": "inf", "-inf": "-inf", "huge": f"1{'0' * 300}"},
    "switch": {**_NO_NUMBER, "nan": "nan"},
    "text": {**_ANYWHERE, "list": "[1,2]"},
    "list": {**_ANYWHERE, "word": "[seven]", "nan": "[nan]", "nested": "[[1]]", "negative": "[-7]"},
}
_POSSIBLE = {
    "number": {"zero": "0", "many": "1000000000", "tiny": "1e-30", "nothing": "null"},
    "switch": {"many": "7", "nothing": "null"},
    "text": {"empty": "''", "word": "seven", "number": "7", "nothing": "null"},
    "list": {"empty": "[]", "zero": "[0]", "many": "[1000000000]", "nothing": "null"},
}

# A run of so many updates, or compiled blocks, are what was asked for, and take their time.
_MEANT = {("max_update", "many"), ("compile_blocks", "many")}


@dataclass(frozen=True)
class Field:
    """A setting: ``section.name``, its kind (a key of ``_WRONG``), and whether it may be negative."""

    section: str
    name: str
    kind: str
    signed: bool
    owner: type | None

    def values(self) -> Iterator[tuple[str, str, bool]]:
        """Yield what is wrong, the value, and whether it must be refused."""
        for what, value in _WRONG[self.kind].items():
            yield what, value, True
        for what, value in _POSSIBLE[self.kind].items():
            yield what, value, False
        if self.kind == "number":
            yield "negative", "-7", not self.signed


def _kind_of(node: Any, value: Any) -> str:
    kind = node._metadata.ref_type
    if kind not in (int, float, bool, str):
        kind = type(value)
    if isinstance(node, ListConfig) or kind is ListConfig:
        return "list"
    return {int: "number", float: "number", bool: "switch"}.get(kind, "text")


def _field(config: Any, section: str, name: str) -> Field:
    part = config[section]
    owner = OmegaConf.get_type(part)
    default = {f.name: f.default for f in fields(owner)}.get(name) if owner is not dict else None
    signed = isinstance(default, (int, float)) and default < 0
    value = None if OmegaConf.is_missing(part, name) else part[name]
    # the presets of a model, and the tasks of a family, inherit their fields
    bases = (
        base for base in reversed(owner.__mro__) if name in base.__dict__.get("__annotations__", ())
    )
    kind = _kind_of(part._get_node(name), value)
    return Field(section, name, kind, signed, next(bases, owner))


def fields_of(run: Run, config: Any) -> tuple[list[Field], list[Field]]:
    """Return the fields that the recipe's files state, and the other ones of its components."""
    whole = copy.deepcopy(config)
    add_defaults(whole)
    stated = {
        (section, name)
        for section, part in run.layers().items()
        for name in (part if section != "hydra" else ())
    }
    every = {(section, name) for section in COMPONENTS for name in whole[section]}
    return (
        [_field(whole, *place) for place in sorted(stated)],
        [_field(whole, *place) for place in sorted(every - stated)],
    )


def cases(run: Run, folder: Path, data: Path, seen: set, draw: random.Random) -> Iterator[Case]:
    """Yield the cases of a recipe.

    seen: the fields, by the class that declares them, for which another recipe has had every value; of
    these the fields that this recipe states get two values each, and others none.
    """
    config = run.compose(folder / "run", data)
    stated, others = fields_of(run, config)
    for field in (*stated, *others):
        values, key = list(field.values()), (field.owner, field.section, field.name)
        if key in seen:
            values = draw.sample(values, 2) if field in stated else []
        seen.add(key)
        for what, value, refused in values:
            if (field.name, what) in _MEANT:
                continue
            word = f"{field.section}.{field.name}={value}"
            name = f"{run}: {field.section}.{field.name} is {what}"
            yield Case(name, functools.partial(start, config, [word]), refused)
