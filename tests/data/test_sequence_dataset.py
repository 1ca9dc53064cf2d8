import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.tasks import FairseqTask

from megalodon_tasks.data.sequence_dataset import SequenceDataset
from megalodon_tasks.data.sequences import ColumnSpec, PreparedDataset, ValueScale
from tests.data.prepared import random_items, spec_of, write_items, write_random


@pytest.fixture
def prepared(tmp_path):
    return write_random(tmp_path / "data")


def batches(dataset, epoch, **options):
    """The batches that fairseq trains on in one epoch of a process that starts with it."""
    iterator = FairseqTask(SimpleNamespace()).get_batch_iterator(
        dataset, max_sentences=7, seed=1, epoch=epoch, **options
    )
    return list(iterator.next_epoch_itr(shuffle=False))


def test_batch_holds_the_items_padded_on_the_right(tmp_path):
    spec = spec_of()
    items = random_items(8, spec)
    dataset = SequenceDataset(write_items(tmp_path, spec, {"train": items}).split("train"))
    batch = dataset.collater([dataset[i] for i in (5, 2, 7)])
    longest = max(len(items[i][1]["inputs"]) for i in (5, 2, 7))
    inputs, lengths = batch["net_input"]["inputs"], batch["net_input"]["lengths"]
    assert inputs.dtype == lengths.dtype == batch["target"].dtype == torch.int64
    assert inputs.shape == (3, longest)
    for row, index in enumerate((5, 2, 7)):
        label, sequences = items[index]
        expected = sequences["inputs"].tolist()
        assert batch["id"][row] == index
        assert batch["target"][row] == label
        assert lengths[row] == len(expected)
        assert inputs[row].tolist() == expected + [0] * (longest - len(expected))
    assert batch["nsentences"] == 3
    assert batch["ntokens"] == int(lengths.sum())


def test_samples_of_a_signal_are_scaled(tmp_path):
    columns = {"inputs": ColumnSpec("int16", 3)}
    scale = ValueScale(divisor=32768, mean=0.25, std=0.5)
    spec = spec_of(kind="waveform", columns=columns, vocabulary=(), scale=scale)
    item = (2, {"inputs": np.array([-32768, 8192, 32767], np.int16)})
    write_items(tmp_path, spec, {"train": [item]})
    dataset = SequenceDataset(PreparedDataset(tmp_path).split("train"))
    inputs = dataset.collater([dataset[0]])["net_input"]["inputs"]
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, torch.tensor([[-2.5, 0.0, 1.5 - 2 / 32768]]))


@pytest.mark.parametrize(
    "scale", [{"divisor": 0.0, "mean": 0.0, "std": 1.0}, {"divisor": 1.0, "mean": 0.0, "std": -1.0}]
)
def test_a_scale_that_divides_by_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="must be positive"):
        ValueScale(**scale)


def test_symbols_have_no_scale():
    with pytest.raises(ValueError, match="a vocabulary and a value scale"):
        spec_of(scale=ValueScale(255, 0.5, 0.5))


def test_pairs_and_fixed_lengths(tmp_path):
    columns = {"inputs": ColumnSpec("uint8"), "inputs2": ColumnSpec("float32", 4)}
    spec = spec_of(columns=columns, vocabulary=())
    item = (1, {"inputs": np.array([3, 4], np.uint8), "inputs2": np.full(4, 0.5, np.float32)})
    dataset = SequenceDataset(write_items(tmp_path, spec, {"train": [item]}).split("train"))
    batch = dataset.collater([dataset[0]])
    assert set(batch["net_input"]) == {"inputs", "lengths", "inputs2", "lengths2"}
    assert batch["net_input"]["inputs2"].dtype == torch.float32
    assert batch["net_input"]["lengths2"].tolist() == [4]
    assert batch["ntokens"] == 6
    assert dataset.sizes.tolist() == [4]


def test_no_samples_make_an_empty_batch(prepared):
    assert SequenceDataset(prepared.split("train")).collater([]) == {}


