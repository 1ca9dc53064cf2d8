"""What fairseq calls and NumPy 2 lacks."""

import numpy as np
import pytest
import torch
from fairseq.data import BucketPadLengthDataset, TokenBlockDataset, data_utils

import megalodon_tasks  # noqa: F401

SENTENCES = [torch.arange(1, length + 1) for length in (3, 5, 2, 9, 4)]
SIZES = np.array([len(sentence) for sentence in SENTENCES])


@pytest.mark.parametrize(("buckets", "expected"), [(1, [9] * 5), (2, [4, 9, 4, 9, 4])])
def test_lengths_are_put_into_buckets(buckets, expected):
    dataset = BucketPadLengthDataset(SENTENCES, SIZES, buckets, pad_idx=0, left_pad=False)
    assert [len(dataset[i]) for i in range(5)] == expected


def test_blocks_end_with_sentences():
    blocks = TokenBlockDataset(SENTENCES, SIZES, None, pad=0, eos=1, break_mode="eos")
    assert [block.tolist() for block in (blocks[0], blocks[3])] == [[1, 2, 3], list(range(1, 10))]


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 has the argument")
def test_fairseq_alone_fails():
    with pytest.raises(TypeError, match="interpolation"):
        data_utils.get_buckets(SIZES, 2)
