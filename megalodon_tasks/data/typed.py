"""Make dataclasses of JSON that anybody may have changed."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T")


def typed(cls: type[T], content: Mapping[str, Any], **known: Any) -> T:
    """Return ``cls(**known, **content)``.

    Raises ``TypeError`` for a field that is missing, unknown, or of another type than declared; whole
    numbers are counts, so a negative one is of another type, as is a number that is not finite.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{content!r} where an object is needed")
    made, hints = cls(**known, **content), get_type_hints(cls)
    for field in fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name in content:
            _check(field.name, content[field.name], hints[field.name])
    return made


def _check(name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        raise TypeError(f"{name} is {str(value)[:60]!r}, not {getattr(hint, '__name__', hint)}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is types.UnionType:
        return any(_fits(value, option) for option in inner)
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(_fits(value[name], hint) for name, hint in hints.items())
        )
    if kind in (list, tuple):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if kind is float:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    return kind is Any or isinstance(value, kind)