def test_evaluation_order_is_by_length(prepared):
    dataset = SequenceDataset(prepared.split("valid"))
    order = dataset.ordered_indices()
    assert sorted(order) == list(range(12))
    assert (np.diff(dataset.sizes[order]) >= 0).all()
    assert [dataset.size(i) for i in order] == dataset.num_tokens_vec(order).tolist()
    assert dataset.num_tokens(order[0]) == dataset.size(order[0])


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("limit", [{"max_sentences": 5}, {"max_tokens": 20}])
def test_evaluation_leaves_no_item_out(prepared, multiple, limit):
    dataset = SequenceDataset(prepared.split("valid"))
    batches = dataset.batch_by_size(
        dataset.ordered_indices(), required_batch_size_multiple=multiple, **limit
    )
    assert sorted(np.concatenate(batches)) == list(range(12))


def test_training_order_depends_on_seed_and_epoch_alone(prepared):
    def order(seed, epoch):
        dataset = SequenceDataset(prepared.split("train"), shuffle=True, seed=seed)
        np.random.seed(epoch * 7 + 1)
        dataset.set_epoch(epoch)
        return dataset.ordered_indices().tolist()

    assert sorted(order(1, 1)) == list(range(40))
    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2, 3)}) == 6


def test_pools_of_the_training_order_are_sorted_by_length(prepared):
    split = prepared.split("train")
    plain = SequenceDataset(split, shuffle=True, seed=1).ordered_indices()
    pooled = SequenceDataset(split, shuffle=True, seed=1, length_pool=16)
    order = pooled.ordered_indices()
    for start in range(0, 40, 16):
        pool = order[start : start + 16]
        assert sorted(pool) == sorted(plain[start : start + 16])
        assert (np.diff(pooled.sizes[pool]) >= 0).all()
    pooled.set_epoch(2)
    assert order.tolist() != pooled.ordered_indices().tolist()


def test_resumed_process_sees_the_batches_of_the_epoch(prepared):
    def ids(dataset, epoch):
        return [batch["id"].tolist() for batch in batches(dataset, epoch)]

    running = SequenceDataset(prepared.split("train"), shuffle=True, seed=1)
    epochs = [ids(running, epoch) for epoch in (1, 2, 3)]
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = SequenceDataset(prepared.split("train"), shuffle=True, seed=1)
    assert ids(resumed, 3) == epochs[2]
    assert not running.can_reuse_epoch_itr_across_epochs
    assert not running.supports_prefetch


def test_dataset_travels_to_a_data_worker_without_its_data(tmp_path):
    spec = spec_of(columns={"inputs": ColumnSpec("uint8", 10_000)}, vocabulary=())
    items = random_items(5, spec)
    dataset = SequenceDataset(write_items(tmp_path, spec, {"train": items}).split("train"))
    expected = dataset[3]["inputs"]
    message = pickle.dumps(dataset)
    assert len(message) < 10_000
    assert torch.equal(pickle.loads(message)[3]["inputs"], expected)


def test_too_long_sequence_is_refused_on_loading(prepared):
    split = prepared.split("train")
    lengths = split.lengths("inputs")
    assert SequenceDataset(split, max_length=lengths.max())
    limit = int(lengths.max()) - 1
    index = int(np.flatnonzero(lengths > limit)[0])
    with pytest.raises(ValueError, match=f"item {index} has {limit + 1} steps, but the limit is"):
        SequenceDataset(split, max_length=limit)
    with pytest.raises(ValueError, match=f"split 'train' of {prepared.folder}.*max-positions"):
        SequenceDataset(split, max_length=limit)


@pytest.mark.parametrize("max_positions", [3, (3, 8)])
def test_what_the_model_cannot_take_is_refused_not_dropped(prepared, max_positions):
    dataset = SequenceDataset(prepared.split("train"))
    for ignore in (False, True):
        with pytest.raises(ValueError, match="but the limit is 3"):
            batches(dataset, 1, max_positions=max_positions, ignore_invalid_inputs=ignore)
    assert len(batches(dataset, 1, max_positions=9)) == 6


def test_a_limit_in_tokens_is_named_as_such(prepared):
    dataset = SequenceDataset(prepared.split("train"), shuffle=True, max_length=100)
    order, longest = dataset.ordered_indices(), int(dataset.sizes.max())
    with pytest.raises(ValueError, match=f"limit is 3, .*raise dataset.max_tokens.* {longest}"):
        dataset.filter_indices_by_size(order, 3)
    with pytest.raises(
        ValueError, match=rf"max_tokens=3 .*item of {longest} tokens fits in no batch"
    ):
        dataset.batch_by_size(order, max_tokens=3)
    assert len(np.concatenate(dataset.batch_by_size(order, max_tokens=longest))) == 40
