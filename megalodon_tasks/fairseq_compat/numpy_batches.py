"""Form batches as fairseq's compiled module ``data_utils_fast`` does.

The three functions have its names and arguments and return what it returns.
"""

from collections.abc import Callable, Sequence

import numpy as np


def batch_by_size_vec(
    indices: np.ndarray,
    num_tokens_vec: np.ndarray,
    max_tokens: int,
    max_sentences: int,
    bsz_mult: int,
) -> list[np.ndarray]:
    """Cut ``indices`` (N,) int64 into consecutive batches.

    ``num_tokens_vec`` (N,) int64 has the tokens of each item.  A batch has at most ``max_sentences``
    items and, padded to its longest item, at most ``max_tokens`` tokens (no limit where one is 0 or
    less); its size is below ``bsz_mult`` or a multiple of it where the limits allow that.  Raises
    ``AssertionError`` for an item longer than ``max_tokens``.
    """
    if len(indices) == 0:
        return []
    assert max_tokens <= 0 or num_tokens_vec.max() <= max_tokens, (
        f"an item has {num_tokens_vec.max()} tokens, more than max_tokens={max_tokens}"
    )
    ends: list[int] = []
    start = end = 0  # the open batch; items from end to the present one may still join it
    longest = longest_waiting = 0
    for item, tokens in enumerate(num_tokens_vec.tolist()):
        longest_waiting = max(longest_waiting, tokens)
        size, longest_joined = item + 1 - start, max(longest, longest_waiting)
        full = 0 < max_sentences < size or 0 < max_tokens < size * longest_joined
        if full:
            ends.append(end)
            if 0 < max_tokens < longest_waiting * (item + 1 - end):
                end, longest_waiting = item, tokens
                ends.append(end)
            start, longest_joined = end, longest_waiting
        if full or size < bsz_mult or size % bsz_mult == 0:
            end, longest, longest_waiting = item + 1, longest_joined, 0
    if end != len(indices):
        ends.append(end)
    return np.split(indices, ends)


def batch_by_size_fn(
    indices: np.ndarray,
    num_tokens_fn: Callable[[int], int],
    max_tokens: int,
    max_sentences: int,
    bsz_mult: int,
) -> list[np.ndarray]:
    """Do the same with the tokens of an item from a function of its index."""
    tokens = np.fromiter(map(num_tokens_fn, indices), np.int64, len(indices))
    return batch_by_size_vec(indices, tokens, max_tokens, max_sentences, bsz_mult)


def batch_fixed_shapes_fast(
    indices: np.ndarray, num_tokens_fn: Callable[[int], int], fixed_shapes_sorted: np.ndarray
) -> list[list[int]]:
    """Cut ``indices`` (N,) int64 into batches that fit one of the shapes (S, 2): sentences, tokens.

    A batch that has outgrown a shape does not return to it, in the order of the shapes.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest, shapes = 0, fixed_shapes_sorted
    for index in indices:
        tokens = num_tokens_fn(index)
        longest = max(longest, tokens)
        place = _first_fit(shapes, len(batch) + 1, longest)
        if place is None:
            batches.append(batch)
            batch, longest, shapes = [], 0, fixed_shapes_sorted
        else:
            shapes = shapes[place:]
        batch.append(index)
    return [*batches, batch] if batch else batches


def _first_fit(shapes: Sequence, sentences: int, tokens: int) -> int | None:
    fits = (n for n, shape in enumerate(shapes) if sentences <= shape[0] and tokens <= shape[1])
    return next(fits, None)
