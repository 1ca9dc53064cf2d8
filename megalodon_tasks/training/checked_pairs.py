"""Check the data of fairseq's translation task when it is loaded.

fairseq reads ``dict.txt`` and the binarised pairs without a look at either: a damaged dictionary ends in
a bare ``ValueError``, a token beyond it in an ``IndexError`` of the embedding, and
``manifest.json``, with the checksums of all files, is not read.
"""

import fnmatch
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.registry import REGISTRIES
from fairseq.tasks.translation import TranslationTask

from megalodon_tasks.data.dictionary import explained
from megalodon_tasks.data.manifest import MANIFEST, Manifest, damaged
from megalodon_tasks.data.typed import typed
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Patch how dictionaries and pairs are loaded."""
    wrap(Dictionary, "add_from_file", _with_place)
    wrap(TranslationTask, "setup_task", _with_checks)
    wrap(TranslationTask, "load_dataset", _checked)


@user_errors()
def _with_place(stock: Callable, dictionary: Dictionary, f: Any) -> None:
    if isinstance(f, str):
        explained(Path(f), lambda: stock(dictionary, f))
    else:
        stock(dictionary, f)


@dataclass
class PairCount:
    """What the manifest says of a split."""

    items: int


def _with_checks(stock: Callable, task: type, cfg: Any, **kwargs: Any) -> Any:
    if not cfg.data:
        raise UserError(
            f"task.data={cfg.data!r} names no folder of pairs; prepare one with fairseq-preprocess or "
            "megalodon prepare translation/wmt16_en_de"
        )
    tokenizers = REGISTRIES["tokenizer"]["registry"]
    if cfg.eval_bleu and cfg.eval_bleu_detok not in tokenizers:
        raise UserError(
            f"task.eval_bleu_detok={cfg.eval_bleu_detok!r}: there is no such tokenizer; known are "
            f"{', '.join(sorted(tokenizers))}"
        )
    try:
        data_utils.post_process("", cfg.eval_bleu_remove_bpe)
    except RuntimeError:  # it is not implemented
        raise UserError(
            f"task.eval_bleu_remove_bpe={cfg.eval_bleu_remove_bpe!r} is unknown; give '@@ ' or "
            "sentencepiece"
        ) from None
    return stock(task, cfg, **kwargs)


@user_errors()
def _checked(stock: Callable, task: TranslationTask, split: str, *args: Any, **kwargs: Any) -> None:
    for folder in map(Path, utils.split_paths(task.cfg.data)):
        if os.path.lexists(folder / MANIFEST):
            _check_counts(Manifest.read(folder, "pairs"))
    stock(task, split, *args, **kwargs)
    pairs = task.datasets[split]
    for dataset, dictionary in ((pairs.src, task.src_dict), (pairs.tgt, task.tgt_dict)):
        _check_tokens(split, dataset, dictionary)


def _check_counts(manifest: Manifest) -> None:
    """Raise ``ValueError`` unless the manifest counts the pairs that its files hold."""
    if manifest.form:
        raise damaged(manifest.folder, TypeError("form is not empty"))
    for name, counts in manifest.splits.items():
        try:
            items = typed(PairCount, counts).items
        except TypeError as error:
            raise damaged(manifest.folder, error) from None
        for file in fnmatch.filter(manifest.files, f"{name}.*-*.*.idx"):
            found = len(MMapIndexedDataset(str(manifest.folder / file.removesuffix(".idx"))))
            if found != items:
                raise ValueError(
                    f"{manifest.folder}: {file} has {found} items, {MANIFEST} says {items}; prepare the "
                    "data again"
                )


def _check_tokens(split: str, dataset: Any, dictionary: Dictionary) -> None:
    """Raise ``ValueError`` for a token that the dictionary does not have; other data sets pass."""
    stored = getattr(dataset, "_bin_buffer", None)
    largest = 0 if stored is None else np.frombuffer(stored, dataset._index.dtype).max(initial=0)
    if largest >= len(dictionary):
        raise ValueError(
            f"split {split!r}: token {largest} is out of range: the dictionary has {len(dictionary)} "
            "symbols; use the one that the data was prepared with, or prepare the data again"
        )
