"""Replace fairseq's two compiled data modules where they are missing.

data/data_utils.py:313 and data/token_block_dataset.py:90 import ``data_utils_fast`` and
``token_block_utils_fast``, which exist only where fairseq came as a wheel for this Python or was
compiled.  NumPy does the same: blocks at about the same speed, batches of a million sentences in about
a second.
"""

import importlib
import sys

from megalodon_tasks.fairseq_compat import numpy_batches, numpy_blocks

_REPLACEMENTS = {
    "fairseq.data.data_utils_fast": numpy_batches,
    "fairseq.data.token_block_utils_fast": numpy_blocks,
}


def install() -> None:
    """Register NumPy's version of each module that cannot be imported."""
    for name, replacement in _REPLACEMENTS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = replacement
