"""Without fairseq's compiled modules, NumPy forms the same batches and blocks."""

import sys

import numpy as np
import pytest
import torch
from fairseq.data import TokenBlockDataset, data_utils

from megalodon_tasks.fairseq_compat import compiled_modules, numpy_batches, numpy_blocks

COMPILED = ("fairseq.data.data_utils_fast", "fairseq.data.token_block_utils_fast")


@pytest.fixture
def without_compiled_modules(monkeypatch):
    for name in COMPILED:
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    compiled_modules.install()


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"max_sentences": 3}, [[0, 1, 2], [3, 4, 5], [6]]),
        ({"max_tokens": 12}, [[0, 1, 2, 3], [4, 5], [6]]),
        ({"max_tokens": 20, "required_batch_size_multiple": 4}, [[0, 1, 2, 3], [4, 5], [6]]),
        ({"fixed_shapes": np.array([[4, 3], [2, 9]])}, [[0, 1, 2, 3], [4, 5], [6]]),
    ],
)
def test_batches_keep_within_their_limits(without_compiled_modules, limits, batches):
    tokens = np.array([1, 2, 2, 3, 5, 5, 9])
    limits = {"required_batch_size_multiple": 1, **limits}
    found = data_utils.batch_by_size(np.arange(7), tokens.__getitem__, tokens, **limits)
    assert [list(batch) for batch in found] == batches


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        ("none", [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
        ("complete", [[1, 2, 3], [4, 5, 6, 7, 8], [9]]),
        ("complete_doc", [[1, 2, 3], [4, 5, 6, 7, 8]]),
    ],
)
def test_a_stream_is_cut_into_blocks(without_compiled_modules, mode, blocks):
    sentences = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8]), torch.tensor([9])]
    data = TokenBlockDataset(sentences, [3, 5, 1], 4, pad=0, eos=2, break_mode=mode)
    assert [block.tolist() for block in data] == blocks


def outcome(function, *arguments):
    """What a call returns, as lists; the name of the class of what it raises."""
    try:
        return [np.asarray(part).tolist() for part in function(*arguments)]
    except Exception as problem:  # noqa: BLE001 - compared with the other one's
        return type(problem).__name__


@pytest.mark.parametrize("seed", range(4))
def test_batches_equal_those_of_the_compiled_module(seed):
    compiled = pytest.importorskip(COMPILED[0], reason="fairseq is not compiled here")
    rng = np.random.default_rng(seed)
    for _ in range(300):
        indices = rng.permutation(rng.integers(0, 25)).astype(np.int64)
        tokens = rng.integers(1, 12, len(indices))
        limits = [int(rng.choice(some)) for some in ((-1, 11, 15, 40), (0, 1, 3, 8), (1, 2, 3, 8))]
        by_index = dict(zip(indices.tolist(), tokens.tolist(), strict=True))
        shapes = np.sort(rng.integers(1, 14, (3, 2)), axis=0)
        for name, *arguments in (
            ("batch_by_size_vec", indices, tokens, *limits),
            ("batch_by_size_fn", indices, by_index.__getitem__, *limits),
            ("batch_fixed_shapes_fast", indices, by_index.__getitem__, shapes),
        ):
            expected = outcome(getattr(compiled, name), *arguments)
            assert outcome(getattr(numpy_batches, name), *arguments) == expected, (name, arguments)


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos", "other"])
def test_blocks_equal_those_of_the_compiled_module(mode):
    compiled = pytest.importorskip(COMPILED[1], reason="fairseq is not compiled here")
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = np.append(rng.integers(0, 6, rng.integers(0, 25)), 3)
        arguments = sizes, mode, int(rng.integers(1, 12)), int(rng.choice([0, 1]))
        expected = outcome(compiled._get_slice_indices_fast, *arguments)
        assert outcome(numpy_blocks._get_slice_indices_fast, *arguments) == expected, arguments
        if mode != "other":
            blocks = np.array(expected)
            assert outcome(numpy_blocks._get_block_to_dataset_index_fast, sizes, blocks) == outcome(
                compiled._get_block_to_dataset_index_fast, sizes, blocks
            )
