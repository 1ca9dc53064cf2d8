"""Dataclasses of JSON: what fits the declared types, and what does not."""

from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest

from megalodon_tasks.data.typed import typed


class Size(TypedDict):
    bytes: int


@dataclass
class Item:
    count: int
    scale: float = 1.0
    words: int | None = None
    names: tuple[str, ...] = ()
    sizes: dict[str, Size] = field(default_factory=dict)
    starts: list[int] | None = None
    done: bool = False
    story: dict[str, Any] = field(default_factory=dict)


WHOLE = {"count": 3, "scale": -2, "words": None, "names": ["a"], "sizes": {"x": {"bytes": 0}},
         "starts": [0, 2], "done": True, "story": {"any": [None]}}  # fmt: skip


def test_what_fits_is_taken():
    assert typed(Item, WHOLE) == Item(**WHOLE)
    assert typed(Item, {"scale": 0.5}, count=-1) == Item(-1, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", -1), ("count", True), ("count", 1.0), ("count", None), ("count", 2**63),
        ("scale", float("nan")), ("scale", float("-inf")), ("scale", "1"), ("scale", True),
        ("words", "many"), ("names", "abc"), ("names", [1]), ("names", None), ("sizes", []),
        ("sizes", {"x": 3}), ("sizes", {"x": {}}), ("sizes", {"x": {"bytes": 1, "more": 2}}),
        ("starts", [0, -1]), ("starts", {"a": 1}), ("done", 1), ("story", []), ("unknown", 1),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, value):
    with pytest.raises(TypeError, match=name):
        typed(Item, {**WHOLE, name: value})


@pytest.mark.parametrize("content", [{}, [], None, "text"])
def test_what_is_no_object_or_lacks_a_field_is_refused(content):
    with pytest.raises(TypeError):
        typed(Item, content)
