"""Check the data of fairseq's translation task when it is loaded.

fairseq reads ``dict.txt`` and the binarised pairs without a look at either: a damaged dictionary ends in
a bare ``ValueError``, a token beyond it in an ``IndexError`` of the embedding, and
``manifest.json``, with the checksums of all files, is not read.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.tasks.translation import TranslationTask

from megalodon_tasks.data.dictionary import explained
from megalodon_tasks.data.manifest import MANIFEST, Manifest
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Patch how dictionaries and pairs are loaded."""
    wrap(Dictionary, "add_from_file", _with_place)
    wrap(TranslationTask, "setup_task", _with_data)
    wrap(TranslationTask, "load_dataset", _checked)


@user_errors()
def _with_place(stock: Callable, dictionary: Dictionary, f: Any) -> None:
    if isinstance(f, str):
        explained(Path(f), lambda: stock(dictionary, f))
    else:
        stock(dictionary, f)


def _with_data(stock: Callable, task: type, cfg: Any, **kwargs: Any) -> Any:
    if not cfg.data:
        raise UserError(
            f"task.data={cfg.data!r} names no folder of pairs; prepare one with fairseq-preprocess or "
            "megalodon prepare translation/wmt16_en_de"
        )
    return stock(task, cfg, **kwargs)


@user_errors()
def _checked(stock: Callable, task: TranslationTask, split: str, *args: Any, **kwargs: Any) -> None:
    for folder in utils.split_paths(task.cfg.data):
        if os.path.lexists(os.path.join(folder, MANIFEST)):
            Manifest.read(folder, "pairs")
    stock(task, split, *args, **kwargs)
    pairs = task.datasets[split]
    for dataset, dictionary in ((pairs.src, task.src_dict), (pairs.tgt, task.tgt_dict)):
        _check_tokens(split, dataset, dictionary)


def _check_tokens(split: str, dataset: Any, dictionary: Dictionary) -> None:
    """Raise ``ValueError`` for a token that the dictionary does not have; other data sets pass."""
    stored = getattr(dataset, "_bin_buffer", None)
    largest = 0 if stored is None else np.frombuffer(stored, dataset._index.dtype).max(initial=0)
    if largest >= len(dictionary):
        raise ValueError(
            f"split {split!r}: token {largest} is out of range: the dictionary has {len(dictionary)} "
            "symbols; use the one that the data was prepared with, or prepare the data again"
        )
