"""Small prepared data sets for tests."""

import os
from contextlib import contextmanager

import numpy as np
import pytest

from megalodon_tasks.data.manifest import is_prepared
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.data.writer import publish, unfinished_folder, write_unpublished


def spec_of(**changes):
    """Three classes of sequences of up to 11 tokens, unless ``changes`` says otherwise."""
    fields = {
        "benchmark": "listops",
        "kind": "tokens",
        "columns": {"inputs": ColumnSpec("uint8")},
        "classes": ("one", "two", "three"),
        "vocabulary": tuple(f"symbol{token}" for token in range(11)),
        "source": {"made": "by a test"},
    }
    return DatasetSpec(**{**fields, **changes})


def random_items(count, spec, seed=0, shortest=1, longest=9):
    """Pairs (label, {column: sequence}); token 0 does not occur."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        sequences = {}
        for name, column in spec.columns.items():
            length = column.length or rng.integers(shortest, longest + 1)
            high = len(spec.vocabulary) or np.iinfo(column.dtype).max
            sequences[name] = rng.integers(1, high, length).astype(column.dtype)
        items.append((int(rng.integers(len(spec.classes))), sequences))
    return items


def reader_of(records, seen=None, stop_at=None):
    """Yield ``records`` from any number on; note what was read, or stop as Ctrl-C does."""

    def read(first, on_bytes):
        for number, record in enumerate(records[first:], first):
            if number == stop_at:
                raise KeyboardInterrupt
            if seen is not None:
                seen.append(number)
            yield record

    return read


def write_form(folder, form, splits, identity=None, rejects=None):
    """Write the records that ``{split: read}`` yields; ``form`` may be made from the hidden folder."""
    with unfinished_folder(folder, identity or {}) as inside:
        form = form(inside) if callable(form) else form
        if not is_prepared(inside):
            rejects = Rejects() if rejects is None else rejects
            write_unpublished(
                inside, form, splits, rejects, lambda: form.source, lambda count: None
            )
        publish(folder, inside)


def write_items(folder, spec, splits):
    """Write ``{split: items}`` and open the result."""
    write_form(folder, spec, {name: reader_of(items) for name, items in splits.items()})
    return PreparedDataset(folder)


def write_random(folder, counts=(40, 12, 12), **changes):
    """Write train, valid and test of random items and open the result."""
    spec = spec_of(**changes)
    names = ("train", "valid", "test")
    splits = {
        name: random_items(count, spec, seed)
        for seed, (name, count) in enumerate(zip(names, counts, strict=True))
    }
    return write_items(folder, spec, splits)


class Killed(BaseException):
    """Stands for a kill."""


@contextmanager
def killed_at(monkeypatch, step):
    """Kill the block at the given move of a file from one folder to another."""
    replace, steps = os.replace, []

    def replace_or_die(source, target):
        if os.path.dirname(source) != os.path.dirname(target):  # not one of an atomic file
            steps.append(source)
        if len(steps) == step:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_or_die)
        with pytest.raises(Killed):
            yield


def text_of(tokens):
    """The bytes that the tokens of a text (uint8, with their end token) stand for."""
    return tokens[:-1].tobytes()
