"""Files that are cut short while they are in use end in a message, in the process and in its workers."""

import os

import pytest
import torch

from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.sequence_dataset import SequenceDataset
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.token_stream import open_stream
from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.lm.task import load_dictionary
from tests.cli.language_models import write_corpus
from tests.data.prepared import write_random


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sequence_that_is_cut_short_while_it_is_read(tmp_path, workers):
    write_random(tmp_path)
    dataset = SequenceDataset(PreparedDataset(tmp_path).split("train"))
    last = len(dataset) - 1
    dataset[last]
    path = tmp_path / "train.inputs.bin"
    os.truncate(path, path.stat().st_size - 1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=[[last]], collate_fn=list, num_workers=workers
    )
    with pytest.raises(UserError, match=f"{path} ends at byte .* it was cut short while") as caught:
        next(iter(loader))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("part", ["labels", "inputs.offsets"])
def test_what_is_read_at_once_is_read_whole(tmp_path, part):
    write_random(tmp_path)
    split = PreparedDataset(tmp_path).split("train")
    path = tmp_path / f"train.{part}.bin"
    os.truncate(path, 8)
    with pytest.raises(ValueError, match=f"{path} ends at byte 8, expected"):
        SequenceDataset(split)[0]


def test_text_that_is_cut_short_while_it_is_read(tmp_path):
    folder = write_corpus(tmp_path)
    split, stream = (
        read_corpus(folder).split("test"),
        open_stream(folder, "test", load_dictionary(folder)),
    )
    os.truncate(folder / "test.bin", 40)
    for read in (split.tokens, stream.read):
        assert len(read(0, 20)) == 20
        with pytest.raises(ValueError, match="test.bin has no token 20, of .*: it was cut short"):
            read(10, 30)
