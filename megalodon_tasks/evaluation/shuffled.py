"""The documents of a split in a random order, one after the other, as figure 5 of the paper has them."""

import numpy as np

from megalodon_tasks.data.corpus import CorpusSplit

LENGTH = 1 << 21  # tokens: the longest context in that figure
# Distinguishes this use of a seed from others; any constant will do.
_ORDER = 0xF165


class ShuffledSplit:
    """A split read in another order of its documents, which depends only on ``seed``.

    offsets: (documents + 1,) int64, where each document begins in this order; then the number of tokens.
    Raises ``ValueError`` for a split of one document.
    """

    def __init__(self, split: CorpusSplit, seed: int) -> None:
        if len(split) < 2:
            raise ValueError(
                f"split {split.name!r} of {split.folder} has one document, so there is nothing to "
                "shuffle; cut it by --segments or --context"
            )
        order = np.random.default_rng([_ORDER, seed]).permutation(len(split))
        self._split, self._starts = split, split.offsets[:-1][order]
        self.name, self.info, self.folder = split.name, split.info, split.folder
        self.offsets = np.concatenate(([0], np.cumsum(np.diff(split.offsets)[order])))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Read tokens by their position in this order, (stop - start,) int64; fewer at its end."""
        stop = min(stop, int(self.offsets[-1]))
        parts = [np.empty(0, np.int64)]
        while start < stop:
            document = int(np.searchsorted(self.offsets, start, side="right")) - 1
            end = min(stop, int(self.offsets[document + 1]))
            shift = int(self._starts[document] - self.offsets[document])
            parts.append(self._split.tokens(start + shift, end + shift))
            start = end
        return np.concatenate(parts)
