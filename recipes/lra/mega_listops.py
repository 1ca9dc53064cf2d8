"""ListOps from Mega's processed files: its symbols are those of the release, numbered otherwise."""

from collections.abc import Iterator

import numpy as np

from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.recipes.lra.listops.expressions import CLASSES, Row
from megalodon_tasks.recipes.lra.listops.grammar import CLOSE, PADDING_TOKEN, TOKEN_OF, evaluate
from megalodon_tasks.recipes.lra.mega_tokens import MegaFolder

#: Which class each label of Mega's stands for.
LABELS = {name: label for label, name in enumerate(CLASSES)}

# Long Range Arena's own preprocessing renames the bracket.
_RENAMED = {"X": CLOSE}
_DROPPED = ("(", ")")


class MegaListOps:
    """Translates one of Mega's folders into rows as ``listops.read_rows`` gives them.

    Raises ``ValueError`` naming a symbol of the dictionary that ListOps does not have.
    """

    def __init__(self, folder: MegaFolder) -> None:
        self.folder = folder
        self._token_of = np.full(folder.first_symbol + len(folder.symbols), PADDING_TOKEN)
        for id_, symbol in enumerate(folder.symbols, start=folder.first_symbol):
            name = _RENAMED.get(symbol, symbol)
            if name in TOKEN_OF:
                self._token_of[id_] = TOKEN_OF[name]
            elif name not in _DROPPED:
                raise ValueError(
                    f"{folder.dictionary_path} has the symbol {symbol[:40]!r}, which ListOps does not "
                    "have; it is the dictionary of other data"
                )

    def rows(self, split: str, on_bytes: OnBytes) -> Iterator[Row]:
        """The rows of a split, without parentheses.

        Raises ``ValueError`` as ``MegaFolder.items`` does, and naming the item for an unknown symbol, an
        unbalanced expression, and a label that is not its value.
        """
        for index, item in enumerate(self.folder.items(split, on_bytes)):
            (ids,) = item.sequences
            where = self.folder.where(split, index)
            if (ids == self.folder.unknown).any():
                raise ValueError(f"{where} has a symbol that is not in the dictionary")
            tokens = self._token_of[ids]
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
