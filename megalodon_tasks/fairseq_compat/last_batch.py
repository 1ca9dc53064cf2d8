"""Read the last batch of a data set.

data/data_utils.py:357 drops the last batch if its size is no multiple of
``dataset.required_batch_size_multiple``, 8 by default, without a word: ``fairseq-generate`` then leaves
out up to a whole batch of sentences of the test split, and a data set smaller than 8 has no batch.  The
setting's own help allows a batch of fewer than N.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from fairseq.data import data_utils

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Append what fairseq left out."""
    wrap(data_utils, "batch_by_size", _with_last)


def _with_last(stock: Callable, indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
    indices = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    batches = list(stock(indices, *args, **kwargs))
    left_out = indices[sum(map(len, batches)) :]
    # With fixed shapes batches are not in the order of the indices, and none is left out.
    return [*batches, left_out] if len(left_out) else batches
