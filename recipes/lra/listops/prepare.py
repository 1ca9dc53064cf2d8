"""Prepare ListOps: released, generated or Mega's expressions become arrays of tokens.

    megalodon prepare lra/listops SOURCE OUT [--generate]

SOURCE is the folder with ``basic_{train,val,test}.tsv`` or Mega's ``listops``, or a folder above one of
them; OUT the data folder of the task ``lra_text``, which may be the same folder.

Tokenisation is that of the official code and of S4: parentheses dropped, one symbol per operator, digit
and closing bracket (15 in all).  As in S4 and Mega an end token follows every expression, so that
lengths are 502 to 2000; with padding the vocabulary has 17 tokens (S4 also reserves one for unknown
symbols, which here are an error).  Mega's numbers of symbols and labels are translated to these.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.data import preparing
from megalodon_tasks.data.finding import find_files, folders_in, not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.sequences import ColumnSpec, DatasetSpec, Item, PreparedDataset
from megalodon_tasks.data.sources import Origin, check_source
from megalodon_tasks.recipes.lra.listops import generator
from megalodon_tasks.recipes.lra.listops.grammar import (
    CLOSE,
    END_TOKEN,
    PADDING_TOKEN,
    TOKEN_OF,
    VOCABULARY,
    evaluate,
)
from megalodon_tasks.recipes.lra.listops.release import (
    CLASSES,
    FILES,
    RELEASED_COUNTS,
    Row,
    read_rows,
)
from megalodon_tasks.recipes.lra.mega_files import SPLITS, MegaTokens

BENCHMARK = MEGA_NAME = "listops"
MEGA_CLASSES = {name: label for label, name in enumerate(CLASSES)}

# What the prepared form depends on beside the files; a change makes older ones be prepared again.
_SETTINGS = {"end_token": True, "parentheses": False}
# Long Range Arena's own preprocessing renames the bracket.
_RENAMED = {"X": CLOSE}
_DROPPED = ("(", ")")


def prepare(source: Path, out: Path) -> bool:
    """Check and prepare ListOps; return False if ``out`` already holds it, made from the same files.

    Raises ``ValueError`` for bad files (see ``release.read_rows`` and ``mega_rows``), and leaves ``out``
    as it was then.
    """
    check_source(source, f"the one with {', '.join(FILES.values())}, or Mega's {MEGA_NAME}")
    files = find_files(folders_in(source), FILES, "copy it there")
    mega = None if files else MegaTokens.find(source, MEGA_NAME, classes=MEGA_CLASSES)
    if files is not None:
        return _from_release(files).write(out)
    if mega is not None:
        splits = {split: preparing.from_the_start(_mega_items, mega, split) for split in SPLITS}
        spec = _spec("mega", "the splits of Mega's files")
        return preparing.Preparation("ListOps", spec, mega.origins(), splits).write(out)
    raise not_recognised(
        source,
        f"{', '.join(FILES.values())} and Mega's src-bin",
        "pass the folder listops-1000 of the LRA release or the folder listops of Mega's processed "
        f"files, {preparing.OR_GENERATE}",
    )


def _from_release(files: dict[str, Path]) -> preparing.Preparation:
    origins = {split: Origin.of_file(path) for split, path in files.items()}
    splits = {s: preparing.from_the_start(_released_items, one) for s, one in origins.items()}
    generated = generator.read_record(files["train"].parent)
    if generated is None:
        spec = _spec("release", "the splits of the release")
    else:
        spec = _spec("generated", "a random permutation", generated=generated["settings"])
    return preparing.Preparation("ListOps", spec, origins, splits)


def _spec(origin: str, split_rule: str, **settings: Any) -> DatasetSpec:
    return DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns={"inputs": ColumnSpec("uint8")},
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={
            "settings": _SETTINGS | settings,
            "origin": origin,
            "split_rule": split_rule,
            "published": {"counts": {"items": RELEASED_COUNTS}},
        },
    )


def _released_items(origin: Origin, on_bytes: OnBytes) -> Iterator[Item]:
    return map(_item, read_rows(origin.lines(on_bytes), origin.paths[0]))


def _mega_items(mega: MegaTokens, split: str, on_bytes: OnBytes) -> Iterator[Item]:
    return map(_item, mega_rows(mega, split, on_bytes))


def _item(row: Row) -> Item:
    return row.label, {"inputs": np.asarray([*row.tokens, END_TOKEN], np.uint8)}


def mega_rows(mega: MegaTokens, split: str, on_bytes: OnBytes) -> Iterator[Row]:
    """Yield the rows of a split of Mega's files as ``read_rows`` gives them, without parentheses.

    Raises ``ValueError`` as ``MegaTokens.items`` does, for a symbol of the dictionary that ListOps does
    not have, and naming the item for an unknown symbol, an unbalanced expression, and a label that is
    not its value.
    """
    token_of = _tokens_of_ids(mega)
    for index, item in enumerate(mega.items(split, on_bytes)):
        (ids,) = item.sequences
        where = mega.where(split, index)
        if (ids == mega.unknown).any():
            raise ValueError(f"{where} has a symbol that is not in the dictionary")
        tokens = token_of[ids]
        tokens = tokens[tokens != PADDING_TOKEN].tolist()
        try:
            value = evaluate(tokens)
        except ValueError as error:
            raise ValueError(f"{where}: the expression {error}; copy the files again") from None
        if value != item.label:
            raise ValueError(
                f"{where}: the label is {item.label}, but the expression has the value {value}; "
                "the labels or a dictionary are those of other data"
            )
        yield Row(tokens, value)


def _tokens_of_ids(mega: MegaTokens) -> np.ndarray:
    """Return the token of each id of the dictionary; padding for parentheses, which are dropped."""
    token_of = np.full(mega.first_symbol + len(mega.symbols), PADDING_TOKEN)
    for id_, symbol in enumerate(mega.symbols, start=mega.first_symbol):
        name = _RENAMED.get(symbol, symbol)
        if name in TOKEN_OF:
            token_of[id_] = TOKEN_OF[name]
        elif name not in _DROPPED:
            raise ValueError(
                f"{mega.dictionary_path} has the symbol {symbol[:40]!r}, which ListOps does not have; "
                "it is the dictionary of other data"
            )
    return token_of


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run ``megalodon prepare lra/listops``; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lra/listops",
        "Check ListOps and bring it into the form that the task lra_text reads.",
        "folder with basic_{train,val,test}.tsv, the LRA release, or Mega's listops",
    )
    preparing.add_workers_option(parser)
    generator.add_options(parser)
    options = parser.parse_args(arguments)

    def run() -> bool:
        settings = generator.settings_of(options)
        if options.generate:
            workers, overwrite = options.workers, options.overwrite
            generator.generate(options.source, settings, workers=workers, overwrite=overwrite)
        return prepare(options.source, options.out)

    def report(dataset: PreparedDataset) -> list[str]:
        note = " with the end token"
        return preparing.describe_splits(dataset, "expressions", RELEASED_COUNTS, note)

    return preparing.run(parser, options, run, report)
