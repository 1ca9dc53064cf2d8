"""Data of fairseq's translation task that does not fit its dictionaries, or is not there."""

import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks.translation import TranslationConfig, TranslationTask

import megalodon_tasks  # noqa: F401
from megalodon_tasks.errors import UserError

SYMBOLS = ("a", "b", "c")  # after the four special ones


def write_pairs(folder, source, target):
    """Write a split of one pair of token numbers, as fairseq-preprocess does."""
    for language, tokens in (("en", source), ("de", target)):
        (folder / f"dict.{language}.txt").write_text("".join(f"{s} 1\n" for s in SYMBOLS))
        path = folder / f"train.en-de.{language}"
        builder = MMapIndexedDatasetBuilder(f"{path}.bin")
        builder.add_item(torch.tensor(tokens))
        builder.finalize(f"{path}.idx")
    config = TranslationConfig(data=str(folder), dataset_impl="mmap", train_subset="train")
    return TranslationTask.setup_task(config)


@pytest.mark.parametrize(("source", "target"), [([6, 7, 2], [5, 2]), ([6, 2], [5, 9, 2])])
def test_a_token_that_the_dictionary_lacks_is_refused(tmp_path, source, target):
    wrong = max(source + target)
    with pytest.raises(UserError, match=f"token {wrong} is out of range: .* has 7 symbols"):
        write_pairs(tmp_path, source, target).load_dataset("train")


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_tokens_of_the_dictionary_are_read(tmp_path):
    task = write_pairs(tmp_path, [6, 2], [4, 5, 2])
    task.load_dataset("train")
    assert task.datasets["train"][0]["target"].tolist() == [4, 5, 2]


@pytest.mark.parametrize("content", ["b one\n", "b\n", "b 1\nb 1\n"])
def test_a_damaged_dictionary_is_named_with_its_line(tmp_path, content):
    write_pairs(tmp_path, [6, 2], [4, 2])
    (tmp_path / "dict.de.txt").write_text("a 1\n" + content)
    with pytest.raises(UserError, match=r"dict.de.txt, line [23]"):
        TranslationTask.setup_task(TranslationConfig(data=str(tmp_path)))


@pytest.mark.parametrize("data", [None, ""])
def test_no_folder_is_refused(data):
    with pytest.raises(UserError, match="task.data=.* names no folder of pairs"):
        TranslationTask.setup_task(TranslationConfig(data=data))
