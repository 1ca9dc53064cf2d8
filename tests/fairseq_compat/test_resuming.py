"""A resumed run reads each item once and trains with the settings of now, or is refused."""

import itertools

import numpy as np
import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator

from megalodon_tasks.errors import UserError
from tests.toy_plugin import ToyDataset, runs

# the epoch has 6 batches of 6; a checkpoint is written after 4 of them
WITHIN = ("--max-update", "4", "--save-interval-updates", "4")


def saved_settings(folder):
    (group, *others) = torch.load(folder / "checkpoint_last.pt")["last_optimizer_state"][
        "param_groups"
    ]
    return group, others


@pytest.mark.parametrize(
    ("changed", "now"),
    [
        (("--batch-size", "5"), "after 24 items, which are no whole number of batches of 5"),
        (("--batch-size", "9"), "Use a batch size that divides 24"),
        (("--seed", "4"), "which had 6 batches of up to 6 items"),
        (("--seed", "4", "--batch-size", "3"), "now it has 12 of up to 3"),
    ],
)
def test_other_batches_within_an_epoch_are_refused(tmp_path, changed, now):
    runs.train(tmp_path, *WITHIN)
    with pytest.raises(UserError, match="written within epoch 1, ") as caught:
        runs.train(tmp_path, *changed)
    assert now in str(caught.value)
    runs.train(tmp_path, *changed, "--reset-dataloader", "--max-update", "6")


def test_other_batches_from_the_next_epoch_on_are_fine(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1")
    runs.train(tmp_path, "--batch-size", "3", "--max-update", "10")
    assert runs.state_of(tmp_path)["updates"] == 10


@pytest.fixture
def seen(monkeypatch):
    """The training batches that are read, as lists of items.

    Where a run begins, and where it ends an epoch, fairseq reads a dummy batch.
    """
    batches, collate = [], ToyDataset.collater

    def collater(self, items):
        if self.augment:
            batches.append([item["id"] for item in items])
        return collate(self, items)

    monkeypatch.setattr(ToyDataset, "collater", collater)
    return batches


def test_more_batches_an_update_continue_within_the_epoch(tmp_path, seen):
    runs.train(tmp_path, *WITHIN)
    seen.clear()
    runs.train(tmp_path, "--update-freq", "2", "--max-update", "5")
    assert len({item for batch in seen[1:] for item in batch}) == 12


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        (("--batch-size", "3"), 3),
        (("--batch-size", "12"), 12),
        (("--max-tokens", "24"), 3),
        (("--batch-size", "4"), 4),
    ],
)
def test_batches_of_another_size_continue_within_the_epoch(tmp_path, seen, changed, size):
    runs.train(tmp_path, *WITHIN)
    whole = [item for batch in seen[1:5] for item in batch]
    seen.clear()
    runs.train(tmp_path, *changed, "--max-epoch", "1")
    assert {len(batch) for batch in seen} == {size}
    assert sorted(whole + [item for batch in seen[1:-1] for item in batch]) == list(range(36))


def test_another_size_continues_again_and_again(tmp_path, seen):
    """The second part is stopped too, and the third has the first size once more."""
    runs.train(tmp_path, "--max-update", "2", "--save-interval-updates", "1")
    read = [item for batch in seen[1:3] for item in batch]
    for size, last in ((3, 4), (3, 6), (6, 7)):
        seen.clear()
        words = [
            "--batch-size",
            str(size),
            "--max-update",
            str(last),
            "--save-interval-updates",
            "1",
        ]
        runs.train(tmp_path, *words)
        updates = 1 if size == 6 else 2
        read += [item for batch in seen[1 : 1 + updates] for item in batch]
    seen.clear()
    runs.train(tmp_path, "--max-epoch", "1")
    read += [item for batch in seen[1:-1] for item in batch]
    assert sorted(read) == list(range(36))


def test_half_the_batch_twice_an_update_trains_the_same(tmp_path):
    """The order of the items is that of the epoch's first batches, so an update has the same ones."""
    first = ("--dropout", "0", *WITHIN)
    for name, changed in {"same": (), "half": ("--batch-size", "3", "--update-freq", "2")}.items():
        runs.train(tmp_path / name, *first)
        runs.train(tmp_path / name, "--dropout", "0", *changed, "--max-epoch", "1")
    same, half = (runs.state_of(tmp_path / name)["model"] for name in ("same", "half"))
    for name, tensor in same.items():
        torch.testing.assert_close(half[name], tensor)


