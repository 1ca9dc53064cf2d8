"""What a sweep is asked for: a recipe and the values of each field, kept in ``SAVE/sweep.json``."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megalodon_tasks.files import atomic_file

FILE = "sweep.json"
CHUNK_SIZE, SEED = "model.chunk_size", "common.seed"
FULL = "full"


@dataclass(frozen=True)
class Run:
    """One point of the grid: ``settings`` maps the swept fields to their values."""

    name: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Request:
    """``axes`` maps each swept field to its values, ``fixed`` the fields that are the same in all runs.

    Values are in the grammar of hydra's overrides (``null`` for full attention).
    """

    recipe: str
    data: str
    demo: bool
    fixed: dict[str, str]
    axes: dict[str, list[str]]

    def runs(self) -> list[Run]:
        """The grid, the last field fastest."""
        points = itertools.product(*self.axes.values())
        return [self._run(dict(zip(self.axes, point, strict=True))) for point in points]

    def _run(self, settings: dict[str, str]) -> Run:
        parts = [f"{short_name(f, self.axes)}-{shown(f, v)}" for f, v in settings.items()]
        return Run(re.sub(r"[^\w.+-]", "", "_".join(parts)), settings)

    def overrides(self, run: Run) -> list[str]:
        """The settings of ``run`` as words for the recipe's script."""
        return [f"{field}={value}" for field, value in {**self.fixed, **run.settings}.items()]


def short_name(field: str, fields: Sequence[str] | dict[str, list[str]]) -> str:
    """The last part of a field's name where that says which of ``fields`` it is."""
    last = field.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in fields) == 1 else field


def shown(field: str, value: str) -> str:
    """A value as tables and names show it."""
    return FULL if field == CHUNK_SIZE and value == "null" else value


def chunk_sizes(words: Sequence[str]) -> list[str]:
    """Numbers of steps, or ``full`` for attention over the whole sequence.

    Raises ``ValueError`` for anything else.
    """
    for word in words:
        if word != FULL and not (word.isdecimal() and int(word) > 0):
            raise ValueError(
                f"--chunk-sizes: {word!r} is no chunk size; give a number of steps or {FULL!r}"
            )
    return ["null" if word == FULL else str(int(word)) for word in words]


def seeds(words: Sequence[str]) -> list[str]:
    """Whole numbers from 0; raises ``ValueError`` for anything else."""
    for word in words:
        if not word.isdecimal():
            raise ValueError(f"--seeds: {word!r} is no seed; give whole numbers from 0")
    return [str(int(word)) for word in words]


def axis(word: str) -> tuple[str, list[str]]:
    """``field=value,value...`` as the field and its values; raises ``ValueError`` without any.

    Commas inside brackets, parentheses and quotes belong to a value.
    """
    field, equals, text = word.partition("=")
    values = [value.strip() for value in _split(text)]
    if not equals or not field or not all(values):
        raise ValueError(f"--sweep {word!r}: write field=value,value,...")
    return field, values


def _split(text: str) -> list[str]:
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += letter
    return values


def read(folder: Path) -> Request:
    """The request of the sweep in ``folder``; raises ``ValueError`` if there is none."""
    file = folder / FILE
    try:
        return Request(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no sweep: {FILE} is missing") from None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); remove it and start the sweep again"
        ) from None


def enter(folder: Path, wanted: Request) -> Request:
    """Start the sweep in ``folder`` or go on with it; return what it now consists of.

    A sweep may be asked for more values of the same fields: what there is stays.  Raises ``ValueError``
    for a folder that holds another sweep or something else.
    """
    if (folder / FILE).is_file():
        wanted = _joined(folder, read(folder), wanted)
    elif folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no sweep; name a new folder, or that of a sweep"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FILE, "w") as stream:
        json.dump(asdict(wanted), stream, indent=1)
        stream.write("\n")
    return wanted


def _joined(folder: Path, found: Request, wanted: Request) -> Request:
    for name in ("recipe", "data", "demo", "fixed"):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if ours != theirs:
            raise ValueError(
                f"{folder} holds another sweep: its {name} is {theirs!r}, wanted {ours!r}; "
                "name another folder"
            )
    if list(found.axes) != list(wanted.axes):
        raise ValueError(
            f"{folder} holds another sweep: it varies {', '.join(found.axes)}, wanted "
            f"{', '.join(wanted.axes)}; name another folder"
        )
    axes = {
        field: list(dict.fromkeys([*values, *wanted.axes[field]]))
        for field, values in found.axes.items()
    }
    return Request(wanted.recipe, wanted.data, wanted.demo, wanted.fixed, axes)
