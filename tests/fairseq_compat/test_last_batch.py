"""Every item is in a batch, whatever the required multiple; fairseq itself drops the last batch."""

import numpy as np
import pytest
from fairseq.data import data_utils

import megalodon_tasks  # noqa: F401


@pytest.mark.parametrize("items", [1, 7, 8, 12, 17])
@pytest.mark.parametrize("multiple", [1, 4, 8])
@pytest.mark.parametrize("limits", [{"max_sentences": 5}, {"max_sentences": 8}, {"max_tokens": 40}])
def test_no_item_is_left_out(items, multiple, limits):
    batches = data_utils.batch_by_size(
        np.arange(items)[::-1].copy(),
        lambda index: 3,
        num_tokens_vec=np.full(items, 3),
        required_batch_size_multiple=multiple,
        **limits,
    )
    assert np.concatenate(batches).tolist() == list(range(items))[::-1]
    assert all(0 < len(batch) <= limits.get("max_sentences", 13) for batch in batches)


def test_fairseq_still_drops_the_last_batch():
    stock = data_utils.batch_by_size.__wrapped__
    batches = stock(np.arange(12), lambda index: 3, max_sentences=8, required_batch_size_multiple=8)
    assert sum(map(len, batches)) == 8
