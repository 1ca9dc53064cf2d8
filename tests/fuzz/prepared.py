"""Prepared data that contradicts itself: each field of a manifest, and the numbers in its files."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.files import run_in_copy
from tests.fuzz.outcomes import Case

_WRONG = {
    "a text": "seven", "negative": -7, "NaN": float("nan"), "huge": 10**30, "a list": [[]],
    "an object": {"a": {}}, "a path out": "../secret",
}  # fmt: skip
_REMOVED = object()
# What nothing depends on but the story of the data, which may be any JSON.
_FREE = ("source", "benchmark")
_NAMES = ("classes", "vocabulary", "words_rule")


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each value in nested containers, of long lists only the ends."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for place in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from leaves(value[place], (*path, place))


def changed(content: Any, path: tuple, value: Any) -> Any:
    """Return a copy of ``content`` with another value at ``path``."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is _REMOVED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def with_manifest(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the manifest of the prepared data in ``folder``."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def with_numbers(folder: Path, name: str, dtype: str, place: int, value: int) -> None:
    """Change one number in a file, and its checksum in the manifest."""
    path = folder / name
    numbers = np.fromfile(path, dtype)
    numbers[place] = value
    numbers.tofile(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with_manifest(folder, lambda c: changed(c, ("files", name, "sha256"), digest))


# bench -> file, dtype, place, values that its reader cannot mean
NUMBERS = {
    "classifier": (
        ("test.labels.bin", "<i8", 3, (-1, 3, 2**62)),
        ("test.inputs.bin", "u1", 5, (11, 255)),
        ("test.inputs.offsets.bin", "<i8", 1, (-1, 0, 10**6, 2**62)),
        ("test.inputs.offsets.bin", "<i8", -1, (1, 10**6)),
    ),
    "language model": (("test.bin", "<u2", 7, (260, 65535)),),
    "translator": (("test.en-de.en.bin", "<u2", 2, (60_000,)),),
}


def cases(bench: str, words: tuple[str, ...], template: Path) -> Iterator[Case]:
    """Yield the cases of a command on the prepared data in ``template``."""
    content = json.loads((template / "data" / "manifest.json").read_text())
    name = f"{bench}: {words[0]}"
    for path in leaves(content):
        old = functools.reduce(lambda place, key: place[key], path, content)
        possible = {"missing": _REMOVED, "null": None}
        for what, value in {**_WRONG, **possible}.items():
            if value == old:
                continue
            change = functools.partial(
                with_manifest,
                Path("data"),
                functools.partial(changed, path=path, value=value),
            )
            run = functools.partial(run_in_copy, template, words, change)
            named = isinstance(value, str) and isinstance(old, str) and set(_NAMES) & set(path)
            refused = path[0] not in _FREE and what not in possible and not named
            yield Case(f"{name}, {'.'.join(map(str, path))} is {what}", run, refused)
    for file, dtype, place, values in NUMBERS.get(bench, ()):
        for value in values:
            change = functools.partial(with_numbers, Path("data"), file, dtype, place, value)
            run = functools.partial(run_in_copy, template, words, change)
            yield Case(f"{name}, number {place} of {file} is {value}", run, True)
