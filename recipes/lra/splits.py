"""Assign items to splits: the seeded random split of S4's and Mega's code, or in order."""

from collections.abc import Mapping

import numpy as np
import torch

SEED = 42


def random_split(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Assign ``sum(sizes)`` items: for each name the sorted places of its items, int64.

    Which items go where is what ``torch.utils.data.random_split`` with a generator of seed 42 gives for
    the same sizes in the same order.  The order within a split means nothing, as training shuffles.
    """
    generator = torch.Generator().manual_seed(SEED)
    total = sum(sizes.values())
    parts = torch.utils.data.random_split(range(total), list(sizes.values()), generator)
    return {
        name: np.sort(np.asarray(part.indices, dtype=np.int64))
        for name, part in zip(sizes, parts, strict=True)
    }


def split_in_order(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Assign items in their order: the first ones to the first name, and so on."""
    places = np.arange(sum(sizes.values()))
    parts = np.split(places, np.cumsum(list(sizes.values()))[:-1])
    return dict(zip(sizes, parts, strict=True))
