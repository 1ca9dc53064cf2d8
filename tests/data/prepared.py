"""Small prepared data sets for tests."""

import numpy as np

from megalodon_tasks.data.storage import ColumnSpec, DatasetSpec, PreparedDataset
from megalodon_tasks.data.storage_writer import write_dataset


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


def write_items(folder, spec, splits):
    """Write ``{split: items}`` and open the result."""
    with write_dataset(folder, spec) as writer:
        for name, items in splits.items():
            with writer.split(name) as split:
                for label, sequences in items:
                    split.add(label, **sequences)
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
