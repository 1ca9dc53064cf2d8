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
        (("--batch-size", "3"), "now it has 12 of up to 3"),
        (("--batch-size", "12"), "now it has 3 of up to 12"),
        (("--seed", "4"), "common.seed"),
        (("--max-tokens", "24"), "now it has 12 of up to 3"),
    ],
)
def test_other_batches_within_an_epoch_are_refused(tmp_path, changed, now):
    runs.train(tmp_path, *WITHIN)
    with pytest.raises(UserError, match="written within epoch 1, which had 6 batches") as caught:
        runs.train(tmp_path, *changed)
    assert now in str(caught.value)
    runs.train(tmp_path, *changed, "--reset-dataloader", "--max-update", "6")


def test_other_batches_from_the_next_epoch_on_are_fine(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1")
    runs.train(tmp_path, "--batch-size", "3", "--max-update", "10")
    assert runs.state_of(tmp_path)["updates"] == 10


def test_more_batches_an_update_continue_within_the_epoch(tmp_path, monkeypatch):
    runs.train(tmp_path, *WITHIN)
    seen, collate = [], ToyDataset.collater

    def collater(self, items):
        seen.extend(item["id"] for item in items if self.augment)
        return collate(self, items)

    monkeypatch.setattr(ToyDataset, "collater", collater)
    runs.train(tmp_path, "--update-freq", "2", "--max-update", "5")
    assert len(set(seen[6:])) == 12  # the first 6 are fairseq's dummy batch


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
    ("now", "message"),
    [
        (
            {"processes": 2},
            "after 3 batches on 1 processes, which are not a whole number on each of 2",
        ),
        ({"processes": 1, "batch": 4}, "now it has 9 of up to 4"),
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
