"""Cut a stream of sentences into blocks as fairseq's compiled module ``token_block_utils_fast`` does.

The two functions have its names and arguments and return what it returns.
"""

import numpy as np


def _get_slice_indices_fast(
    sizes: np.ndarray, break_mode: str | None, block_size: int, document_sep_len: int
) -> np.ndarray:
    """Return the first token of each block and the one after its last: (blocks, 2) int64.

    ``sizes`` (sentences,) int64.  Modes as in fairseq's ``TokenBlockDataset``: ``none`` cuts every
    ``block_size`` tokens, ``complete`` between sentences, ``complete_doc`` also at sentences of
    ``document_sep_len`` tokens, which no block contains, ``eos`` after each sentence.  Raises
    ``ValueError`` for another mode.
    """
    total = int(sizes.sum())
    if break_mode is None or break_mode == "none":
        starts = np.arange(0, total, block_size, dtype=np.int64)
        return np.stack([starts, np.minimum(starts + block_size, total)], axis=1)
    if break_mode == "eos":
        ends = sizes.cumsum()
        return np.stack([ends - sizes, ends], axis=1)
    if break_mode == "complete":
        return _whole_sentences(sizes, block_size, separator=None, least=1)
    if break_mode == "complete_doc":
        return _whole_sentences(sizes, block_size, separator=document_sep_len, least=2)
    raise ValueError(f"break_mode={break_mode!r} is none of none, complete, complete_doc, eos")


def _whole_sentences(
    sizes: np.ndarray, block_size: int, separator: int | None, least: int
) -> np.ndarray:
    """Fill blocks with sentences; leave out separators and blocks of fewer than ``least`` tokens."""
    blocks: list[tuple[int, int]] = []
    start = end = 0
    for size in sizes.tolist():
        ends_document = size == separator
        if ends_document or (start < end and end + size - start > block_size):
            blocks.append((start, end))
            start = end
        end += size
        if ends_document:
            start = end
    blocks.append((start, end))
    kept = [block for block in blocks if block[1] - block[0] >= least]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _get_block_to_dataset_index_fast(sizes: np.ndarray, slice_indices: np.ndarray) -> np.ndarray:
    """Return for each block its first sentence, the offset in it, and its last: (blocks, 3) int64."""
    starts_S = np.concatenate([[0], sizes.cumsum()])

    def sentence_of(token: np.ndarray) -> np.ndarray:
        place = np.searchsorted(starts_S, token)
        return np.where(starts_S[np.minimum(place, len(sizes))] == token, place, place - 1)

    first, after = slice_indices.T
    begin = sentence_of(first)
    last = np.where(after > first, sentence_of(np.maximum(after - 1, 0)), begin)
    return np.stack([begin, first - starts_S[begin], last], axis=1)
