"""Text and Retrieval from Mega's processed files: the symbols of Mega's dictionary, kept as they are."""

from collections.abc import Iterator, Mapping

import numpy as np

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.preparing import Preparation, from_the_start
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.byte_tokens import END, PAD
from megalodon_tasks.recipes.lra.listops.grammar import OPERATORS
from megalodon_tasks.recipes.lra.mega_tokens import SPLITS, MegaFolder

UNKNOWN = "<unk>"
_SPECIAL = (PAD, END, UNKNOWN)
_END_TOKEN, _UNKNOWN_TOKEN = 1, 2


def mega_preparation(
    folder: MegaFolder, spec: DatasetSpec, title: str, limit: int, rejects: Rejects
) -> Preparation:
    """Prepare ``folder`` with the benchmark, columns and classes of ``spec``.

    Tokens are padding, end, unknown symbol, then the symbols of Mega's dictionary in its order;
    sequences are cut at ``limit`` symbols.  An item with an empty sequence goes to ``rejects``.  Raises
    ``ValueError`` for the dictionary of ListOps and for one of more symbols than 16 bits can number.
    """
    operators = set(OPERATORS) & set(folder.symbols)
    if operators:
        raise ValueError(
            f"{folder.dictionary_path} has the symbols {', '.join(sorted(operators))}: it is the "
            f"dictionary of ListOps, not of {title}"
        )
    vocabulary = (*_SPECIAL, *folder.symbols)
    if len(vocabulary) > 1 << 16:
        raise ValueError(
            f"{folder.dictionary_path} has {len(folder.symbols)} symbols; those of {title} are single "
            "characters, so this is the dictionary of other data"
        )
    column = ColumnSpec("uint8" if len(vocabulary) <= 1 << 8 else "uint16")
    settings = {"tokens": "symbols of Mega's dictionary", "longest": limit}
    spec = DatasetSpec(
        benchmark=spec.benchmark,
        kind=spec.kind,
        columns=dict.fromkeys(spec.columns, column),
        classes=spec.classes,
        vocabulary=vocabulary,
        source={"settings": settings},
    )
    token_of = _token_of(folder)
    splits = {
        split: from_the_start(_read, folder, split, spec.columns, token_of, limit, rejects)
        for split in SPLITS
    }
    return Preparation(title, spec, folder.origins(), splits, rejects)


def _token_of(folder: MegaFolder) -> np.ndarray:
    """Token of each id of the dictionary that may occur, int64."""
    token_of = np.zeros(folder.first_symbol + len(folder.symbols), np.int64)
    token_of[folder.unknown] = _UNKNOWN_TOKEN
    token_of[folder.first_symbol :] = len(_SPECIAL) + np.arange(len(folder.symbols))
    return token_of


def _read(
    folder: MegaFolder,
    split: str,
    columns: Mapping[str, ColumnSpec],
    token_of: np.ndarray,
    limit: int,
    rejects: Rejects,
    on_bytes: OnBytes,
) -> Iterator[Item]:
    for index, item in enumerate(folder.items(split, on_bytes)):
        empty = [place for place, ids in enumerate(item.sequences) if not len(ids)]
        if empty:
            rejects.add(folder.where(split, index, empty[0]), "is empty")
            continue
        sequences = [np.append(token_of[ids[:limit]], _END_TOKEN) for ids in item.sequences]
        yield item.label, dict(zip(columns, sequences, strict=True))