class Plain(torch.utils.data.Dataset):
    """The numbers 0 to 35."""

    def __len__(self):
        return 36

    def __getitem__(self, index):
        return index


def iterators(processes, batch=3, seed=1, **settings):
    batches = list(np.arange(36).reshape(-1, batch))
    return [
        EpochBatchIterator(
            Plain(), list, batches, seed=seed, num_shards=processes, shard_id=rank, **settings
        )
        for rank in range(processes)
    ]


def read(iterator, steps=None):
    return list(itertools.chain(*itertools.islice(iterator.next_epoch_itr(), steps)))


@pytest.mark.parametrize(("before", "after", "steps"), [(1, 2, 4), (2, 1, 3), (4, 2, 2), (2, 3, 3)])
def test_another_number_of_processes_continues_exactly(before, after, steps):
    first = iterators(before)
    seen = [item for iterator in first for item in read(iterator, steps)]
    state = first[0].state_dict()
    for iterator in iterators(after):
        iterator.load_state_dict(state)
        seen += read(iterator)
    assert sorted(seen) == list(range(36))


@pytest.mark.parametrize(
    ("before", "after", "batch", "steps"), [(1, 2, 6, 4), (2, 1, 2, 3), (4, 2, 1, 2), (2, 3, 6, 3)]
)
def test_another_size_on_another_number_of_processes_continues_exactly(before, after, batch, steps):
    first = iterators(before)
    seen = [item for iterator in first for item in read(iterator, steps)]
    state = first[0].state_dict()
    for iterator in iterators(after, batch):
        iterator.load_state_dict(state)
        seen += read(iterator)
    assert sorted(seen) == list(range(36))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            {"processes": 2},
            "after 3 batches, saved by 1 processes, which are not a whole number on each of 2",
        ),
        ({"processes": 1, "batch": 4}, "after 9 items, which are no whole number of batches of 4"),
        ({"processes": 2, "batch": 9}, "after 1 batches, .* not a whole number on each of 2"),
        ({"processes": 1, "batch": 9, "seed": 2}, "now it has 4 of up to 9, or others"),
        ({"processes": 1, "seed": 2}, "now it has 12 of up to 3, or others"),
        ({"processes": 3, "grouped_shuffling": True}, "or others"),
    ],
)
def test_what_would_skip_or_repeat_items_is_refused(now, message):
    (first,) = iterators(1, grouped_shuffling="grouped_shuffling" in now)
    read(first, 3)
    for iterator in iterators(**now):
        with pytest.raises(UserError, match=message):
            iterator.load_state_dict(first.state_dict())


ADAM = ("--optimizer", "adam")


@pytest.mark.parametrize("optimizer", [(), ADAM])
@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--weight-decay 0.3", "weight_decay", 0.3),
        ("--adam-betas (0.5,0.6)", "betas", (0.5, 0.6)),
        ("--adam-eps 1e-3", "eps", 1e-3),
        ("--optimizer-overrides {'weight_decay':0.2}", "weight_decay", 0.2),
    ],
)
def test_changed_settings_of_the_optimizer_take_effect(tmp_path, optimizer, option, name, value):
    runs.train(tmp_path, *optimizer, "--max-epoch", "1")
    runs.train(tmp_path, *optimizer, *option.split(), "--max-epoch", "2")
    group, others = saved_settings(tmp_path)
    assert group[name] == value
    assert [other["weight_decay"] for other in others] == [0.0] * len(others)
    assert len(others) == (0 if optimizer else 1)


def test_a_changed_rate_takes_effect(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1")
    events = runs.train(tmp_path, "--lr", "0.01", "--max-epoch", "2")
    assert float(events["train", 12]["lr"]) == pytest.approx(0.01 * 8 / 17, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("{'lr': 0.1}", "linear_decay sets the learning rate at each update; set optimization.lr"),
        ("{'decay': 0.1}", "the optimizer has no decay; it has .*weight_decay"),
        ("weight_decay=1", "is not a dictionary"),
    ],
)
def test_overrides_without_effect_are_refused(tmp_path, overrides, message):
    runs.train(tmp_path, "--max-epoch", "1")
    with pytest.raises(UserError, match=message):
        runs.train(tmp_path, "--optimizer-overrides", overrides)


def test_other_groups_of_parameters_are_refused(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1")
    with pytest.raises(UserError, match="has other groups of parameters"):
        runs.train(tmp_path, "--spare-vectors")
