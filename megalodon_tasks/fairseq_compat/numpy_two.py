"""Give fairseq what NumPy 2 removed: ``--num-batch-buckets`` and ``--sample-break-mode eos``.

data_utils.py:877 passes ``interpolation`` to ``np.percentile``, which is now ``method``;
token_block_dataset.py:125 and language_pair_dataset.py:292 take ``np.compat.long``, Python's ``int``.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fairseq.data import bucket_pad_length_dataset
from fairseq.data.audio import raw_audio_dataset

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Patch where lengths are put into buckets, and add the type to NumPy where it is missing."""
    for module in (bucket_pad_length_dataset, raw_audio_dataset):
        wrap(module, "get_buckets", _buckets)
    if not hasattr(np, "compat"):
        np.compat = SimpleNamespace(long=int)  # pyright: ignore[reportAttributeAccessIssue]


def _buckets(stock: Callable, sizes: Any, num_buckets: int) -> np.ndarray:
    shares = np.linspace(0, 100, num_buckets + 1)[1:]
    return np.unique(np.percentile(sizes, shares, method="lower"))
